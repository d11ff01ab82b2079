"""Checkpoints compared with bare files of the same bytes, and how long training waits for them.

Writing is compared with a bare write of the same bytes by the same ranks with early flushes and an fsync, restoring (verification
included) with a bare read and a copy into the tensors. Before each read, the files are dropped from the system's cache, as after a
restart on another machine; a second pair reads them from the cache.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Comparison
from models.tables import EmbeddingTables, TableSpec
from sharding.config import CommunicationConfig, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.tables.local_shards import local_shards
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.finite import refuse_broken_checkpoint
from trainer.checkpoint.folder import CheckpointManifest
from trainer.checkpoint.keys import tensors_of
from trainer.checkpoint.writing import FLUSH_BYTES
from trainer.config.checkpoint import CheckpointConfig
from trainer.config.job import SILENT, Channel, Job
from trainer.loop.train import Training

NUM_ROWS, DIM = 4_000_000, 64  # 1.02 GB
PIECE_BYTES = 16 << 20
GOAL_SECONDS = 60.0  # between checkpoints
MOST_STALL = 0.035  # of the time of training
PACE_STEPS = 20


def compare(argument: tuple[Path, int, int], world: World, channel: Channel) -> list[Comparison]:
    """Measure writing and restoring on every rank; the first one's figures are those of all.

    argument: a folder; the rows of the table; and the number of turns.
    """
    folder, num_rows, turns = argument
    tables = _Tables(folder, num_rows, world)
    seconds: list[list[tuple[float, float]]] = [[], [], []]
    for turn in range(turns + 1):
        tables.clean()
        write = tables.timed(tables.save), tables.timed(tables.write_bare)
        tables.drop_from_cache()
        cold = tables.timed(tables.restore), tables.timed(tables.read_bare)
        warm = tables.timed(tables.restore), tables.timed(tables.read_bare)
        if turn:  # the first one warms up
            for pairs, pair in zip(seconds, (write, cold, warm), strict=True):
                pairs.append(pair)
    tables.clean()
    workers = f"{world.world_size} worker{'s' if world.world_size > 1 else ''}"
    kinds = ("write", "restore", "restore from the system's cache")
    ceilings = ("bare write with fsync", "bare read and copy", "bare read and copy")
    return [
        _comparison(f"checkpoint, {kind}, {workers}", pairs, tables.num_bytes, ceiling)
        for kind, pairs, ceiling in zip(kinds, seconds, ceilings, strict=True)
    ]


def _comparison(name: str, seconds: list[tuple[float, float]], num_bytes: int, ceiling: str) -> Comparison:
    ours, other = (tuple(num_bytes / 1e6 / pair[side] for pair in seconds) for side in (0, 1))
    return Comparison(name, "MB/s", ours, other, ceiling)


class _Tables:
    """A table with its optimizer on all ranks, and both ways to write and read it. All methods are collective."""

    def __init__(self, folder: Path, num_rows: int, world: World) -> None:
        config = TableConfig(dim=DIM, sharding="row_wise")
        model = nn.Module()
        model.tables = EmbeddingTables([TableSpec("item", num_rows, DIM)], torch.device("meta"))
        model.dense = nn.Linear(DIM, 1)
        nn.init.zeros_(model.dense.weight)  # copies of dense weights are compared before they are saved
        nn.init.zeros_(model.dense.bias)
        plan = Plan(world.world_size, world.world_size, "cpu", {"item": TablePlan("row_wise", "fused", num_rows, DIM)})
        self._sharded_model = shard_tables(model, {"item": config}, plan, world, 1, CommunicationConfig())
        self._optimizers = Optimizers(self._sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), {"item": config}, plan)
        self._folder = folder / f"of-{world.world_size}"
        self._bare = self._folder / f"bare-{world.rank}"
        self._checkpoints = self._folder / "checkpoints"
        self._world = world
        self._step = 0
        self.num_bytes = sum(world.gather_ints(sum(part.nbytes for part in self._parts())))

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds until the last rank has done its work."""
        self._world.barrier()
        started = time.perf_counter()
        work()
        self._world.barrier()
        return time.perf_counter() - started

    def clean(self) -> None:
        """Delete all files, outside the measured time."""
        self._world.barrier()
        if self._world.is_first:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._checkpoints.mkdir(parents=True)
        self._world.barrier()

    def save(self) -> None:
        """Write a checkpoint as a training does."""
        self._step += 1

        def describe(files: dict[str, Any]) -> CheckpointManifest:
            return CheckpointManifest(self._step, 0, 1, {}, {}, {}, "", {}, {}, files)

        checkpoint_tensors.save(self._checkpoints, self._state(), self._world, describe, self._step)

    def restore(self) -> None:
        """Verify and load the newest checkpoint as a training does."""
        checkpoint, _ = checkpoint_tensors.find_to_resume(self._checkpoints, self._world)
        assert checkpoint is not None
        checkpoint_tensors.load(checkpoint, self._sharded_model, ("item",), self._optimizers)
        refuse_broken_checkpoint(checkpoint, self._state(), self._world)

    def write_bare(self) -> None:
        """Write the same bytes into one file per rank, and flush what is written so far in a second thread.

        A single fsync at the end would leave the disk idle while the processor writes, and so be no ceiling.
        """
        with self._bare.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
            flushed: Future[None] | None = None
            unflushed = 0
            for part in self._parts():
                for begin in range(0, len(part), PIECE_BYTES):
                    unflushed += file.write(part[begin : begin + PIECE_BYTES])
                    if unflushed >= FLUSH_BYTES and (flushed is None or flushed.done()):
                        unflushed = 0
                        flushed = thread.submit(os.fdatasync, file.fileno())
            if flushed is not None:
                flushed.result()
            os.fsync(file.fileno())

    def read_bare(self) -> None:
        """Read that file, and copy it into the tensors."""
        buffer = torch.empty(self._bare.stat().st_size, dtype=torch.uint8)
        memory = buffer.numpy().data
        with self._bare.open("rb", buffering=0) as file:
            begin = 0
            while num_bytes := file.readinto(memory[begin:]):
                begin += num_bytes
        begin = 0
        for part in self._parts():
            torch.frombuffer(part, dtype=torch.uint8).copy_(buffer[begin : begin + len(part)])
            begin += len(part)

    def drop_from_cache(self) -> None:
        """Let the system forget the content of this rank's files, which are on the disk."""
        if self._world.is_first:
            for path in [path for path in self._folder.rglob("*") if path.is_file()]:
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    def _state(self) -> dict[str, Any]:
        return tensors_of(self._sharded_model, ("item",), self._optimizers)

    def _parts(self) -> list[memoryview]:
        """Return the memory of this rank's tensors."""
        shards = [shard.tensor.detach() for value in self._state().values() for shard in local_shards(value)]
        return [shard.reshape(-1).view(torch.uint8).numpy().data for shard in shards]


