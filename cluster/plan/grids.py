"""The figures of a plan as plain values, and as text tables for the terminal and the page."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cluster.plan.picture import PHASES
from cluster.plan.request import PlanRequest
from sharding.plan import Plan
from sharding.planning.prediction import Float64, Prediction
from sharding.planning.units import bytes_text, count_text, seconds_text

MOST_RANKS = 16  # with more, only some ranks are listed
NUM_BUSIEST = 3
NUM_LISTED = 40  # rows of a displayed table


@dataclass(frozen=True)
class Planned:
    """A request, its plan and the predicted cost."""

    request: PlanRequest
    plan: Plan
    prediction: Prediction
    warnings: tuple[str, ...]  # about the plan, a line each
    seconds: float  # taken by the planning

    @property
    def title(self) -> str:
        """Return the most important figures in one line."""
        prediction = self.prediction
        topology = self.request.topology
        phase, rank = prediction.bottleneck
        return (
            f"{self.request.name} on {_devices(topology.num_devices, topology.device)}: "
            f"{seconds_text(prediction.step_seconds)} on tables in a step, imbalance {prediction.imbalance:.2f}, "
            f"bottleneck: {PHASES[phase][0]}, rank {rank:,}"
        )

    @cached_property
    def values(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return _values_of(self)


@dataclass(frozen=True)
class Grid:
    """A table of text. The first column is left-aligned, the others are right-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(values: dict[str, Any]) -> list[Grid]:
    """Return the tables to display for these values."""
    bags = _bag_grid(values)
    return [summary_grid([values]), _table_grid(values), *([bags] if bags.rows else []), _rank_grid(values)]


def summary_grid(planned: Sequence[dict[str, Any]], names: Sequence[str] = ("",)) -> Grid:
    """Return the figures of one plan, or of several side by side."""

    def row(name: str, texts: Iterable[str]) -> tuple[str, ...]:
        return (name, *texts)

    rows = [
        row("devices", (_devices(v["topology"]["num_devices"], v["topology"]["device"]) for v in planned)),
        row("time on tables in a step", (seconds_text(v["step_seconds"]) for v in planned)),
        *(row(f"  {PHASES[phase][0]}", (seconds_text(v["phases"][phase]) for v in planned)) for phase in PHASES),
        row(
            "bottleneck", (f"{PHASES[v['bottleneck']['phase']][0]}, rank {v['bottleneck']['rank']:,}" for v in planned)
        ),
        row("imbalance", (f"{v['imbalance']:.2f}" for v in planned)),
        row("fullest device, of its limit", (_of_limit(v["memory_bytes"]) for v in planned)),
        row("mean device", (bytes_text(v["memory_bytes"]["mean"]) for v in planned)),
    ]
    if any(v["host_memory_bytes"]["max"] for v in planned):
        rows.append(row("fullest host, of its limit", (_of_limit(v["host_memory_bytes"]) for v in planned)))
    rows.append(row("most that a rank sends", (bytes_text(v["sent_bytes"]["max"]) for v in planned)))
    return Grid("", ("", *names), tuple(rows))


def difference_grid(left: dict[str, Any], right: dict[str, Any], names: tuple[str, str]) -> Grid:
    """Return the tables that are placed differently in two plans. Tables with the same difference share a row."""
    here, there = ({table["name"]: table for table in values["tables"]} for values in (left, right))
    groups = defaultdict(list)
    for name in {**here, **there}:
        before = _placement(here.get(name))
        after = _placement(there.get(name))
        if before != after:
            table = here.get(name) or there[name]
            groups[(table["num_rows"], table["dim"], before, after)].append(name)
    rows = [(_all_of(group), before, after) for (_, _, before, after), group in groups.items()]
    return Grid("tables placed differently", ("table", *names), _shortened(rows))


def _placement(table: dict[str, Any] | None) -> str:
    return "-" if table is None else _placement_text(table["sharding"], table["kernel"], table["num_shards"])


def _placement_text(sharding: str, kernel: str, num_shards: int) -> str:
    """Describe a placement, for example "row_wise x 64". The kernel is added if it is not the default."""
    usual = "dense" if sharding == "data_parallel" else "fused"
    return f"{sharding} x {num_shards:,}" + ("" if kernel == usual else f", {kernel}")


def _devices(number: int, device: str) -> str:
    return f"{number:,} {'GPU' if device == 'cuda' else 'CPU worker'}{'s' if number > 1 else ''}"


def _table_grid(values: dict[str, Any]) -> Grid:
    """Return a row per size and placement of tables."""
    groups = defaultdict(list)
    for table in values["tables"]:
        key = (table["num_rows"], table["dim"], table["sharding"], table["kernel"], table["num_shards"])
        groups[key].append(table)
    rows = [
        (
            _all_of([table["name"] for table in group]),
            _placement_text(sharding, kernel, num_shards),
            f"{count_text(num_rows)} x {dim}",
            bytes_text(sum(table["memory_bytes"] for table in group)),
            bytes_text(max(table["max_rank_memory_bytes"] for table in group)),
            seconds_text(max(table["max_rank_seconds"] for table in group)),
        )
        for (num_rows, dim, sharding, kernel, num_shards), group in sorted(
            groups.items(), key=lambda item: -sum(table["memory_bytes"] for table in item[1])
        )
    ]
    header = ("table", "placement", "size", "memory", "one rank", "time")
    return Grid(
        "tables (+N: N more of the kind; one rank and time: maximum over them)",
        header,
        _shortened(rows),
    )


