"""The picture of a plan, in SVG: ranks are columns, shards are blocks on them; a second panel shows each rank's time in a step.

The invariant: every shard that has rows is in exactly one block of the first panel; `data-shards` is the number of shards of a
block. Blocks too low to be seen are merged, and with many ranks also similar neighbours.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

import numpy as np

from cluster.plan import drawing as draw
from cluster.plan.drawing import ALARM, INK, LEFT, RIGHT, WIDTH, Block, Columns, Scale
from sharding.config import Sharding
from sharding.plan import Plan, Shard
from sharding.planning.prediction import Float64, Prediction
from sharding.planning.topology import Topology
from sharding.planning.units import bytes_text, seconds_text

COLOURS: dict[Sharding, str] = {
    "data_parallel": "#adb5bd",
    "table_wise": "#3bc9db",
    "row_wise": "#ffa94d",
    "column_wise": "#b197fc",
    "table_row_wise": "#69db7c",
    "table_column_wise": "#f783ac",
    "grid_shard": "#d8b04c",
}
PHASES = {
    "input": ("ids sent", "#a5d8ff"),
    "lookup": ("rows looked up", "#ffa94d"),
    "output": ("rows sent", "#4dabf7"),
    "gradient": ("gradients sent", "#1c7ed6"),
    "update": ("rows updated", "#9775fa"),
}
SMALL_COLOUR, BUFFER_COLOUR = "#dee2e6", "#f1f3f5"
OTHER_COLOURS = {"several small tables": SMALL_COLOUR, "looked-up rows": BUFFER_COLOUR}
MEMORY_HEIGHT, SECONDS_HEIGHT = 250.0, 120.0
LOWEST_PIXELS = 0.7  # height of a block that can be seen


def picture(plan: Plan, prediction: Prediction, topology: Topology, title: str) -> str:
    """Return the SVG element.

    Args:
        plan: the plan.
        prediction: of its memory and time.
        topology: the devices.
        title: the line above the picture.
    """
    columns, shards = draw.all_columns(plan, prediction), _Shards(plan, prediction)
    kinds = {table.sharding for table in plan.tables.values()}
    usable = topology.device_memory * (1.0 - topology.reserved_fraction)
    parts = [
        [draw.text(LEFT - 66, 22, title, size=15, weight=600)],
        draw.legend(44, {kind: colour for kind, colour in COLOURS.items() if kind in kinds} | OTHER_COLOURS),
        _memory_panel(80.0, "device memory", shards, prediction.memory_bytes, usable, columns),
    ]
    top = 80.0 + MEMORY_HEIGHT + 50
    if prediction.host_memory_bytes.any():
        share = topology.host_memory / min(topology.devices_per_host, topology.num_devices)
        again = [Columns(c.ranks, c.x, c.width, c.marked, again=True) for c in columns]
        parts.append(_memory_panel(top, "host memory", shards, prediction.host_memory_bytes, share, again))
        top += MEMORY_HEIGHT + 50
    parts.append(draw.legend(top + 4, dict(PHASES.values())))
    top += 40
    parts.append(_seconds_panel(top, prediction, columns))
    height = top + SECONDS_HEIGHT + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" font-family="system-ui,sans-serif">'
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="#fff"/>' + "".join(chain.from_iterable(parts)) + "</svg>\n"
    )


class _Shards:
    """The shards of a plan by rank and table, in the order of their blocks from the bottom up."""

    def __init__(self, plan: Plan, prediction: Prediction) -> None:
        self._plan, self._names = plan, prediction.tables
        self._by_rank: dict[int, dict[int, list[Shard]]] = defaultdict(dict)
        num_holders = np.zeros(len(self._names))
        group = plan.world_size // plan.replica_groups
        for number, name in enumerate(self._names):
            for shard in plan.shards(name):
                if shard.num_rows:
                    num_holders[number] += 1
                    for rank in range(shard.rank, plan.world_size, group):
                        self._by_rank[rank].setdefault(number, []).append(shard)
        # Tables on all ranks are at the bottom, where they make even bands; the others are above, large ones first.
        total = (prediction.memory_bytes + prediction.host_memory_bytes).sum(axis=1)
        self._order = np.lexsort((-total, -num_holders)).tolist()

    def blocks(self, rank: int, place: int, memory: Float64, least: float) -> Iterator[Block]:
        """Yield the blocks of a rank from the bottom up; tables below `least` bytes become one block at the top."""
        here = self._by_rank.get(rank, {})
        bottom, small_bytes, small = 0.0, 0.0, 0
        small_names: list[str] = []
        for number in self._order:
            if number not in here:
                continue
            name, shards, size = self._names[number], here[number], float(memory[number, rank])
            if size < least:
                small_bytes, small = small_bytes + size, small + len(shards)
                small_names.append(name)
                continue
            table = self._plan.tables[name]
            what = f"{name}: {table.sharding}, {table.kernel}\n{_extent(shards)}\n{bytes_text(size)}"
            opacity = (1.0, 0.75, 0.5)[number % 3]
            yield Block(place, place, bottom, size, COLOURS[table.sharding], name, what, name, opacity, len(shards))
            bottom += size
        if small:
            listed = ", ".join(small_names[:8]) + (f", {len(small_names) - 8} more" if len(small_names) > 8 else "")
            what = f"shards of {len(small_names)} tables: {listed}\n{bytes_text(small_bytes)}"
            yield Block(place, place, bottom, small_bytes, SMALL_COLOUR, "small tables", what, num_shards=small)
            bottom += small_bytes
        buffers = float(memory[:, rank].sum()) - bottom
        if buffers > least:
            what = f"looked-up rows and their gradients\n{bytes_text(buffers)}"
            yield Block(place, place, bottom, buffers, BUFFER_COLOUR, "looked-up rows", what)


def _extent(shards: list[Shard]) -> str:
    """Return the rows and columns of shards, of the first three only."""
    lines = [
        f"rows {s.row:,} to {s.row + s.num_rows - 1:,}, columns {s.column} to {s.column + s.num_columns - 1}"
        for s in shards[:3]
    ]
    return "\n".join([*lines, f"and {len(shards) - 3} shards more"] if len(shards) > 3 else lines)


def _memory_panel(
    top: float, name: str, shards: _Shards, memory: Float64, limit: float, columns: list[Columns]
) -> Iterator[str]:
    """Yield the panel of device or host memory, with its limit."""
    fullest = float(memory.sum(axis=0).max())
    shown = fullest > 0.1 * limit
    scale = Scale(top, MEMORY_HEIGHT, 1.08 * max(limit if shown else 0.0, fullest, 1.0))
    yield from draw.axis(scale, name, bytes_text, 1024)
    for group in columns:
        blocks = (
            block
            for place, rank in enumerate(group.ranks)
            for block in shards.blocks(rank, place, memory, scale.of_pixels(LOWEST_PIXELS))
        )
        yield from draw.draw_blocks(blocks, group, scale)
        yield from draw.marks(group, top + MEMORY_HEIGHT + 14)
    words = f"limit for tables: {bytes_text(limit)}"
    if shown:
        yield draw.line(scale.y(limit), ALARM, "5 3")
    yield draw.text(
        WIDTH - RIGHT,
        scale.y(limit) - 4 if shown else top - 12,
        words + ("" if shown else ", far above"),
        "end",
        fill=ALARM,
    )


def _seconds_panel(top: float, prediction: Prediction, columns: list[Columns]) -> Iterator[str]:
    """Yield the panel of the time of each rank in a step."""
    total, mean = prediction.rank_seconds, float(prediction.rank_seconds.mean())
    scale = Scale(top, SECONDS_HEIGHT, 1.08 * max(float(total.max()), 1e-9))
    yield from draw.axis(scale, "time on tables", seconds_text, 1000)
    phases = {name: seconds.sum(axis=0) for name, seconds in prediction.phases.items()}
    for group in columns:
        blocks = (
            block
            for place, rank in enumerate(group.ranks)
            for block in _bar(place, {name: float(seconds[rank]) for name, seconds in phases.items()})
        )
        yield from draw.draw_blocks(blocks, group, scale)
        yield from draw.marks(group, top + SECONDS_HEIGHT + 14)
    yield draw.line(scale.y(mean), INK, "2 3")
    yield draw.text(WIDTH - RIGHT, top - 12, f"mean {seconds_text(mean)} (dotted)", "end")


def _bar(place: int, phases: dict[str, float]) -> Iterator[Block]:
    """Yield the phases of a rank's step as blocks on top of each other."""
    bottom = 0.0
    what = f"{seconds_text(sum(phases.values()))} in a step\n"
    what += "\n".join(f"{PHASES[name][0]}: {seconds_text(seconds)}" for name, seconds in phases.items())
    for name, seconds in phases.items():
        if seconds:
            yield Block(place, place, bottom, seconds, PHASES[name][1], name, what)
            bottom += seconds
