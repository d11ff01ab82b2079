"""`shoal checkpoint reshard`: the plan that a run with this config would make, and the checkpoint written for it. No ray."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from cluster.config.file import apply_override, read_values
from cluster.config.run_config import at_default, check_config, identity, job_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.checkpoint.reshard import reshard
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import CheckpointError
from trainer.placement.plan import plan_tables
from trainer.settings import changed_settings


@dataclass(frozen=True)
class Resharded:
    """The new checkpoint, and where each table lies in it: "item row_wise, brand data_parallel"."""

    checkpoint: str
    world_size: int
    num_bytes: int
    placed: str


def run(path: Path, folder: Path, config_file: str | None, settings: list[str]) -> Resharded:
    """Verify the checkpoint, plan, and write the new one into `folder`.

    Raises UserError or PlacementError for what the user has to change: nothing is written then.
    """
    found = StoredCheckpoint(path, checkpoint_folder.verify(path))
    values = read_values(config_file) if config_file is not None else deepcopy(found.manifest.config)
    for setting in settings:
        apply_override(setting, values)
    config = check_config(values, config_file or f"{path}/manifest.json")
    changed = changed_settings(found.manifest.identity, identity(config), at_default(config))
    if changed:
        lines = "\n  ".join(changed)
        raise CheckpointError(
            f"checkpoint {path}: a run with these settings could not go on from it:\n  {lines}\nset them back"
        )
    job = job_of(config)
    dataset = read_manifest(job.dataset_dir)
    grew = found.manifest.dataset_digest in dataset.grown_from
    if not grew and dataset.digest != found.manifest.dataset_digest:
        raise CheckpointError(
            f"checkpoint {path}: was made from another dataset than {job.dataset_dir}; set run.dataset to its own"
        )
    plan = plan_tables(job, dataset, config.cluster.num_workers, config.cluster.device).plan
    written = reshard(found, folder, plan, job.tables, job.config, tables_grew=grew)
    files = checkpoint_folder.read(written).files.values()
    placed = ", ".join(f"{name} {table.sharding}" for name, table in plan.tables.items())
    return Resharded(str(written), plan.world_size, sum(file["num_bytes"] for file in files), placed)
