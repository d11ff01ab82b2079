"""Data other than a run's own dataset, for evaluation or recommendations: other logs, or another dataset.

Other logs become a dataset with the vocabularies of the run's dataset, in datasets/NAME of the run folder. Another
dataset must have the same vocabularies and fits. The run's own dataset is never changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.config.file import apply_override, merged
from cluster.config.run_config import Config, check_config
from cluster.data.prepare import Progress
from cluster.data.prepare_with import prepare_with
from cluster.driver.progress import View, announce
from cluster.driver.stage_record import StageRecord
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.identity import at_default, identity, is_among
from trainer.data.dataset.encoding import encoding_differences
from trainer.data.dataset.folder import DatasetRequest
from trainer.data.dataset.manifest import Manifest, read_manifest, verify_dataset
from trainer.data.dataset.splits import Split
from trainer.data.logs.files import absolute, entries_of
from trainer.data.prepare.derived import Derivation
from trainer.errors import CheckpointError, UserError
from trainer.loop.same_run import same_dataset
from trainer.settings import changed_settings
from trainer.storage.files import digest_of
from trainer.storage.objects.paths import path_of

PREFIX = "logs."
# Settings that decide what a model computes, and those among them that only training uses.
_MODEL = ("model", "tables.*.dim", "tables.*.ids", "tables.*.pooling")
_TRAINING_ONLY = ("model.objective.num_negatives", "model.objective.negatives", "model.objective.logq")


@dataclass(frozen=True)
class LaterLogs:
    """Raw logs, for example of a later period."""

    # Settings of these logs and of the run's model.
    config: Config
    # Use of their events together with those of the run's dataset.
    derivation: Derivation = field(default_factory=Derivation)

    @property
    def name(self) -> str:
        """Name of their dataset and their evaluation: from the first path, and a hash of all paths and settings."""
        entries = entries_of(self.config.logs.path)
        request = DatasetRequest(self.config.logs, self.config.split, self.config.ids_of_tables, {})
        digest = digest_of([[absolute(entry) for entry in entries], request.settings])
        kind = "logs" if self.derivation.targets else "history"
        return f"{kind}-{_stem(entries[0])}-{digest[:8]}"


@dataclass(frozen=True)
class OtherDataset:
    """A prepared dataset."""

    # Its folder.
    folder: Path

    @property
    def name(self) -> str:
        """Name of its evaluation: from the folder, and a hash of its path."""
        return f"dataset-{_stem(str(self.folder))}-{digest_of(str(self.folder.absolute()))[:8]}"


OtherData = LaterLogs | OtherDataset


def later_logs(config: Config, paths: Sequence[str], overrides: Sequence[str] | Mapping[str, Any] = ()) -> LaterLogs:
    """Describe raw logs by the settings of the run's logs, with their own paths and overrides.

    Args:
        config: of the run.
        paths: of the logs, in the forms of logs.path.
        overrides: settings of the logs that differ from those of the run: ["logs.user=uid"], or {"logs.user": "uid"}.

    Raises:
        UserError: if an override is no setting of the logs, or is not valid.
    """
    values = config.model_dump(mode="json")
    values["logs"]["path"] = list(paths)
    names = [text.partition("=")[0].strip() for text in overrides]
    for name in names:
        if not name.startswith(PREFIX):
            raise UserError(
                f"{name}: is no setting of the new logs; only settings that begin with {PREFIX} describe them"
            )
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            nested = value
            for section in reversed(name.split(".")):
                nested = {section: nested}
            values = merged(values, nested)
    else:
        for override in overrides:
            apply_override(override, values)
    return LaterLogs(check_config(values, "logs to evaluate on"))


def given_histories(
    config: Config, paths: Sequence[str] | None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> LaterLogs | None:
    """Return logs with the events of the histories of users, in place of those of the run's dataset; None without paths.

    Args:
        config: of the run.
        paths: as for `later_logs`.
        overrides: as for `later_logs`.
    """
    if not paths:
        return None
    return replace(later_logs(config, paths, overrides), derivation=Derivation(history=False, targets=False))


def other_data(
    config: Config,
    logs: Sequence[str] | None,
    dataset: str | Path | None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> OtherData | None:
    """Return the data that a user named, or None for the run's own. Raises UserError if both logs and a dataset are named."""
    if logs and dataset is not None:
        raise UserError("--logs and --dataset exclude each other: evaluate on one of them at a time")
    if logs:
        return later_logs(config, logs, overrides)
    return None if dataset is None else OtherDataset(path_of(dataset))


