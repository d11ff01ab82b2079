"""Checkpoints of plain tensors, written and loaded in one process without ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp

from sharding.world import World
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.reader import CheckpointReader

ALONE = World(0, 1, torch.device("cpu"))


def tensors_at(step: int, num_rows: int = 100) -> dict[str, Any]:
    """Return tensors that differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "table.item.weight": torch.randn(num_rows, 8, generator=generator),
        "table.item.accumulator": torch.rand(num_rows, generator=generator),
        "dense.weight": torch.randn(8, 3, generator=generator).bfloat16(),
        "state.count": torch.tensor(step),
    }


def save_plain(folder: Path, step: int, tensors: dict[str, Any] | None = None, **options: Any) -> Path:
    """Save a checkpoint as a training does, and return its path. options: of `checkpoint_tensors.save`."""

    def describe(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        config = {"train": {"learning_rate": 0.001, "epochs": 10}}
        return CheckpointManifest(step, 24, 100, {"run.seed": 1}, config, {}, "digest", {}, {"torch": "2"}, files)

    state = tensors_at(step) if tensors is None else tensors
    return checkpoint_tensors.save(folder, state, ALONE, describe, step, **options)


def find(folder: Path) -> tuple[StoredCheckpoint | None, list[str]]:
    """Return the checkpoint to resume from, and what is said about newer ones."""
    return checkpoint_tensors.find_to_resume(folder, ALONE)


def load_plain(path: Path, like: dict[str, Tensor]) -> dict[str, Any]:
    """Return the tensors of a checkpoint."""
    loaded: dict[str, Any] = {name: torch.full_like(value, 7) for name, value in like.items()}
    dcp.load(loaded, storage_reader=CheckpointReader(path), no_dist=True)
    return loaded


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare tensors bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
