"""Export of a run's model, as the command and the Python API make it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import __version__
from cluster.config.run_config import Config, job_of, load_config
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of

if TYPE_CHECKING:
    from trainer.export.folder import Manifest
    from trainer.export.write import ExportOptions


def export_run(
    run: Path,
    out: Path,
    options: "ExportOptions",
    checkpoint: str | None = None,
    dataset: Path | None = None,
    say: Callable[[str], None] = print,
) -> "Manifest":
    """Write the export of a run's model, in this process.

    Args:
        run: folder of a run or of one of its checkpoints, or a config file with the run as its `run.dir`.
        out: folder to write.
        options: what the export contains.
        checkpoint: name of a checkpoint of the run; by default the best, or the newest if none is marked best.
        dataset: folder of the run's dataset, if it was moved.
        say: called with messages for the user.

    Raises:
        UserError: there is no such run or dataset, or the folder is not free. The message says what to do.
        CheckpointError: there is no such checkpoint, or it is damaged. It is a UserError.
    """
    from trainer.export.write import write_export
    from trainer.inference.trained_model import load_trained_model

    config, stored = _find(run, checkpoint)
    job = job_of(_with_folders(config, stored.path.parent.parent, dataset))
    trained = load_trained_model(job, stored)
    return write_export(trained, out, options, __version__, say)


def _find(path: Path, checkpoint: str | None) -> tuple[Config, StoredCheckpoint]:
    """Return the config of a run, and a verified checkpoint."""
    folder = path
    if path.is_file():
        folder = path_of(load_config(str(path), None).run.dir)
    elif not (path / "config.json").exists() and (path.resolve().parent.parent / "config.json").exists():
        if checkpoint is not None:
            raise UserError(f"{path} is a checkpoint already; leave out checkpoint = {checkpoint}")
        folder, checkpoint = path.resolve().parent.parent, path.name
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: is neither the folder of a run (with config.json) nor of a checkpoint in one")
    config = load_config(str(folder / "config.json"), None)
    if checkpoint is None:
        return config, checkpoint_folder.to_evaluate(folder / "checkpoints", warnings.warn)
    own = folder / "checkpoints" / checkpoint
    return config, StoredCheckpoint(own, checkpoint_folder.verify(own))


def _with_folders(config: Config, run_dir: Path, dataset: Path | None) -> Config:
    """Return the config with the folders as they are now: a run may have been moved since."""
    if dataset is None:
        dataset = run_dir / "dataset" if config.run.dataset is None else path_of(config.run.dataset)
    folders = {"dir": str(run_dir), "dataset": str(dataset)}
    return config.model_copy(update={"run": config.run.model_copy(update=folders)})