def config_with(config: Config, data: OtherData, view: View, connect: Callable[[], None]) -> Config:
    """Return the config of a run with the dataset of other data, which is prepared if these are logs.

    Args:
        config: of the run.
        data: the other data.
        view: where progress is shown.
        connect: joins Ray; called before the first task of a preparation.
    """
    if isinstance(data, OtherDataset):
        return _with_dataset(config, data.folder)
    folder = config.run_dir / "datasets" / data.name
    _prepare(config, data, folder, view, connect)
    return _with_dataset(config.model_copy(update={"logs": data.config.logs}), folder)


def check_encoding(config: Config, checkpoint: StoredCheckpoint, other: Config) -> None:
    """Check that the model of a checkpoint can read another dataset, and that this dataset is whole.

    Args:
        config: of the run, with the dataset of its model.
        checkpoint: the checkpoint to evaluate.
        other: the config with the other dataset.

    Raises:
        UserError: with every difference of vocabularies, features and labels.
    """
    manifest = read_manifest(other.dataset_dir)
    verify_dataset(other.dataset_dir, manifest)
    if same_dataset(checkpoint.manifest, manifest):
        return
    known = read_manifest(config.dataset_dir)
    if not same_dataset(checkpoint.manifest, known):
        raise UserError(
            f"checkpoint {checkpoint.path}: was trained neither on dataset {config.dataset_dir} of this run nor on "
            f"{other.dataset_dir}, so their vocabularies cannot be compared; give the config of the run of the checkpoint"
        )
    differences = encoding_differences(config.dataset_dir, known, other.dataset_dir, manifest)
    if differences:
        lines = "\n  ".join(differences)
        raise UserError(
            f"dataset {other.dataset_dir}: encodes values in other ways than the model's dataset {config.dataset_dir}:\n"
            f"  {lines}\n"
            "Evaluate on the raw logs instead (--logs), which are prepared with the vocabularies of the model"
        )


def check_splits(config: Config, splits: Sequence[Split]) -> None:
    """Check that the dataset of other data has targets in these splits. Raises UserError for validation on later logs."""
    if read_manifest(config.dataset_dir).derived and "validation" in splits:
        raise UserError(
            f"--split validation: dataset {config.dataset_dir} was made from later logs, and all of their events are test targets; "
            "leave --split out"
        )


def check_model(checkpoint: StoredCheckpoint, config: Config) -> None:
    """Check that a checkpoint has the model of a config. Raises CheckpointError with every setting that differs."""
    before, now = (
        {key: value for key, value in settings.items() if is_among(key, _MODEL) and not is_among(key, _TRAINING_ONLY)}
        for settings in (checkpoint.manifest.identity, identity(config))
    )
    changed = changed_settings(before, now, at_default(config)) if before else []
    if changed:
        lines = "\n  ".join(changed)
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has another model than {config.run_dir}:\n  {lines}\n"
            "Evaluate it with the config of its own run (config.json in its run folder), and name the data by --dataset or --logs"
        )


def _with_dataset(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"dataset": str(folder)})})


def _prepare(config: Config, data: LaterLogs, folder: Path, view: View, connect: Callable[[], None]) -> None:
    """Prepare later logs, record the stage, and print a summary."""
    stage = f"prepare/{data.name}"

    def show(progress: Progress) -> None:
        view.update("prepare", progress.done, progress.total, f"{progress.stage}, {progress.rows:,} rows")

    announce(view, stage, "started")
    view.print_phase(f"prepare: {data.name}, with the vocabularies of {config.dataset_dir}")
    manifest = prepare_with(
        config.dataset_dir,
        data.config,
        folder,
        data.derivation,
        show,
        connect=connect,
        on_phase=lambda phase: view.print_phase(f"prepare: {phase}"),
    )
    view.clear()
    result = {"dataset": str(folder), "digest": manifest.digest}
    StageRecord(config.run_dir).finish(stage, manifest.fingerprint, result)
    view.print_line(_summary(folder, manifest))
    announce(view, stage, "done")


def _summary(folder: Path, manifest: Manifest) -> str:
    new = manifest.derived
    alone = new["new_users"] is None  # without the events of the base
    users = f"{manifest.num_rows:,} users" if alone else f"{new['new_users']:,} new users"
    rejected = "".join(f", {number:,} {reason}" for reason, number in new["rejected"].items())
    return (
        f"dataset {folder}: {new['events']:,} new events, {new['unknown_item_events']:,} of them of {new['unknown_items']:,} items "
        f"that the model does not know; {users}; {sum(new['rejected'].values()):,} rows rejected{rejected}"
    )


def _stem(path: str) -> str:
    """Return the last part of a path as letters, digits, - and _."""
    last = path.rstrip("/").rpartition("/")[2].split(".")[0]
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in last)[:40]
