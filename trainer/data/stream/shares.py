"""Shares of one rank in each step, gathered block by block: the part that both tasks' streams have in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from models.features.unique import unique_ids
from trainer.data.stream.examples import Chosen
from trainer.data.stream.global_batches import Chunk, GlobalBatches
from trainer.data.stream.order import Position
from trainer.data.stream.packed import PackedHistories, joined
from trainer.data.stream.row_groups import RowGroupReader

BLOCK_EVENTS = (
    1 << 16
)  # approximate events gathered at a time; several times faster if they fit into a core's own cache
EMPTY_ROW = -1  # id of the empty history that replaces an empty share of a rank


class Jagged(Protocol):
    """Packed examples, one after another."""

    def sliced(self, start: int, stop: int) -> "Jagged":
        """Return examples start .. stop - 1: views."""


Share = TypeVar("Share", bound=Jagged)


@dataclass(frozen=True)
class PackedStep(Generic[Share]):
    """One step's share of this rank, packed."""

    # Examples of the share.
    share: Share
    # The epoch.
    epoch: int
    # Data position before the step.
    before: Position
    # Data position after the step.
    after: Position


Batch = TypeVar("Batch", covariant=True)


@dataclass(frozen=True)
class Step(Generic[Batch]):
    """One step's share of this rank, as a batch for the model."""

    # The batch.
    batch: Batch
    # The epoch.
    epoch: int
    # Data position before the step.
    before: Position
    # Data position after the step.
    after: Position


def packed_steps(
    reader: RowGroupReader,
    batches: GlobalBatches,
    gather: Callable[[PackedHistories, np.ndarray, Chosen], Share],
    start: Position,
    num_epochs: int,
) -> Iterator[PackedStep[Share]]:
    """Yield every step from `start` to the end of epoch `num_epochs - 1`, the same number on every rank.

    A share may be empty.

    Args:
        reader: reads row groups.
        batches: the global batches.
        gather: packs examples, given packed row groups, the rows of the examples in them, and the examples.
        start: the first position.
        num_epochs: the number of epochs.
    """
    for chunk in batches.chunks(start, num_epochs):
        packed, rows = read_rows(reader, chunk.chosen)
        yield from steps_of_chunk(chunk, packed, rows, gather, batches.examples.typical_events)


def steps_of_chunk(
    chunk: Chunk,
    packed: PackedHistories,
    rows: np.ndarray,
    gather: Callable[[PackedHistories, np.ndarray, Chosen], Share],
    typical_events: int,
) -> Iterator[PackedStep[Share]]:
    """Yield the steps of a chunk.

    Args:
        chunk: the steps, with this rank's examples.
        packed: packed histories that have these examples.
        rows: the row of each example in them.
        gather: as in `packed_steps`.
        typical_events: approximate number of input events of an example.
    """
    for block in chunk.blocks(BLOCK_EVENTS // typical_events):
        inside = slice(block.first, block.stop)
        gathered = gather(packed, rows[inside], chunk.chosen.taken(inside))
        for step in block.steps:
            share = gathered.sliced(step.first - block.first, step.stop - block.first)
            yield PackedStep(share, chunk.epoch, step.before, step.after)  # type: ignore[arg-type]


def read_rows(reader: RowGroupReader, chosen: Chosen) -> tuple[PackedHistories, np.ndarray]:
    """Return the row groups of the examples as one, and the row of each example in it. Without examples, any row group."""
    if chosen.row.size == 0:
        return reader.read([0])[0], chosen.row
    groups, (which,) = unique_ids(chosen.group)
    histories = reader.read(groups)
    bases = np.cumsum([0, *(reader.group_rows[group] for group in groups.tolist())])
    return joined([histories[int(group)] for group in groups]), bases[which] + chosen.row
