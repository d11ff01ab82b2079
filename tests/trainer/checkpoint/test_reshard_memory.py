"""Resharding block by block: little memory for large tables, and tensors of any kind as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from sharding.config import TableConfig
from sharding.plan import Plan, TablePlan
from tests.trainer.loop.pieces import check_equal
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import FILE_HASH, CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.reshard import reshard
from trainer.storage.files import hash_file

MEMORY = """
import json, sys
from pathlib import Path
import torch
from sharding.config import TableConfig
from sharding.plan import plan_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.checkpoint.reshard import reshard

def kib(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

source, folder, plan = Path(sys.argv[1]), Path(sys.argv[2]), plan_of(json.loads(sys.argv[3]))
checkpoint = StoredCheckpoint(source, checkpoint_folder.verify(source))
torch.save(torch.zeros(2**20), folder.with_suffix(".warm"))
for block_bytes in (2**21, 2**30):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = kib("VmRSS")
    reshard(checkpoint, folder / str(block_bytes), plan, {"item": TableConfig(dim=128, optimizer="sgd")}, {}, block_bytes)
    print(kib("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_blocks_and_not_by_tables(tmp_path):
    """A table of 64 MiB, stored as one chunk, resharded in blocks of 2 MiB by a process of its own."""
    num_rows = 2**17
    weight = torch.arange(num_rows * 128, dtype=torch.float32).view(num_rows, 128)
    path = saved_alone(tmp_path / "in", {"table.item.weight": weight})
    plan = Plan(2, 2, "cpu", {"item": TablePlan("column_wise", "fused", num_rows, 128, (0, 1))})
    arguments = [str(path), str(tmp_path / "out"), json.dumps(plan.values())]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    in_blocks, whole = map(int, done.stdout.split())  # KiB
    assert in_blocks < 24 * 1024
    assert whole > 64 * 1024  # so that the bound above could fail
    loaded = {"table.item.weight": torch.zeros_like(weight)}
    dcp.load(loaded, checkpoint_id=tmp_path / "out" / str(2**21) / path.name, no_dist=True)
    assert torch.equal(loaded["table.item.weight"], weight)


def test_tensors_of_any_kind_are_copied_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(1)
    state = {
        "table.item.weight": torch.rand(20, 8, generator=generator),
        "table.item.step": torch.tensor(5.0),
        "dense.columns_first": torch.rand(6, 90, generator=generator).t(),
        "dense.short": torch.rand(40, 5, generator=generator).to(torch.bfloat16),
        "dense.three": torch.rand(5, 3, 7, generator=generator),
        "state.item.ids": torch.randint(-(2**62), 2**62, (300,), generator=generator),
        "state.item.none": torch.empty(0, dtype=torch.int64),
        "state.item.seen": torch.arange(70) % 3 == 0,
    }
    path = saved_alone(tmp_path / "in", state)
    plan = Plan(3, 3, "cpu", {"item": TablePlan("row_wise", "fused", 20, 8)})
    actual = StoredCheckpoint(path, checkpoint_folder.verify(path))
    new = reshard(actual, tmp_path / "out", plan, {"item": TableConfig(dim=8)}, {}, block_bytes=100)
    checkpoint_folder.verify(new)
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(loaded, checkpoint_id=new, no_dist=True)
    check_equal(loaded, state)


def saved_alone(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Return a checkpoint of whole tensors, written by one process."""
    attempt = checkpoint_folder.new_attempt(folder, 1)
    dcp.save(state, checkpoint_id=attempt, no_dist=True)
    files = {f.name: {FILE_HASH: hash_file(f, FILE_HASH), "num_bytes": f.stat().st_size} for f in attempt.iterdir()}
    return checkpoint_folder.commit(attempt, CheckpointManifest(1, 0, 1, {}, {}, {}, "", {}, {}, files))
