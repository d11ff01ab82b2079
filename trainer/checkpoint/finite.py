"""Detection of non-finite weights and optimizer states before they are saved, and messages that explain them.

A non-finite gradient is applied nowhere (trainer/loop/step.py). An update by a finite gradient may still overflow when a learning
rate is far too large. Then the weights themselves are broken, and no later step can repair them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sharding.tables.local_shards import local_shards
from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import Job
from trainer.errors import CheckpointError

CHUNK_NUMBERS = 4_194_304  # numbers checked at a time, which bounds the extra memory to as many bytes


def broken_tensors(state: Mapping[str, Any], world: World) -> list[str]:
    """Return the names of tensors with a value that is not finite on any rank, sorted; the same on every rank. Collective."""
    own_names = [name for name, value in state.items() if _is_broken(value)]
    everywhere = world.gather_objects(own_names)
    return sorted({str(name) for names in everywhere if isinstance(names, list) for name in names})


def refuse_broken_checkpoint(checkpoint: StoredCheckpoint, state: Mapping[str, Any], world: World) -> None:
    """Raise CheckpointError if loaded tensors are not finite, as earlier versions of Shoal may have saved them. Collective."""
    names = broken_tensors(state, world)
    if names:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: holds values that are not finite ({some}); a learning rate was probably far too large. "
            "Delete this folder to use the checkpoint before it, or train again with a lower rate in another run.dir"
        )


def _is_broken(value: Any) -> bool:
    for shard in local_shards(value):
        tensor = shard.tensor.detach()
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        for piece in tensor.reshape(-1).split(CHUNK_NUMBERS):
            # The extremes show both infinities, and are nan if any number is. torch.isfinite takes eight times as long.
            smallest, largest = torch.aminmax(piece)
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                return True
    return False


def rates_of(job: Job) -> str:
    """Return the learning rates of a run with their settings."""
    tables = [f"tables.{name}.learning_rate = {table.learning_rate:g}" for name, table in job.config.tables.items()]
    return ", ".join([f"train.learning_rate = {job.config.train.learning_rate:g}", *tables])


def broken_weights_message(names: Iterable[str], job: Job, step: int) -> str:
    """Return a message that names the broken tables or dense weights, their learning rates, and what to do.

    Args:
        names: Names of the tensors in a checkpoint (trainer/checkpoint/keys.py).
        job: The run.
        step: The step after which they were detected.
    """
    every = list(names)
    tables = sorted({name.split(".")[1] for name in every if name.startswith("table.")})
    settings: list[tuple[str, str, float]] = [
        (f"tables.{name}", job.config.tables[name].optimizer, job.config.tables[name].learning_rate) for name in tables
    ]
    if len(tables) == 0 or any(not name.startswith("table.") for name in every):
        settings.append(("train", job.config.train.optimizer, job.config.train.learning_rate))
    where = " and ".join("the dense weights" if section == "train" else section for section, _, _ in settings)
    rates = " and ".join(f"{section}.learning_rate = {rate:g} ({optimizer})" for section, optimizer, rate in settings)
    saved = checkpoint_folder.committed(job.checkpoints_dir)
    before = (
        f"The newest checkpoint, {saved[0].name}, is from before" if saved else "There is no checkpoint from before"
    )
    some = ", ".join(every[:3]) + (", ..." if len(every) > 3 else "")
    return (
        f"training: {where} hold values that are not finite ({some}). They became so in the update of step {step}, or in an "
        f"earlier update of rows that were not looked up since, with {rates}. That is probably far too large. None of this was "
        f"saved. {before}. Lower the rate, or raise train.warmup_steps, and train in another run.dir, because both settings "
        "identify a run"
    )
