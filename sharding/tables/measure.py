"""What looking up and updating each table really costs: every phase timed alone, on every rank. Collective throughout.

A table is asked while the others are asked for nothing, and gradients of zero go back, which change no weight and no state of
the optimizers for which the update is timed (SGD and Adagrad without weight decay). All ranks start each phase together.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.config import TableConfig
from sharding.planning.measured import Float64, Measured
from sharding.tables.local_shards import local_shards, table_of
from sharding.tables.optimizers import Optimizers
from sharding.world import World

LEAVES_UNTOUCHED = frozenset({"sgd", "adagrad", "rowwise_adagrad"})
REPEATS = 5


def measure_tables(
    sharded_model: nn.Module,
    optimizers: Optimizers,
    tables: Mapping[str, TableConfig],
    num_ids: Mapping[str, list[int]],
    world: World,
    repeats: int = REPEATS,
) -> Measured:
    """Time look-ups of `num_ids` distinct ids per rank of every table, as many trials as `num_ids` has numbers for it.

    Covers the tables of EmbeddingCollections. Weights and optimizer state end as they were, bit for bit.
    """
    seconds: dict[str, dict[str, Float64]] = {}
    for collection in _collections(sharded_model):
        configs = _configs_of(collection)
        keys = [config.name for config in configs]
        for config in configs:
            if config.name not in num_ids:
                continue
            settings = tables[config.name]
            updates = settings.optimizer in LEAVES_UNTOUCHED and settings.weight_decay == 0.0
            trials = [
                _median_seconds(collection, keys, config.name, _ids(n, config.num_embeddings), updates, world, repeats)
                for n in num_ids[config.name]
            ]
            seconds[config.name] = {phase: np.stack([trial[phase] for trial in trials]) for phase in trials[0]}
    return Measured(
        num_ids={name: list(numbers) for name, numbers in num_ids.items() if name in seconds},
        seconds=seconds,
        memory_bytes=_held_bytes(sharded_model, optimizers, list(seconds), world),
    )


def _collections(sharded_model: nn.Module) -> Iterator[ShardedEmbeddingCollection | EmbeddingCollection]:
    for child in sharded_model.modules():
        if isinstance(child, ShardedEmbeddingCollection | EmbeddingCollection):
            yield child


def _configs_of(collection: ShardedEmbeddingCollection | EmbeddingCollection) -> list[Any]:
    """In the order in which requests name them: a sharded collection keeps that of its first request for ever."""
    sharded = isinstance(collection, ShardedEmbeddingCollection)
    return list(collection._embedding_configs if sharded else collection.embedding_configs())


def _ids(number: int, num_rows: int) -> Tensor:
    """Distinct rows all over the table, ascending, as a deduplicated batch asks for them."""
    number = min(number, num_rows)
    return torch.arange(number, dtype=torch.int64) * num_rows // max(1, number)


def _median_seconds(
    collection: ShardedEmbeddingCollection | EmbeddingCollection,
    keys: list[str],
    table: str,
    ids: Tensor,
    updates: bool,
    world: World,
    repeats: int,
) -> dict[str, Float64]:
    """By phase (W,), the median over repeats, after one that warms up."""
    request = KeyedJaggedTensor(
        keys=keys,
        values=ids.to(world.device),
        lengths=torch.tensor([ids.numel() if key == table else 0 for key in keys], device=world.device),
    )
    runs = []
    for _ in range(repeats + 1):
        clock = _Clock(world)
        if isinstance(collection, ShardedEmbeddingCollection):
            _sharded_step(collection, request, table, updates, clock)
        else:
            with clock("lookup"), torch.no_grad():
                collection(request)[table].values()
        runs.append(clock.seconds)
    median = {phase: float(np.median([run[phase] for run in runs[1:]])) for phase in runs[0]}
    mine = torch.tensor(list(median.values()), dtype=torch.float64, device=world.device)[None]
    everywhere = torch.cat(world.gather(mine)).cpu().numpy()
    return {phase: everywhere[:, n] for n, phase in enumerate(median)}


class _Clock:
    """Seconds of each phase on this rank; all ranks begin a phase together."""

    def __init__(self, world: World) -> None:
        self.seconds: dict[str, float] = {}
        self._world = world

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._world.barrier()
        self._settle()
        started = time.perf_counter()
        yield
        self._settle()
        self.seconds[phase] = time.perf_counter() - started

    def _settle(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)


def _sharded_step(
    collection: ShardedEmbeddingCollection,
    request: KeyedJaggedTensor,
    table: str,
    updates: bool,
    clock: Callable[[str], AbstractContextManager[None]],
) -> None:
    context = collection.create_context()
    with clock("input"):
        arrived = collection.input_dist(context, request).wait().wait()
    with clock("lookup"):
        looked_up = collection.compute(context, arrived)
    with clock("output"):
        rows = collection.output_dist(context, looked_up).wait()[table].values()
    if not updates:
        return
    with clock("gradient"):
        gradients = torch.autograd.grad(rows, looked_up, torch.zeros_like(rows), allow_unused=True)
    used = [(rows, gradient) for rows, gradient in zip(looked_up, gradients, strict=True) if gradient is not None]
    with clock("update"):
        torch.autograd.backward([rows for rows, _ in used], [gradient for _, gradient in used])


def _held_bytes(
    sharded_model: nn.Module, optimizers: Optimizers, tables: list[str], world: World
) -> dict[str, Float64]:
    """By table (W,), bytes of weights and optimizer state on each rank."""
    states = optimizers.combined.state_dict()["state"]
    mine = torch.zeros(1, len(tables), dtype=torch.float64, device=world.device)
    for name, value in sharded_model.state_dict().items():
        table = table_of(name, tables)
        if table is not None:
            held = [shard.tensor for each in (value, *states.get(name, {}).values()) for shard in local_shards(each)]
            mine[0, tables.index(table)] += sum(tensor.numel() * tensor.element_size() for tensor in held)
    everywhere = torch.cat(world.gather(mine)).cpu().numpy()
    return {table: everywhere[:, n] for n, table in enumerate(tables)}
