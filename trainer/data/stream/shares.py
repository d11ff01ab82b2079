"""Each step's share of one rank, gathered block by block: what the streams of both tasks have in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from models.features.unique import distinct_ids
from trainer.data.stream.examples import Chosen
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import PackedHistories, RowGroupReader, joined

BLOCK_EVENTS = 1 << 16  # gathered at a time, about: what fits into a core's own cache is several times faster
EMPTY_ROW = -1  # the id of the empty history that stands in where a rank has no share of a batch


class Jagged(Protocol):
    """Examples one after another as packed arrays."""

    def sliced(self, start: int, stop: int) -> "Jagged":
        """Examples start .. stop - 1: views."""


Share = TypeVar("Share", bound=Jagged)


@dataclass(frozen=True)
class PackedStep(Generic[Share]):
    """One step's share of this rank; the epoch that it belongs to; the places in the data before and after it."""

    share: Share
    epoch: int
    before: Position
    after: Position


Batch = TypeVar("Batch", covariant=True)


@dataclass(frozen=True)
class Step(Generic[Batch]):
    """One step's share of this rank for the model; the epoch that it belongs to; the places in the data before and after it."""

    batch: Batch
    epoch: int
    before: Position
    after: Position


def packed_steps(
    reader: RowGroupReader,
    batches: GlobalBatches,
    gather: Callable[[PackedHistories, np.ndarray, Chosen], Share],
    start: Position,
    num_epochs: int,
) -> Iterator[PackedStep[Share]]:
    """Every step from `start` to the end of epoch `num_epochs - 1`; the same number on every rank. A share may be empty.

    gather: examples, given with their rows in packed row groups, as packed arrays.
    """
    for chunk in batches.chunks(start, num_epochs):
        packed, rows = read_rows(reader, chunk.chosen)
        for block in chunk.blocks(BLOCK_EVENTS // batches.examples.typical_events):
            inside = slice(block.first, block.stop)
            gathered = gather(packed, rows[inside], chunk.chosen.taken(inside))
            for step in block.steps:
                share = gathered.sliced(step.first - block.first, step.stop - block.first)
                yield PackedStep(share, chunk.epoch, step.before, step.after)  # type: ignore[arg-type]


def read_rows(reader: RowGroupReader, chosen: Chosen) -> tuple[PackedHistories, np.ndarray]:
    """The row groups of the examples as one, and the row of each example in it. Without examples, some row group."""
    if chosen.row.size == 0:
        return reader.read([0])[0], chosen.row
    groups, (which,) = distinct_ids(chosen.group)
    held = reader.read(groups)
    bases = np.cumsum([0, *(reader.group_rows[group] for group in groups.tolist())])
    return joined([held[int(group)] for group in groups]), bases[which] + chosen.row
