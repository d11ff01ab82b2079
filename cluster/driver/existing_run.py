"""Existing run: what a submitted command would do with a run folder that is there already, and a copy to continue elsewhere.

No ray, no torch. A run that is not visible from this machine counts as new; its own command on the cluster makes the same checks.
"""

import os
import shutil
import uuid
from pathlib import Path

from cluster.config.run_config import Config
from cluster.driver.run_folder import check_settings
from cluster.driver.run_lock import holder_of
from cluster.driver.stage_inputs import training_inputs
from cluster.driver.stage_record import StageRecord
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.dataset.folder import DatasetRequest
from trainer.data.dataset.manifest import read_manifest
from trainer.data.logs.contract import find_inputs
from trainer.errors import UserError
from trainer.loop.validations import FILE as VALIDATIONS
from trainer.storage.files import write_text_atomically
from trainer.storage.objects.paths import ObjectPath, remove_tree
from trainer.storage.objects.spool import copy_tree

TRAINS = ("run", "train")
COPIED_FILES = ("checkpoints/best.json", "metrics.jsonl", "attempts.json", VALIDATIONS)  # of a run, by a fork


def describe_existing(config: Config, command: str) -> str | None:
    """Return a line that says what the command continues, or None for a new run.

    Raises UserError if the folder holds a run with other settings, is in use, or holds a run that is finished.
    """
    folder = config.run_dir
    try:
        if not (folder / "config.json").exists():
            return None
    except (OSError, UserError):  # an object storage that only the cluster may use
        return None
    holder = holder_of(folder)
    if holder is not None:
        raise UserError(
            f"run.dir {folder}: in use by {holder}; follow it with `shoal status {folder}`, stop it with `shoal stop {folder}`, "
            "or choose another run.dir"
        )
    check_settings(config)
    if command not in TRAINS:
        return None
    if is_finished(config, command):
        raise UserError(
            f"run.dir {folder}: this run is finished, so there is nothing to {command}; train it further with a larger "
            "train.epochs, continue a copy of it with --fork FOLDER, or choose another run.dir"
        )
    newest = checkpoint_folder.committed(folder / "checkpoints")[:1]
    if newest:
        return f"run {folder} exists: resuming from checkpoint {newest[0].name}"
    return f"run {folder} exists: continuing it, it has no checkpoint yet"


def is_finished(config: Config, command: str) -> bool:
    """Return whether all stages of the command are done for this config and for the logs as they are now."""
    record = StageRecord(config.run_dir)
    try:
        manifest = read_manifest(config.dataset_dir)
        request = DatasetRequest(config.logs, config.split, config.ids_of_tables, find_inputs(config.logs))
        fingerprint = request.fingerprint
    except UserError:  # no dataset, or logs that are gone: the command itself names the problem
        return False
    trained = record.result("train", training_inputs(config, manifest)) is not None
    if command == "train":
        return trained
    split = "test" if manifest.counts.test_targets else "validation"
    evaluated = record.statuses().get(f"evaluate/{split}") == "done"
    return trained and evaluated and record.result("prepare", fingerprint) is not None


def fork(config: Config, target: Path) -> Config:
    """Copy the newest and the best checkpoint of a run into a new run folder. Return the config of the copy.

    The copy shares the dataset of the run. Raises UserError if there is nothing to copy, or if the folder exists.
    """
    checkpoints = config.run_dir / "checkpoints"
    names = [path.name for path in checkpoint_folder.committed(checkpoints)[:1]]
    if not names:
        raise UserError(f"--fork: run.dir {config.run_dir} has no checkpoint to continue from")
    if target.exists():
        raise UserError(f"--fork {target}: exists; choose a folder that does not")
    best = checkpoint_folder.read_best(checkpoints)
    if best is not None and (checkpoints / checkpoint_folder.name_of(best["step"])).is_dir():
        names.append(checkpoint_folder.name_of(best["step"]))
    if isinstance(target, ObjectPath) or isinstance(checkpoints, ObjectPath):
        return _fork_objects(config, target, sorted(set(names)))
    attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name in sorted(set(names)):
            shutil.copytree(checkpoints / name, attempt / "checkpoints" / name, copy_function=_link)
        for file in COPIED_FILES:
            if (config.run_dir / file).exists():
                shutil.copy2(config.run_dir / file, attempt / file)
        (attempt / "state.json").write_text('{"stages": {}}', encoding="utf-8")
        attempt.rename(target)
    except OSError:
        remove_tree(attempt, ignore_errors=True)
        raise
    return _moved(config, target)


def _moved(config: Config, target: Path) -> Config:
    """Return the config of a copy of the run, which shares its dataset."""
    run = config.run.model_copy(update={"dir": str(target), "dataset": str(config.dataset_dir)})
    return config.model_copy(update={"run": run})


def _fork_objects(config: Config, target: Path, names: list[str]) -> Config:
    """Copy checkpoints on an object storage, the manifest of each last. Return the config of the copy."""
    if not isinstance(target, ObjectPath) or not isinstance(config.run_dir, ObjectPath):
        raise UserError(
            f"--fork {target}: a run on an object storage can only be copied to one, and a local run to a local folder"
        )
    for name in names:
        copy_tree(config.run_dir / "checkpoints" / name, target / "checkpoints" / name, last=("manifest.json",))
    for file in COPIED_FILES:
        source = config.run_dir / file
        if source.exists():
            source.copy_to(target / file)
    write_text_atomically(target / "state.json", '{"stages": {}}')
    return _moved(config, target)


def _link(source: str, target: str) -> str:
    """Link a file with content that never changes, or copy it to another filesystem."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
