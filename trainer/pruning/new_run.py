"""Run folder of a pruned model: the checkpoint of the whole model without the pruned parts, and further steps if asked for.

It is a run like any other: it can be evaluated, compared, explained, exported and trained further. pruned.json in it says what it
was made from.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from sharding.plan import Plan
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.reshard import OtherModel, reshard
from trainer.config.job import Job
from trainer.errors import UserError
from trainer.loop.state import Best
from trainer.pruning.choice import Kept, all_kept, pruned_encoder
from trainer.pruning.weights import pruned_tensors
from trainer.storage.files import digest_of, write_json_atomically

RECORD = "pruned.json"


def pruned_values(
    config: Any, kept: Kept, folder: Path, dataset: Path, checkpoint: StoredCheckpoint, steps: int
) -> Any:
    """Return the config of a pruned run as plain values.

    Args:
        config: of the run of the whole model.
        kept: the heads that are kept, by number of the block.
        folder: the new run folder.
        dataset: the dataset of the run.
        checkpoint: the checkpoint of the whole model.
        steps: further training steps; 0 leaves the settings of training as they are.
    """
    values = config.model_dump(mode="json")
    encoder = config.model.encoder
    if kept != all_kept(encoder):
        values["model"]["encoder"]["heads_by_block"] = pruned_encoder(encoder, kept)
    values["run"] |= {"dir": str(folder), "dataset": str(dataset)}
    if steps:
        step = checkpoint.manifest.step + steps
        values["train"] |= {"max_steps": step, "epochs": epochs_for(checkpoint.manifest, step)}
    return values


def epochs_for(manifest: CheckpointManifest, step: int) -> int:
    """Return a number of epochs that has at least this many steps, by the length of the epochs so far."""
    epochs = manifest.position / max(1, manifest.num_rows)
    return math.ceil(step * epochs / max(1, manifest.step)) + 1


def write_pruned_checkpoint(
    source: StoredCheckpoint, encoder: Any, width: int, kept: Kept, job: Job, plan: Plan
) -> StoredCheckpoint:
    """Write the pruned checkpoint into the new run, unless it is there, and return it.

    Args:
        source: the checkpoint of the whole model.
        encoder: the settings of its encoder.
        width: of the model.
        kept: the heads that are kept, by number of the block.
        job: the new run.
        plan: of its tables.

    Raises:
        UserError: the folder holds another run.
    """
    record = {
        "source": digest_of(source.manifest.files),
        "checkpoint": str(source.path),
        "kept": {str(number): list(heads) for number, heads in kept.items()},
    }
    path = job.run_dir / RECORD
    own = job.checkpoints_dir / checkpoint_folder.name_of(source.manifest.step)
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == record:
        if own.exists():
            return StoredCheckpoint(own, checkpoint_folder.read(own))
        if checkpoint_folder.committed(job.checkpoints_dir):  # training has gone on, and retired it
            newest = checkpoint_folder.committed(job.checkpoints_dir)[0]
            return StoredCheckpoint(newest, checkpoint_folder.read(newest))
    elif checkpoint_folder.committed(job.checkpoints_dir):
        raise UserError(f"{job.run_dir}: holds another run; choose another folder with --out")

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return pruned_tensors(tensors, encoder, width, kept)

    metrics = source.manifest.metrics | {"best": asdict(Best())}  # values of the whole model do not compare
    other = OtherModel(job.identity, metrics, change)
    write_json_atomically(
        path, record
    )  # first: a command that ends here leaves a folder that the next one takes for its own
    written = reshard(source, job.checkpoints_dir, plan, job.config.tables, job.config_values, other=other)
    return StoredCheckpoint(written, checkpoint_folder.read(written))
