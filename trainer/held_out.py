"""Held-out histories of one rank: what to encode, what to mask, what to find. No shuffling, every row exactly once.

Row groups are dealt to the ranks in turn. All ranks yield the same number of batches, the last ones empty where a rank has less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from models.batch import HistoryBatch, build_batch
from trainer.row_groups import PackedHistories, RowGroupReader, gather

Split = Literal["validation", "test"]
NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class HeldOutBatch:
    """B users that have targets in the split. All arrays int64.

    batch: their histories up to the split, truncated for the encoder; history_lengths: (B,) before truncation.
    seen: items of the whole history, packed, seen_offsets (B + 1,); targets: held-out items, target_offsets (B + 1,).
    """

    batch: HistoryBatch
    row_ids: np.ndarray
    users: pa.Array
    history_lengths: np.ndarray
    seen: np.ndarray
    seen_offsets: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """The held-out part of a dataset as one rank sees it."""

    reader: RowGroupReader
    split: Split
    targets: Literal["all", "first"]
    max_history: int
    batch_size: int
    rank: int
    world_size: int

    def num_batches(self) -> int:
        """The same on every rank: what the rank with the most rows needs."""
        rows = np.asarray(self.reader.group_rows, dtype=np.int64)
        return max(self._batches_of(rows[rank :: self.world_size]) for rank in range(self.world_size))

    def batches(self) -> Iterator[HeldOutBatch]:
        """Batches of about batch_size / world_size rows; rows without targets in the split are left out."""
        groups = range(self.rank, len(self.reader.group_rows), self.world_size)
        count = 0
        for group in groups:
            packed = self.reader.read([group])[group]
            first_row = int(self.reader.first_rows[group])
            for start in range(0, packed.starts.size, self._share):
                yield self._batch(packed, first_row, np.arange(start, min(start + self._share, packed.starts.size)))
                count += 1
        for _ in range(count, self.num_batches()):
            yield self._empty()

    @property
    def _share(self) -> int:
        return max(1, self.batch_size // self.world_size)

    def _batches_of(self, group_rows: np.ndarray) -> int:
        return int((-(-group_rows // self._share)).sum())

    def _batch(self, packed: PackedHistories, first_row: int, rows: np.ndarray) -> HeldOutBatch:
        num_events = packed.ends - packed.starts
        low = (packed.train_end if self.split == "validation" else packed.validation_end)[rows]
        high = (packed.validation_end if self.split == "validation" else num_events)[rows]
        if self.targets == "first":
            high = np.minimum(high, low + 1)
        # A history without any event before the split has nothing to attend to, and is not evaluated.
        wanted = (high > low) & (low > 0)
        rows, low, high = rows[wanted], low[wanted], high[wanted]
        start = packed.starts[rows]
        seen, seen_offsets = gather(packed.items, start, start + low)
        targets, target_offsets = gather(packed.items, start + low, start + high)
        recent, offsets = gather(packed.items, start + np.maximum(0, low - self.max_history), start + low)
        users = packed.users.take(pa.array(rows)) if packed.users is not None else pa.nulls(rows.size)
        return HeldOutBatch(
            batch=build_batch(first_row + rows, offsets, recent, NOTHING, NOTHING, None),
            row_ids=first_row + rows,
            users=users,
            history_lengths=low,
            seen=seen.astype(np.int64),
            seen_offsets=seen_offsets,
            targets=targets.astype(np.int64),
            target_offsets=target_offsets,
        )

    def _empty(self) -> HeldOutBatch:
        offsets = np.zeros(1, dtype=np.int64)
        batch = build_batch(NOTHING, offsets, NOTHING, NOTHING, NOTHING, None)
        return HeldOutBatch(batch, NOTHING, pa.nulls(0), NOTHING, NOTHING, offsets, NOTHING, offsets)
