"""The figures of a simulation as text: tables for the terminal and the page, and the assumptions in words."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields

from cluster.plan.grids import Grid
from cluster.plan.simulation.simulate import Point, Simulation
from cluster.plan.simulation.step import StepSeconds
from sharding.planning.units import bytes_text, count_text, seconds_text

PARTS = {
    "dense": "dense",
    "straggler": "straggler",
    "look_up": "look-up",
    "exchange": "exchange",
    "sums": "sums",
    "other": "other",
    "data_wait": "data wait",
}
ASSUMPTIONS = (
    "The parts of a step follow one another: neither communication nor look-ups overlap with computation, as in training today.",
    "All workers have the same devices, and hosts are filled one after the other.",
    "Examples are drawn independently from the distribution of lengths. The straggler is the expected maximum over ranks of the "
    "dense work; ranks are assumed to look up equal numbers of ids.",
    "Ids are spread evenly over the rows of a table. Popular ids make their shard busier.",
    "Bandwidths do not depend on the number of workers: a network without oversubscribed switches, and no other traffic.",
    "Each epoch is read from the files; nothing is kept in memory. Reading overlaps with training until it is slower.",
    "A checkpoint is copied while training waits, and written in the background (checkpoint.background). Each host writes its "
    "share at the bandwidth of a host, within the bandwidth of all.",
    "Failures are independent, with exponential times between them, and end the whole group. All workers continue from the newest "
    "checkpoint after the recovery; spare hosts are available at once. Failures of the storage, of the network as a whole and of "
    "the driver are not included, nor are stragglers from slow devices.",
    "On average a failure loses half an interval and the time of writing, since a checkpoint counts when it is committed.",
    "Evaluation, preparation and start-up are not included.",
)

Cell = Callable[[Point], str]


def grids(simulation: Simulation) -> list[Grid]:
    """Return the tables of a simulation, a row for each number of workers."""
    return [
        _speed(simulation),
        _parts(simulation),
        _traffic(simulation),
        _checkpoints(simulation),
        _failures(simulation),
    ]


def _grid(simulation: Simulation, title: str, columns: dict[str, Cell]) -> Grid:
    rows = tuple((f"{point.workers:,}", *(cell(point) for cell in columns.values())) for point in simulation.points)
    return Grid(title, ("workers", *columns), rows)


def _speed(simulation: Simulation) -> Grid:
    first = simulation.points[0].workers
    columns: dict[str, Cell] = {
        "hosts": lambda point: f"{point.hosts:,}",
        "batch": lambda point: count_text(point.batch),
        "step": lambda point: seconds_text(point.step_seconds),
        "events/s": lambda point: count_text(point.events_per_second),
        "efficiency": lambda point: f"{point.efficiency:.1%}",
        "goodput": lambda point: f"{point.failures.goodput:.2%}",
        "kept/s": lambda point: count_text(point.kept_events_per_second),
    }
    compared = f"{first:,} worker{'s' if first > 1 else ''}"
    title = (
        f"{simulation.scaling} scaling (batch: {simulation.batch_unit}; efficiency: compared with {compared}; "
        "kept: events/s x goodput)"
    )
    return _grid(simulation, title, columns)


def _parts(simulation: Simulation) -> Grid:
    def cell(name: str) -> Cell:
        return lambda point: seconds_text(getattr(point.parts, name)) if getattr(point.parts, name) else "-"

    names = [field.name for field in fields(StepSeconds)]
    used = [name for name in names if any(getattr(point.parts, name) for point in simulation.points)]
    return _grid(simulation, "parts of a step", {PARTS[name]: cell(name) for name in used})


def _traffic(simulation: Simulation) -> Grid:
    title = "traffic of a step (sent: by the rank that sends most; read: by a rank; memory: tables, of the limit)"
    columns: dict[str, Cell] = {
        "sent": lambda point: bytes_text(point.sent_bytes),
        "gradient": lambda point: bytes_text(point.gradient_bytes),
        "read": lambda point: bytes_text(point.read_bytes),
        "read by all": lambda point: f"{bytes_text(point.read_bytes_per_second)}/s",
        "memory": lambda point: f"{point.device_memory:.0%}",
    }
    return _grid(simulation, title, columns)


def _checkpoints(simulation: Simulation) -> Grid:
    title = "checkpoints (interval: as configured or optimal; Young, Daly: optimal intervals)"
    columns: dict[str, Cell] = {
        "size": lambda point: bytes_text(point.checkpoint.num_bytes),
        "of a rank": lambda point: bytes_text(point.checkpoint.rank_bytes),
        "stall": lambda point: seconds_text(point.checkpoint.stall_seconds),
        "writing": lambda point: seconds_text(point.checkpoint.write_seconds),
        "interval": lambda point: seconds_text(point.failures.interval_seconds),
        "Young": lambda point: seconds_text(point.failures.young_seconds),
        "Daly": lambda point: seconds_text(point.failures.daly_seconds),
    }
    return _grid(simulation, title, columns)


def _failures(simulation: Simulation) -> Grid:
    title = "failures (again: training and examples that one failure loses)"
    columns: dict[str, Cell] = {
        "per day": lambda point: f"{point.failures.failures_per_day:.3g}",
        "recovery": lambda point: seconds_text(point.failures.recovery_seconds),
        "again": lambda point: seconds_text(point.failures.replayed_seconds),
        "examples again": lambda point: count_text(point.failures.replayed_examples),
        "goodput": lambda point: f"{point.failures.goodput:.2%}",
    }
    return _grid(simulation, title, columns)


def constants_rows(simulation: Simulation) -> list[tuple[str, str, str]]:
    """Return name, value and source of each constant."""
    return [(name, f"{one['value']:.4g}", str(one["source"])) for name, one in simulation.constants.values().items()]


def assumptions(simulation: Simulation) -> list[str]:
    """Return the assumptions of a simulation, a sentence or two each."""
    return [*ASSUMPTIONS, *simulation.assumptions]


def warnings(simulation: Simulation) -> Iterator[str]:
    """Yield what a reader should know before the figures."""
    if simulation.refused:
        numbers = ", ".join(f"{number:,}" for number in simulation.refused)
        most = max(simulation.refused)
        # The parts of the memory, in brackets, are in simulation.json.
        reason = re.sub(r" \([^()]*\)", "", simulation.refused[most]).partition(";")[0]
        yield f"too few workers for the tables: {numbers}. With {most:,}: {reason}"
    hosted = [point for point in simulation.points if point.in_host_memory]
    if hosted:
        tables = ", ".join(dict.fromkeys(name for point in hosted for name in point.in_host_memory))
        numbers = ", ".join(f"{point.workers:,}" for point in hosted)
        yield f"with {numbers} workers tables are in host memory ({tables}), which makes their steps longer"
    late = [point for point in simulation.points if point.checkpoint.write_seconds > point.failures.interval_seconds]
    if late:
        numbers = ", ".join(f"{point.workers:,}" for point in late)
        yield f"with {numbers} workers writing a checkpoint takes longer than the interval between them, and training waits"
    waiting = [point for point in simulation.points if point.parts.data_wait > 0.0]
    if waiting:
        numbers = ", ".join(f"{point.workers:,}" for point in waiting)
        yield f"with {numbers} workers reading takes longer than the step"
