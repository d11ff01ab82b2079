"""Warnings about a valid plan: one line each, with the remedy. Imports no torch."""

from collections.abc import Iterator, Sequence

import numpy as np

from sharding.plan import Plan
from sharding.planning.costs import HOST_KERNELS
from sharding.planning.load import TableLoad
from sharding.planning.options import RANKED
from sharding.planning.prediction import Prediction
from sharding.planning.topology import Topology
from sharding.planning.units import bytes_text

NEARLY_FULL = 0.9
MUCH_IMBALANCE = 1.5
FEW_ROWS = 1000
NAMED = 5  # names of tables in a line; further ones are only counted


def warnings_of(plan: Plan, prediction: Prediction, loads: Sequence[TableLoad], topology: Topology) -> list[str]:
    """Return the warnings, an empty list without any."""
    return [
        *_memory(prediction, topology),
        *_host_memory(plan, prediction, topology),
        *_busiest(plan, prediction),
        *_offloaded(plan),
        *_thinly_spread(plan),
        *_dense_adam(plan, loads),
    ]


def _memory(prediction: Prediction, topology: Topology) -> Iterator[str]:
    used = prediction.memory_bytes.sum(axis=0)
    rank = int(used.argmax())
    part = float(used[rank]) / max(1, topology.capacity_bytes)
    most = bytes_text(topology.capacity_bytes)
    usage = f"{bytes_text(float(used[rank]))} of {most} for tables and their buffers"
    if part > 1.0:
        yield f"rank {rank} would need {usage}, more than it has; add workers, or compute a new plan"
    elif part > NEARLY_FULL:
        full = int((used > NEARLY_FULL * topology.capacity_bytes).sum())
        others = f", and {full - 1} more {'is' if full == 2 else 'are'} nearly as full" if full > 1 else ""
        yield f"rank {rank} is nearly full: {usage}{others}; a larger batch may not fit"


def _host_memory(plan: Plan, prediction: Prediction, topology: Topology) -> Iterator[str]:
    hosts = np.arange(plan.world_size) // plan.local_world_size
    used = np.bincount(hosts, weights=prediction.host_memory_bytes.sum(axis=0))
    if used.max() > NEARLY_FULL * topology.host_memory and used.any():
        taken = bytes_text(float(used.max()))
        room = bytes_text(topology.host_memory)
        yield f"the memory of host {int(used.argmax())} is nearly full or overfull: tables take {taken} of {room}"


def _busiest(plan: Plan, prediction: Prediction) -> Iterator[str]:
    seconds = prediction.rank_seconds
    rank = int(seconds.argmax())
    if prediction.imbalance > MUCH_IMBALANCE:
        yield (
            f"imbalance {prediction.imbalance:.1f}: rank {rank} has {prediction.imbalance:.1f} times the mean work, "
            "and all other ranks wait for it"
        )
    if plan.world_size == 1 or not seconds[rank]:
        return
    table_seconds = sum(phase[:, rank] for phase in prediction.phases.values())
    table = int(np.argmax(table_seconds))
    name = prediction.tables[table]
    part = float(np.max(table_seconds) / seconds[rank])
    if plan.tables[name].sharding in RANKED and part > 0.5:
        yield (
            f"tables.{name} is {part:.0%} of the work of rank {rank}, the busiest, since it is {plan.tables[name].sharding}; "
            "allow row_wise or data_parallel, or narrower columns with an optimizer that supports column splits (adagrad, sgd)"
        )


def _offloaded(plan: Plan) -> Iterator[str]:
    names = [name for name, table in plan.tables.items() if table.kernel in HOST_KERNELS]
    if names:
        yield (
            f"outside of device memory, which is much slower: {_listed(names)}; use more workers, or an optimizer with less "
            "state"
        )


def _thinly_spread(plan: Plan) -> Iterator[str]:
    ranks = plan.world_size // plan.replica_groups
    names = [
        name
        for name, table in plan.tables.items()
        if table.sharding == "row_wise" and ranks > 1 and table.num_rows < FEW_ROWS * ranks
    ]
    if names:
        yield (
            f"row_wise with fewer than {FEW_ROWS:,} rows on each of {ranks} ranks: {_listed(names)}; table_wise or data_parallel "
            "would involve fewer ranks in each look-up"
        )


def _dense_adam(plan: Plan, loads: Sequence[TableLoad]) -> Iterator[str]:
    names = [
        load.name
        for load in loads
        if load.optimizer in ("adam", "lamb") and load.name in plan.tables and plan.tables[load.name].kernel == "dense"
    ]
    if names:
        yield f"all rows are updated in each step, also those not looked up: {_listed(names)} (adam or lamb, kernel dense)"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"tables.{name}" for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown
