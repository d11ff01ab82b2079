"""New logs: what a trained run does with log files that arrived since. It asks, evaluates its model on them, or trains on.

Daily training continues with them without asking. Nothing is written here, and nothing is appended before a choice. No torch.
"""

import shlex
from pathlib import Path

from cluster.config.run_config import Config
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest
from trainer.config.job import Outcome
from trainer.data.dataset.folder import Existing
from trainer.data.dataset.manifest import Manifest
from trainer.errors import CheckpointError, UserError


def check_append(config: Config, existing: Existing) -> None:
    """Raise UserError with the choices if files would be appended to the dataset of a trained run and none was chosen."""
    saved = _newest(config)
    if saved is None or config.train.days is not None or config.run.new_logs != "ask":
        return
    if saved.dataset_digest in (existing.manifest.digest, *existing.manifest.grown_from):
        names = [file.name for files in (existing.new_files or {}).values() for file in files]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"logs {names[0]}{more}: came since this run was trained. {_choices(config, saved)}")


def kept_outcome(config: Config, manifest: Manifest) -> Outcome | None:
    """Return the outcome of training that is over, if logs were appended since and the model is to be kept.

    None if there is something to train. Raises UserError with the choices if nothing was chosen.
    """
    saved = _newest(config)
    if saved is None or config.train.days is not None or saved.dataset_digest not in manifest.grown_from:
        return None
    match config.run.new_logs:
        case "ask":
            raise UserError(
                f"dataset {config.dataset_dir}: has grown since this run was trained. {_choices(config, saved)}"
            )
        case "evaluate":
            best = checkpoint_folder.read_best(config.run_dir / "checkpoints") or {}
            return Outcome("kept", saved.step, best.get("step"), best.get("value"))
        case "continue":
            return None


def _newest(config: Config) -> CheckpointManifest | None:
    """Return the manifest of the newest checkpoint with a readable one; its tensors are checked when they are loaded."""
    for path in checkpoint_folder.committed(config.run_dir / "checkpoints"):
        try:
            return checkpoint_folder.read(path)
        except CheckpointError:
            continue
    return None


def _choices(config: Config, saved: CheckpointManifest) -> str:
    run = f"shoal run {shlex.quote(str(config.run_dir / 'config.json'))}"
    lines = [
        ("evaluate the trained model on them", f"{run} --set run.new_logs=evaluate"),
        ("train this run on, with them", f"{run} --set run.new_logs=continue {_longer(config, saved)}"),
        ("train a new run on all logs", f"{run} {_elsewhere(config)}"),
    ]
    if config.train.needs_the_end:  # its steps were of sizes that this end decided
        del lines[1]
    choices = "\n".join(f"  {what + ':':<36} {command}" for what, command in lines)
    return f"Nothing was changed. Choose what to do:\n{choices}"


def _longer(config: Config, saved: CheckpointManifest) -> str:
    """Return the settings by which a run trains for the same number of epochs again."""
    settings = f"--set train.epochs={saved.position // max(1, saved.num_rows) + config.train.epochs}"
    if config.train.max_steps is not None:
        settings += f" --set train.max_steps={saved.step + config.train.max_steps}"
    return settings


def _elsewhere(config: Config) -> str:
    settings = f"--set run.dir={shlex.quote(str(_free(config.run_dir)))}"
    if config.run.dataset is not None:
        settings += f" --set run.dataset={shlex.quote(str(_free(config.dataset_dir)))}"
    return settings


def _free(folder: Path) -> Path:
    """Return the first of FOLDER-2, FOLDER-3 and so on that does not exist."""
    number = 2
    while (free := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free
