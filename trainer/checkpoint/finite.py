"""Weights and optimizer states that are no longer finite: found before they are saved, and explained.

A gradient that is not finite is applied nowhere (trainer/loop/step.py). An update by a finite gradient may still overflow, when a
learning rate is far too large: then the weights themselves are broken, and no later step can repair them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sharding.tables.local_shards import local_shards
from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.errors import CheckpointError
from trainer.job import Job

CHUNK_NUMBERS = 4_194_304  # looked at together; bounds memory to as many bytes


def broken_tensors(state: Mapping[str, Any], world: World) -> list[str]:
    """Return the names of tensors with a value that is not finite on any rank, sorted; the same on every rank. Collective."""
    mine = [name for name, value in state.items() if _is_broken(value)]
    everywhere = world.gather_objects(mine)
    return sorted({str(name) for names in everywhere if isinstance(names, list) for name in names})


def refuse_broken_checkpoint(found: StoredCheckpoint, state: Mapping[str, Any], world: World) -> None:
    """Raise CheckpointError if what was loaded is not finite: an earlier version of Shoal saved it nevertheless. Collective."""
    names = broken_tensors(state, world)
    if names:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise CheckpointError(
            f"checkpoint {found.path}: holds values that are not finite ({some}); a learning rate was probably far too large. "
            "Delete this folder to use the checkpoint before it, or train anew with a lower rate in another run.dir"
        )


def _is_broken(value: Any) -> bool:
    for shard in local_shards(value):
        tensor = shard.tensor.detach()
        if not tensor.is_floating_point():
            continue
        for piece in tensor.reshape(-1).split(CHUNK_NUMBERS):
            if not bool(torch.isfinite(piece).all()):
                return True
    return False


def rates_of(job: Job) -> str:
    """Return the learning rates of a run with their settings."""
    tables = [f"tables.{name}.learning_rate = {table.learning_rate:g}" for name, table in job.config.tables.items()]
    return ", ".join([f"train.learning_rate = {job.config.train.learning_rate:g}", *tables])


def broken_weights_message(names: Iterable[str], job: Job, step: int) -> str:
    """Say which tables or dense weights are not finite after `step` steps, under which rate, and what to do.

    names: of tensors as a checkpoint calls them (trainer/checkpoint/keys.py).
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
        f"training: {where} hold values that are not finite ({some}). The update of step {step} made them so, or an earlier one "
        f"whose rows were not looked up since, with {rates}: that is probably far too large. Nothing of this was saved. {before}. "
        "Lower the rate, or raise train.warmup_steps, and train in another run.dir: both are part of what makes a run"
    )