def _bag_grid(values: dict[str, Any]) -> Grid:
    """Return the tables that sum rows in bags where they are stored."""
    groups = defaultdict(list)
    for table in values["tables"]:
        if table["pooled"]:
            groups[(table["ids_per_rank"], table["vectors_per_rank"])].append(table["name"])
    rows = [
        (_all_of(names), count_text(round(ids)), count_text(round(bags)))
        for (ids, bags), names in sorted(groups.items())
    ]
    return Grid("pooled tables, of one rank in a step", ("table", "ids", "bags"), _shortened(rows))


def _rank_grid(values: dict[str, Any]) -> Grid:
    ranks = values["ranks"]
    seconds = np.array(ranks["seconds"])
    rows = []
    if seconds.size > MOST_RANKS:
        for name, of in (("least", np.min), ("median", np.median), ("most", np.max)):
            rows.append(_rank_row(name, {key: float(of(figures)) for key, figures in ranks.items()}))
        chosen = np.argsort(-seconds, kind="stable")[:NUM_BUSIEST].tolist()
    else:
        chosen = range(seconds.size)
    of_busy = "busy: " if seconds.size > MOST_RANKS else ""
    for rank in chosen:
        rows.append(_rank_row(f"{of_busy}rank {rank:,}", {key: figures[rank] for key, figures in ranks.items()}))
    header = ("", "device memory", "host memory", "time on tables", "bytes sent")
    return Grid("ranks", header, tuple(rows))


def _rank_row(name: str, figures: dict[str, float]) -> tuple[str, ...]:
    return (
        name,
        bytes_text(figures["memory_bytes"]),
        bytes_text(figures["host_memory_bytes"]) if figures["host_memory_bytes"] else "-",
        seconds_text(figures["seconds"]),
        bytes_text(figures["sent_bytes"]),
    )


def _all_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1:,})"


def _shortened(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    if len(rows) <= NUM_LISTED:
        return tuple(rows)
    left = len(rows) - NUM_LISTED
    return (*rows[:NUM_LISTED], (f"{left:,} more, in plan.json", *[""] * (len(rows[0]) - 1)))


def _of_limit(figures: dict[str, float]) -> str:
    share = f", {100 * figures['max'] / figures['limit']:.0f} %" if figures["limit"] else ""
    return bytes_text(figures["max"]) + share


def _spread(figures: Float64) -> dict[str, float]:
    return {"max": float(figures.max()), "mean": float(figures.mean())}


def _by_host(figures: Float64, devices_per_host: int) -> Float64:
    return np.add.reduceat(figures, np.arange(0, figures.size, devices_per_host))


def _values_of(planned: Planned) -> dict[str, Any]:
    prediction = planned.prediction
    topology = planned.request.topology
    phase, rank = prediction.bottleneck
    memory = prediction.memory_bytes.sum(axis=0)
    host = prediction.host_memory_bytes.sum(axis=0)
    sent = prediction.sent_bytes.sum(axis=0)
    return {
        "config": planned.request.name,
        "topology": asdict(topology),
        "communication": planned.request.communication.model_dump(mode="json"),
        "replica_groups": planned.plan.replica_groups,
        "step_seconds": prediction.step_seconds,
        "phases": {name: float(seconds.sum(axis=0).max()) for name, seconds in prediction.phases.items()},
        "bottleneck": {"phase": phase, "rank": rank},
        "imbalance": prediction.imbalance,
        "memory_bytes": {"limit": topology.capacity_bytes, **_spread(memory)},
        "host_memory_bytes": {"limit": topology.host_memory, **_spread(_by_host(host, topology.devices_per_host))},
        "sent_bytes": {"total": float(sent.sum()), **_spread(sent)},
        "tables": list(_tables(planned)),
        "ranks": {
            "memory_bytes": memory.tolist(),
            "host_memory_bytes": host.tolist(),
            "seconds": prediction.rank_seconds.tolist(),
            "sent_bytes": sent.tolist(),
        },
        "assumptions": list(planned.request.assumptions),
        "warnings": list(planned.warnings),
        "planning_seconds": planned.seconds,
    }


def _tables(planned: Planned) -> Iterator[dict[str, Any]]:
    prediction = planned.prediction
    memory = prediction.memory_bytes + prediction.host_memory_bytes
    seconds = np.sum(list(prediction.phases.values()), axis=0)
    loads = {load.name: load for load in planned.request.loads}
    for number, name in enumerate(prediction.tables):
        table = planned.plan.tables[name]
        load = loads[name]
        yield {
            "name": name,
            "num_rows": table.num_rows,
            "dim": table.dim,
            "sharding": table.sharding,
            "kernel": table.kernel,
            "pooled": load.pooled,
            "ids_per_rank": load.ids_per_rank,
            "vectors_per_rank": load.vectors_per_rank,
            "places": list(table.places),
            "num_shards": sum(1 for shard in planned.plan.shards(name) if shard.num_rows),
            "memory_bytes": float(memory[number].sum()),
            "max_rank_memory_bytes": float(memory[number].max()),
            "max_rank_seconds": float(seconds[number].max()),
            "sent_bytes": float(prediction.sent_bytes[number].sum()),
        }
