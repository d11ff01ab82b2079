"""Plans of embedding tables: how long ours take compared with TorchRec's, and how long a step would take by either.

Both plan the same tables for the same GPUs, by the same cost model; no GPU is needed. Each turn has other tables.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measure import Comparison
from benchmarks.memory import peak_memory
from benchmarks.torchrec_planner import torchrec_plan
from sharding.errors import PlacementError
from sharding.plan import Plan
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.planner import make_plan
from sharding.planning.topology import Topology, described

LIMIT_SECONDS = 120
EXAMPLES_PER_RANK = 1024
# Tables, GPUs, rows of all tables. Of five tables TorchRec tries all combinations; the last fill three quarters of all memory.
BESIDE_TORCHREC = ((5, 4, 5e7), (20, 8, 2e8), (60, 64, 1e9), (60, 64, 3e9))
ALONE = ((200, 1024, 1e10), (1, 1024, 1e10))


@dataclass(frozen=True)
class Planned:
    plan_seconds: float
    step_seconds: float
    peak_bytes: int


def compare(turns: int) -> list[Comparison]:
    comparisons = []
    for count, num_devices, num_rows in BESIDE_TORCHREC:
        comparisons += _beside_torchrec(count, num_devices, num_rows, turns)
    for count, num_devices, num_rows in ALONE:
        topology = described("h100-80gb", num_devices)
        ours = [_planned(make_plan, drawn_tables(count, num_rows, turn), topology) for turn in range(turns)]
        seconds = tuple(count / one.plan_seconds for one in ours)
        name = f"plan of {_name(count, num_devices, num_rows)}"
        limit = (count / LIMIT_SECONDS,) * turns
        peak = max(one.peak_bytes for one in ours)
        comparisons.append(Comparison(name, "tables/s", seconds, limit, f"{LIMIT_SECONDS} s, a limit we set", peak))
    return comparisons


def _beside_torchrec(count: int, num_devices: int, num_rows: float, turns: int) -> list[Comparison]:
    def theirs(loads: Sequence[TableLoad], topology: Topology) -> Plan:
        return torchrec_plan(loads, topology, timeout_seconds=LIMIT_SECONDS)

    topology = described("h100-80gb", num_devices)
    pairs = []
    for seed in range(turns):
        loads = drawn_tables(count, num_rows, seed)
        pairs.append((_planned(make_plan, loads, topology), _planned(theirs, loads, topology)))
    name = _name(count, num_devices, num_rows)
    ours, others = zip(*pairs, strict=True)
    speeds = [tuple(count / plan.plan_seconds for plan in side) for side in (ours, others)]
    steps = [tuple(1.0 / plan.step_seconds for plan in side) for side in (ours, others)]
    peaks = [max(plan.peak_bytes for plan in side) for side in (ours, others)]
    return [
        Comparison(
            f"plan of {name}",
            "tables/s",
            speeds[0],
            speeds[1],
            "TorchRec's planner, our cost model",
            peaks[0],
            peaks[1],
        ),
        Comparison(f"predicted steps of {name}", "steps/s", steps[0], steps[1], "with TorchRec's plan"),
    ]


def _name(count: int, num_devices: int, num_rows: float) -> str:
    return f"{count} table{'s' * (count > 1)}, {num_rows / 1e9:g} billion rows, {num_devices:,} GPUs"


def _planned(plan_of: Callable[..., Plan], loads: Sequence[TableLoad], topology: Topology) -> Planned:
    """Return the time, the predicted step time and the memory of planning; the step time is infinite without a plan."""
    with peak_memory() as peak:
        started = time.perf_counter()
        try:
            plan = plan_of(loads, topology)
        except PlacementError:
            return Planned(time.perf_counter() - started, float("inf"), peak())
        seconds = time.perf_counter() - started
        return Planned(seconds, predict(plan, loads, topology).step_seconds, peak())


def drawn_tables(count: int, num_rows: float, seed: int) -> list[TableLoad]:
    """Return tables with sizes that differ by orders of magnitude, num_rows in all.

    Seven in ten are pooled, with 1 to 19 ids for each of EXAMPLES_PER_RANK examples; the others give 20 events of each. Widths
    are 64, 128 and 256; half of the tables may be split by columns.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0.0, 2.0, count)
    loads = []
    for n, rows in enumerate(np.maximum(100, sizes / sizes.sum() * num_rows)):
        pooled = bool(rng.random() < 0.7)
        ids = EXAMPLES_PER_RANK * (float(rng.integers(1, 20)) if pooled else 20.0)
        loads.append(
            TableLoad(
                f"t{n:04d}",
                int(rows),
                int(rng.choice([64, 128, 256])),
                pooled,
                ids_per_rank=ids,
                vectors_per_rank=float(EXAMPLES_PER_RANK) if pooled else ids,
                optimizer="adagrad" if rng.random() < 0.5 else "rowwise_adagrad",
            )
        )
    return loads
