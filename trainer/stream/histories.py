"""Training batches of one rank: Arrow row groups in the global order, as jagged batches ready for the model.

Each step's share is cut from a chunk of steps that is gathered at once, so that no Python loop runs over rows or events.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.batch import HistoryBatch, build_batch
from models.config import ModelConfig, SampledSoftmaxConfig
from models.next_item import FIRST_ITEM
from trainer.stream.order import EpochOrder, Position
from trainer.stream.row_groups import RowGroupReader, gather

CHUNK_ROWS = 8192  # histories gathered at a time, all ranks together
EMPTY_ROW = -1  # the row id of the empty history that stands in where a rank has no share of a batch


@dataclass(frozen=True)
class Step:
    """One step's share of this rank, the epoch that it belongs to, and the place in the data after it."""

    batch: HistoryBatch
    epoch: int
    after: Position


@dataclass(frozen=True)
class TrainStream:
    """Steps from any position on. Pure data: iterating it holds the only state, and any two iterations agree."""

    reader: RowGroupReader
    model: ModelConfig
    num_item_rows: int
    batch_size: int
    seed: int
    rank: int
    world_size: int

    @property
    def num_rows(self) -> int:
        return sum(self.reader.group_rows)

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step]:
        """Every step from `start` to the end of epoch `num_epochs - 1`; the same number on every rank."""
        position = start
        while position.epoch < num_epochs:
            order = EpochOrder(self.reader.group_rows, self.seed, position.epoch)
            for step in self._epoch(order, position):
                yield step
                position = step.after

    def _epoch(self, order: EpochOrder, start: Position) -> Iterator[Step]:
        steps_per_chunk = max(1, CHUNK_ROWS // self.batch_size)
        chunk_size = steps_per_chunk * self.batch_size
        position = start
        for chunk_start in range(start.trained, self.num_rows, chunk_size):
            chunk_stop = min(chunk_start + chunk_size, self.num_rows)
            rows = order.rows(chunk_start, chunk_stop, self.rank, self.world_size)
            row_ids, starts, ends, items = self._locate(rows.group, rows.row)
            for batch_start in range(chunk_start, chunk_stop, self.batch_size):
                low, high = np.searchsorted(rows.position, (batch_start, batch_start + self.batch_size))
                negatives = self._negatives(position)
                batch = self._batch(items, row_ids[low:high], starts[low:high], ends[low:high], negatives)
                position = position.advanced(self.batch_size, self.num_rows)
                yield Step(batch, order.epoch, position)

    def _locate(self, group: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each row: its global id and where its training window lies in the concatenated items of the chunk's groups."""
        wanted, which = np.unique(group, return_inverse=True)
        if wanted.size == 0:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing, nothing
        held = self.reader.read(wanted)
        packed = [held[int(g)] for g in wanted]
        items = np.concatenate([p.items for p in packed])
        row_base = np.concatenate(([0], np.cumsum([p.starts.size for p in packed])))[which] + row
        item_base = np.concatenate(([0], np.cumsum([p.items.size for p in packed])))
        starts = np.concatenate([p.starts + base for p, base in zip(packed, item_base, strict=False)])[row_base]
        lengths = np.concatenate([p.train_end for p in packed])[row_base]
        ends = starts + lengths
        # The most recent max_history inputs, and one event more: the target of the last input.
        starts = np.maximum(starts, ends - (self.model.max_history + 1))
        return self.reader.first_rows[group] + row, starts, ends, items

    def _batch(
        self, items: np.ndarray, row_ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, negatives: np.ndarray
    ) -> HistoryBatch:
        if row_ids.size == 0:
            row_ids, starts, ends = np.asarray([EMPTY_ROW]), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        input_ends = np.maximum(ends - 1, starts)
        history, offsets = gather(items, starts, input_ends)
        target, _ = gather(items, np.minimum(starts + 1, ends), ends)
        whole_table = None if isinstance(self.model.objective, SampledSoftmaxConfig) else self.num_item_rows
        return build_batch(row_ids, offsets, history, target, negatives, whole_table)

    def _negatives(self, position: Position) -> np.ndarray:
        """Drawn from (seed, position), alike on every rank."""
        objective = self.model.objective
        if not isinstance(objective, SampledSoftmaxConfig):
            return np.zeros(0, dtype=np.int64)
        generator = np.random.default_rng([self.seed, position.epoch, 2, position.trained])
        return generator.integers(FIRST_ITEM, self.num_item_rows, objective.num_negatives)