def measure_stall(argument: tuple[Job, int], world: World, channel: Channel) -> list[Comparison]:
    """Measure how long training waits for a checkpoint a minute. Collective. argument: the job; the number of checkpoints."""
    job, num_checkpoints = argument
    seconds, _ = _train(job, world, max_steps=PACE_STEPS, every_steps=None)
    every_steps = max(1, round(GOAL_SECONDS * PACE_STEPS / seconds))
    steps = every_steps * num_checkpoints + PACE_STEPS
    seconds, lines = _train(job, world, max_steps=steps, every_steps=every_steps)
    saved = [line for line in lines if line["kind"] == "checkpoint" and line["step"] != steps]
    stall = sum(line["stall_seconds"] for line in saved)
    sizes = [line["bytes"] for line in saved]
    name = f"{len(saved)} checkpoints of {sizes[0] / 1e9:.2f} GB in {seconds:,.0f} s of training, {world.world_size} workers"
    return [Comparison(f"stall by {name}", "x 0.1 %", (1e3 * stall / seconds,), (1e3 * MOST_STALL,), "the limit")]


def _train(job: Job, world: World, max_steps: int, every_steps: int | None) -> tuple[float, list[dict[str, Any]]]:
    """Train from the beginning, and return the seconds without the final evaluation and checkpoint, and the metrics."""
    if world.is_first:
        shutil.rmtree(job.run_dir, ignore_errors=True)
        job.run_dir.mkdir(parents=True)
    world.barrier()
    train = job.config.train.model_copy(update={"max_steps": max_steps})
    config = job.config.model_copy(update={"train": train, "checkpoint": CheckpointConfig(every_steps=every_steps)})
    training = Training(dataclasses.replace(job, config=config), world, SILENT)
    started = time.perf_counter()
    training.run()
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (job.run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["step"] == max_steps]
    seconds -= sum(line["seconds"] for line in last if line["kind"] == "validation")
    seconds -= sum(line["stall_seconds"] for line in last if line["kind"] == "checkpoint")
    # The next config depends on the seconds, so all ranks need the same.
    return world.broadcast((seconds, lines))  # type: ignore[return-value]
