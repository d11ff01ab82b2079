"""The planner: a sharding, a kernel and ranks for each table, within memory and with the shortest step.

Two steps repeat. A proposal bounds the time that one block of a table adds to a rank, and gives each table the option of least
work within that bound. Then tables are placed one by one, the largest first, each where the step grows least (list scheduling
under a guess of the makespan: Hochbaum and Shmoys 1987), or by its next option if the first does not fit. The best proposal is
improved by moves, splits and swaps of tables on the ranks that others wait for. Imports no torch.

The search is not exact. tests/sharding/planning measures the distance from the optimum where that can be enumerated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sharding.config import ROW_SPLITS, CommunicationConfig
from sharding.errors import PlacementError
from sharding.plan import Plan
from sharding.planning.costs import FP32
from sharding.planning.improve import improve
from sharding.planning.layout import Layout, Placed
from sharding.planning.load import TableLoad
from sharding.planning.options import AUTO, Option, options_of
from sharding.planning.refusals import no_room
from sharding.planning.topology import Topology

NUM_BOUNDS = 32
PRICES = (0.0, 1.0, 10.0, 100.0)  # of memory; higher ones are tried only if memory is short
NUM_IMPROVED = 6
Options = Mapping[str, Sequence[Option]]


def make_plan(
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
    inputs: str = "",
    replica_groups: int = 1,
) -> Plan:
    """Compute the plan, a function of its arguments. The order of `loads` only determines the order of the plan's tables.

    Raises PlacementError, with the name of the table, if a table fits nowhere.
    """
    group = _group(topology, replica_groups)
    by_kind: dict[TableLoad, list[Option]] = {}
    options = {}
    for load in sorted(_without_wrong_means(loads), key=lambda load: load.name):
        kind = replace(load, name="")
        if kind not in by_kind:
            by_kind[kind] = options_of(load, group, communication)
        options[load.name] = by_kind[kind]
    best = _best_layout(options, group)
    tables = {
        load.name: replace(placed.option.table, places=tuple(placed.places.tolist()))
        for load in loads
        for placed in (best.tables[load.name],)
    }
    per_host = min(topology.devices_per_host, topology.num_devices)
    return Plan(topology.num_devices, per_host, topology.device, tables, inputs, replica_groups)


def _without_wrong_means(loads: Sequence[TableLoad]) -> list[TableLoad]:
    """Return the loads without shardings that give wrong means.

    Averaged bags are right under a split by rows only if all pooled tables are split by rows (see sharding.tables.apply_plan).
    """
    if all(set(load.shardings or AUTO) <= ROW_SPLITS for load in loads if load.pooled):
        return list(loads)
    # A list that names data_parallel would copy tables of any size.
    shards = [sharding for sharding in AUTO if sharding != "data_parallel"]
    allowed = []
    for load in loads:
        if load.pooled and load.mean_pooling:
            left = tuple(sharding for sharding in load.shardings or shards if sharding not in ROW_SPLITS)
            if not left:
                raise PlacementError(
                    f"tables.{load.name}: sharding = {', '.join(load.shardings or ())}: averaged bags cannot be split by rows "
                    "together with tables that are not; choose table_wise, or row_wise for all pooled tables"
                )
            load = replace(load, shardings=left)
        allowed.append(load)
    return allowed


def _group(topology: Topology, replica_groups: int) -> Topology:
    """Return the topology of the ranks of one replica group."""
    if topology.num_devices % replica_groups:
        raise PlacementError(
            f"plan.replica_groups = {replica_groups} does not divide the number of workers, {topology.num_devices}"
        )
    num_ranks = topology.num_devices // replica_groups
    per_host = min(topology.devices_per_host, num_ranks)
    # Groups on one host share its memory.
    host_memory = topology.host_memory * per_host // min(topology.devices_per_host, topology.num_devices)
    return replace(topology, num_devices=num_ranks, devices_per_host=per_host, host_memory=host_memory)


def _best_layout(options: Options, topology: Topology) -> Layout:
    """Return the best layout. Tables leave device memory only if nothing else fits. Raises PlacementError."""
    if not options:
        return Layout(topology)
    for allowed in _allowed(options):
        for price in PRICES:
            layouts = [layout for layout in _proposals(allowed, topology, price) if len(layout.tables) == len(options)]
            if layouts:
                layouts.sort(key=lambda layout: layout.step_seconds)
                improved = [improve(layout, allowed) for layout in layouts[:NUM_IMPROVED]]
                best = min(improved, key=lambda layout: layout.step_seconds)
                return improve(best, allowed, in_pairs=True)
    furthest = max(_proposals(options, topology, PRICES[-1]), key=lambda layout: len(layout.tables))
    raise PlacementError(no_room(options, furthest, topology))


def _allowed(options: Options) -> Iterator[Options]:
    """Yield the options of all tables, each set as a fallback of the one before.

    They are: device memory only; any memory; host memory for a growing number of the largest tables, since a large table on
    devices can leave no room for the others.
    """
    yield {name: [o for o in choices if not o.is_last_resort] for name, choices in options.items()}
    yield options
    last_resorts = {name: [o for o in choices if o.is_last_resort] for name, choices in options.items()}
    movable = [name for name, choices in last_resorts.items() if choices]
    movable.sort(key=lambda name: (-options[name][0].table.num_rows * options[name][0].table.dim, name))
    number = 1
    while movable and number < 2 * len(movable):
        yield {**options, **{name: last_resorts[name] for name in movable[:number]}}
        number *= 2


def _proposals(options: Options, topology: Topology, price: float) -> Iterator[Layout]:
    """Yield a layout for every ranking and order. Tables that do not fit are missing.

    price: the cost of filling all memory, in units of the least step time.
    """
    asking_bytes = sum(choices[0].asking_bytes for choices in options.values())
    for ranked in _rankings(options, topology, price):
        first = {name: choices[0] for name, choices in ranked.items()}
        by_time = sorted(first, key=lambda name: (-first[name].peak_seconds, name))
        by_bytes = sorted(first, key=lambda name: (first[name].where != "everywhere", -first[name].block_bytes, name))
        for order in (by_time, by_bytes):
            layout = Layout(topology, asking_bytes)
            for name in order:
                _put_first_that_fits(layout, name, ranked[name])
            yield layout


def _rankings(options: Options, topology: Topology, price: float) -> Iterator[Options]:
    """Yield rankings of the options of each table, the first choice first.

    One kind of ranking minimises cost within a bound on the time of one block, for a range of bounds. The other prefers one
    sharding, for each sharding, since tables of one sharding share collectives.
    """
    every = [option for choices in options.values() for option in choices]
    work = {id(option): _work(option, topology) for option in every}
    least_step = sum(min(work[id(option)][0] for option in choices) for choices in options.values())
    cost = {key: seconds + price * least_step * memory for key, (seconds, memory) in work.items()}

    def ranked(bound: float, sharding: str | None = None) -> Options:
        def preference(option: Option) -> tuple[bool, bool, float, float]:
            differs = sharding is not None and option.table.sharding not in (sharding, "data_parallel")
            return option.is_last_resort, differs, max(option.peak_seconds, bound), cost[id(option)]

        return {name: sorted(choices, key=preference) for name, choices in options.items()}

    peaks = np.unique([option.peak_seconds for option in every])
    for bound in np.unique(peaks[np.linspace(0, peaks.size - 1, NUM_BOUNDS).round().astype(int)]):
        yield ranked(bound)
    for sharding in sorted({option.table.sharding for option in every} - {"data_parallel"}):
        yield ranked(np.inf, sharding)


def _work(option: Option, topology: Topology) -> tuple[float, float]:
    """Return the seconds on an average rank, and the filled part of all device memory."""
    held = option.num_blocks * (topology.devices_per_host if option.where == "hosts" else 1) / topology.num_devices
    seconds = option.block_seconds.sum() * held + option.all_seconds.sum()
    return float(seconds), option.block_bytes * held / max(1, topology.capacity_bytes)


def _put_first_that_fits(layout: Layout, name: str, choices: Sequence[Option]) -> None:
    for option in choices:
        places = layout.best_places(option)
        if places is not None:
            layout.put(name, Placed(option, places))
            return
