"""Stacked blocks over columns, as SVG: the parts of a picture of a plan (cluster.plan.picture)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import floor, log, log10
from xml.sax.saxutils import escape

from sharding.plan import Plan
from sharding.planning.prediction import Prediction

MANY_RANKS = 64
WIDTH, LEFT, RIGHT = 1120.0, 78.0, 12.0
INK, ALARM, FAINT = "#1b2a33", "#c92a2a", "#e6ecef"
BLOCK_INK = "#12181c"  # of text on blocks, which are light in every scheme of a page


@dataclass(frozen=True)
class Columns:
    """Columns of some ranks."""

    ranks: tuple[int, ...]
    """The ranks, from left to right."""
    x: tuple[float, ...]
    """The left edge of each column in pixels."""
    width: float
    """The width of a column in pixels."""
    marked: dict[int, str]
    """Text below some of the columns, by rank."""
    again: bool = False
    """True if the ranks already have columns and are shown a second time."""


@dataclass(frozen=True)
class Scale:
    """The vertical scale of one panel."""

    top: float
    """The upper edge in pixels."""
    height: float
    """The height in pixels."""
    most: float
    """The value at the upper edge."""

    def y(self, value: float) -> float:
        """Return the place of a value in pixels from the top of the picture."""
        return self.top + self.height * (1.0 - value / self.most)

    def of_pixels(self, pixels: float) -> float:
        """Return the value that a height in pixels represents."""
        return pixels * self.most / self.height


@dataclass(frozen=True)
class Block:
    """A rectangle in one column, or in several neighbouring ones."""

    first: int
    """The place of the first column."""
    last: int
    """The place of the last column."""
    bottom: float
    """The lower edge in the unit of the panel."""
    height: float
    """The height in the unit of the panel."""
    colour: str
    """The colour of the area."""
    name: str
    """Neighbours of one name may be merged."""
    what: str
    """The tooltip."""
    label: str = ""
    """Text on the block, where it fits."""
    opacity: float = 1.0
    """The opacity of the area."""
    num_shards: int = 0
    """The number of shards that the block represents."""


def all_columns(plan: Plan, prediction: Prediction) -> list[Columns]:
    """Return the columns of all ranks, with gaps between hosts. Of many ranks also return three at full width."""
    num, per_host = plan.world_size, max(1, plan.local_world_size)
    right = WIDTH - RIGHT - (330.0 if num > MANY_RANKS else 0.0)
    num_hosts = -(-num // per_host)
    gap = min(8.0, 60.0 / num_hosts)
    width = (right - LEFT - gap * (num_hosts - 1)) / num
    x = tuple(LEFT + rank * width + (rank // per_host) * gap for rank in range(num))
    every = next(2**power for power in range(20) if 2**power * width >= 34)
    columns = [Columns(tuple(range(num)), x, width, {rank: f"{rank:,}" for rank in range(0, num, every)})]
    if num > MANY_RANKS:
        seconds, memory = prediction.rank_seconds, prediction.memory_bytes.sum(axis=0)
        chosen = {
            int(seconds.argmin()): "least busy",
            int(memory.argmax()): "fullest",
            int(seconds.argmax()): "busiest",
        }
        places = tuple(right + 32 + 100 * number for number in range(len(chosen)))
        marked = {rank: f"{what}: {rank:,}" for rank, what in chosen.items()}
        columns.append(Columns(tuple(chosen), places, 94.0, marked, again=True))
    return columns


def merged(blocks: Iterable[Block], tolerance: float) -> Iterator[Block]:
    """Merge blocks of neighbouring columns that have one name and are equally high up to `tolerance`."""
    open_blocks: dict[str, Block] = {}
    for block in blocks:
        before = open_blocks.get(block.name)
        if (
            before is not None
            and before.last == block.first - 1
            and abs(before.bottom - block.bottom) < tolerance
            and abs(before.height - block.height) < tolerance
        ):
            open_blocks[block.name] = replace(before, last=block.last, num_shards=before.num_shards + block.num_shards)
        else:
            if before is not None:
                yield before
            open_blocks[block.name] = block
    yield from open_blocks.values()


def draw_blocks(blocks: Iterable[Block], columns: Columns, scale: Scale) -> Iterator[str]:
    """Yield the blocks with their tooltips. Where there are many columns, similar neighbours become one block."""
    if len(columns.ranks) > MANY_RANKS:
        blocks = merged(blocks, scale.of_pixels(0.4))
    for block in blocks:
        yield _draw_block(block, columns, scale)


def _draw_block(block: Block, columns: Columns, scale: Scale) -> str:
    pad = min(3.0, 0.08 * columns.width) if columns.width > 4 else 0.0
    x, right = columns.x[block.first] + pad, columns.x[block.last] + columns.width - pad
    y, height = scale.y(block.bottom + block.height), scale.height * block.height / scale.most
    ranks = f"rank {columns.ranks[block.first]:,}"
    if block.last > block.first:
        ranks = f"ranks {columns.ranks[block.first]:,} to {columns.ranks[block.last]:,}, each like the first:"
    attributes = {
        "x": f"{x:.2f}",
        "y": f"{y:.2f}",
        "width": f"{right - x:.2f}",
        "height": f"{height:.2f}",
        "fill": block.colour,
    }
    if block.opacity < 1.0:
        attributes["fill-opacity"] = f"{block.opacity:g}"
    if min(height, right - x) > 4:
        attributes |= {"stroke": "#fff", "stroke-width": ".7"}
    if block.num_shards and not columns.again:
        attributes["data-shards"] = str(block.num_shards)
    shape = "<rect " + " ".join(f'{name}="{value}"' for name, value in attributes.items())
    shape += f"><title>{escape(ranks)}\n{escape(block.what)}</title></rect>"
    letters = int((right - x - 6) / 6)
    if not block.label or height < 12 or letters < 3:
        return shape
    label = block.label if len(block.label) <= letters else block.label[: letters - 1] + "…"
    return shape + text((x + right) / 2, y + height / 2 + 4, label, "middle", fill=BLOCK_INK)


def axis(scale: Scale, name: str, write: Callable[[float], str], base: int) -> Iterator[str]:
    """Yield lines at round values, their labels, and the name of the panel.

    Args:
        scale: of the panel.
        name: what the panel shows.
        write: turns a value into a label.
        base: the ratio of a unit to the next smaller one: 1024 for bytes, 1000 for seconds.
    """
    unit = float(base) ** floor(log(scale.most, base))
    decade = 10.0 ** floor(log10(scale.most / unit / 4))
    step = unit * decade * next(factor for factor in (1, 2, 5, 10) if factor * decade * unit * 4.5 >= scale.most)
    for number in range(int(scale.most / step) + 1):
        y = scale.y(number * step)
        yield line(y, FAINT)
        yield text(LEFT - 6, y + 4, write(number * step) if number else "0", "end")
    yield text(LEFT - 66, scale.top - 12, name, weight=600)


def marks(columns: Columns, y: float) -> Iterator[str]:
    """Yield the text below columns."""
    for place, rank in enumerate(columns.ranks):
        if rank in columns.marked:
            yield text(columns.x[place] + columns.width / 2, y, columns.marked[rank], "middle")


def legend(y: float, colours: dict[str, str]) -> Iterator[str]:
    """Yield colours with their names, in one line."""
    x = LEFT
    for name, colour in colours.items():
        yield f'<rect x="{x:g}" y="{y - 9:g}" width="10" height="10" fill="{colour}"/>'
        yield text(x + 14, y, name)
        x += 34 + 6.2 * len(name)


def line(y: float, colour: str, dashes: str = "") -> str:
    """Return a horizontal line across the panel."""
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}" stroke="{colour}"{dash}/>'


def text(
    x: float, y: float, words: str, anchor: str = "start", size: int = 11, weight: int = 400, fill: str = INK
) -> str:
    """Return a text element."""
    # pointer-events none: a label must not hide the tooltip of the block below it.
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'pointer-events="none">{escape(words)}</text>'
    )
