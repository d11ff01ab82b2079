"""Loads a trained model into this process.

Importing this module loads no torch; `load` does, which takes some seconds. Neither Ray nor a process group is started.
"""

import warnings
from pathlib import Path

from cluster.config.run_config import job_of
from cluster.doctor.packages import TRAINING, check_installed
from shoal.config import Config
from shoal.loaded.ranker import ImpressionRanker
from shoal.loaded.recommender import NextItemRecommender
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.errors import UserError
from trainer.storage.objects.paths import path_of


def load(
    run: str | Path, checkpoint: str | Path | None = None, dataset: str | Path | None = None
) -> NextItemRecommender | ImpressionRanker:
    """Load the trained model of a run into this process. It needs no Ray and no process group.

    Args:
        run: folder of a run, or of one of its checkpoints.
        checkpoint: name ("step_000001000") or path of a checkpoint; by default the best, or the newest if none is marked best.
        dataset: folder of the run's dataset, if it was moved.

    Raises:
        UserError: there is no such run, dataset or package. The message says what to do.
        CheckpointError: there is no such checkpoint, it is damaged, or it does not fit the run. It is a UserError.
    """
    check_installed("load", TRAINING)
    from trainer.inference.trained_model import load_trained_model

    folder, stored = _find(path_of(run), checkpoint)
    config = Config.load(folder / "config.json")
    moved = folder / "dataset" if config.run.dataset is None else config.dataset_dir
    config = config.replace({"run.dir": str(folder), "run.dataset": str(dataset or moved)})
    trained = load_trained_model(job_of(config), stored)
    return ImpressionRanker(trained) if trained.manifest.task == "ranking" else NextItemRecommender(trained)


def _find(path: Path, checkpoint: str | Path | None) -> tuple[Path, StoredCheckpoint]:
    """Return the run folder, and the verified checkpoint."""
    if (path / "config.json").exists():
        if checkpoint is None:
            return path, checkpoint_folder.to_evaluate(path / "checkpoints", warnings.warn)
        chosen = path_of(checkpoint) if "/" in str(checkpoint) else path / "checkpoints" / checkpoint
        return path, StoredCheckpoint(chosen, checkpoint_folder.verify(chosen))
    folder = path.resolve().parent.parent
    if checkpoint is None and (folder / "config.json").exists():
        return folder, StoredCheckpoint(path, checkpoint_folder.verify(path))
    raise UserError(f"{path}: is neither the folder of a run (with config.json) nor of a checkpoint in one")
