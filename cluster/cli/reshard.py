"""Reshards a checkpoint for the plan of a run with another config. Imports no ray."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from cluster.config.file import apply_override, read_values
from cluster.config.run_config import check_config, job_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.checkpoint.reshard import reshard
from trainer.config.identity import at_default, identity
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import CheckpointError
from trainer.placement.plan import plan_tables
from trainer.settings import changed_settings


@dataclass(frozen=True)
class Resharded:
    """The new checkpoint."""

    checkpoint: str  # its path
    world_size: int  # workers that it is written for
    num_bytes: int
    placed: str  # the sharding of each table, as in "item row_wise, brand data_parallel"


def run(path: Path, folder: Path, config_file: str | None, settings: list[str]) -> Resharded:
    """Verify the checkpoint, plan the tables, and write the new checkpoint.

    Args:
        path: The folder of the checkpoint.
        folder: The folder in which the new checkpoint is committed.
        config_file: The config of the target run; None takes that of the checkpoint.
        settings: Overrides of the config, as key=value.

    Raises:
        UserError or PlacementError: The user has to change something. Nothing is written.
    """
    stored = StoredCheckpoint(path, checkpoint_folder.verify(path))
    values = read_values(config_file) if config_file is not None else deepcopy(stored.manifest.config)
    for setting in settings:
        apply_override(setting, values)
    config = check_config(values, config_file or f"{path}/manifest.json")
    changed = changed_settings(stored.manifest.identity, identity(config), at_default(config))
    if changed:
        lines = "\n  ".join(changed)
        raise CheckpointError(
            f"checkpoint {path}: a run with these settings cannot resume from it:\n  {lines}\nset them back"
        )
    job = job_of(config)
    dataset = read_manifest(job.dataset_dir)
    grew = stored.manifest.dataset_digest in dataset.grown_from
    if not grew and dataset.digest != stored.manifest.dataset_digest:
        raise CheckpointError(
            f"checkpoint {path}: was made from another dataset than {job.dataset_dir}; set run.dataset to its own"
        )
    plan = plan_tables(job, dataset, config.cluster.num_workers, config.cluster.device).plan
    written = reshard(stored, folder, plan, config.tables, job.config_values, tables_grew=grew)
    files = checkpoint_folder.read(written).files.values()
    placed = ", ".join(f"{name} {table.sharding}" for name, table in plan.tables.items())
    return Resharded(str(written), plan.world_size, sum(file["num_bytes"] for file in files), placed)
