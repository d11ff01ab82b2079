"""Dynamic ids and frequencies that several ranks saved, rewritten by `reshard`, continue on any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sharding.dynamic_ids.id_counts import count_ids
from sharding.dynamic_ids.mapping import observe_shares
from sharding.dynamic_ids.saved import from_tensors, state_tensors
from sharding.dynamic_ids.state import new_state
from sharding.plan import Plan
from sharding.world import World
from tests.sharding.dynamic_ids.test_mapping import CONFIGS, batches, skewed
from tests.sharding.dynamic_ids.test_sharded_mapping import joined, share_of, whole_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.reshard import reshard
from trainer.global_batch.item_frequency import TargetFrequency

CONFIG = CONFIGS[3]
NUM_ITEMS = 50
NOTHING = np.empty(0, np.int64)


def describe(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
    return CheckpointManifest(1, 24, 100, {"run.seed": 1}, {"train": {}}, {}, "digest", {}, {"torch": "2"}, files)


def continue_and_save(world: World, run: list[np.ndarray], start: Path | None, folder: Path) -> tuple[Any, str]:
    """Continue what a checkpoint holds, or begin, through more batches; save it, and return this rank's parts and the path."""
    state, frequency = new_state(CONFIG, world), TargetFrequency(NUM_ITEMS, 0.1, world)

    def tensors() -> dict[str, Tensor]:
        of_ids = {f"state.ids.{name}": tensor for name, tensor in state_tensors(state).items()}
        return of_ids | {f"state.frequency.{name}": tensor for name, tensor in frequency.tensors().items()}

    if start is not None:
        loaded = tensors()
        checkpoint_tensors.dcp.load(loaded, storage_reader=CheckpointReader(start))
        state = from_tensors(CONFIG, _named(loaded, "state.ids."), world)
        frequency.load(_named(loaded, "state.frequency."))
    for step, batch in enumerate(run):
        mine = share_of(batch, step, world)
        observe_shares(state, count_ids(mine), mine)
        frequency.observe(count_ids(np.abs(mine) % NUM_ITEMS), NOTHING)
    path = checkpoint_tensors.save(folder, tensors(), world, describe, 1)
    return whole_of(tensors()), str(path)


def _named(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


@pytest.mark.parametrize("sizes", [(4, 1), (2, 4)], ids=str)
def test_a_rewritten_checkpoint_continues_exactly(rank_pool, tmp_path, sizes):
    run = batches(skewed)[:30]
    ((_, path), *_) = rank_pool.run(sizes[0], continue_and_save, run[:15], None, tmp_path / "first")
    source = StoredCheckpoint(Path(path), checkpoint_folder.verify(Path(path)))
    rewritten = reshard(source, tmp_path / "second", Plan(sizes[1], sizes[1], "cpu", {}), {}, {}, block_bytes=100)
    everyone = rank_pool.run(sizes[1], continue_and_save, run[15:], rewritten, tmp_path / "third")
    ((whole, _),) = rank_pool.run(1, continue_and_save, run[:15], None, tmp_path / "whole")
    ((whole, path),) = rank_pool.run(
        1, continue_and_save, run[15:], tmp_path / "whole" / Path(path).name, tmp_path / "end"
    )
    actual, expected = joined([parts for parts, _ in everyone]), joined([whole])
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name].tolist() != expected[name].tolist()] == []
