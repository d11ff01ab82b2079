"""Held-out histories of one rank: what to encode, what to mask, what to find. No shuffling, every row exactly once.

Row groups are dealt to the ranks in turn. All ranks yield the same number of batches, the last ones empty where a rank has less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from models.batch import HistoryBatch, build_batch
from trainer.stream.row_groups import PackedHistories, RowGroupReader, gather, joined

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
        """The same on every rank: what the rank with the most batches needs."""
        return max(
            sum(-(-self._rows_of(bundle) // self._share) for bundle in self._bundles(rank))
            for rank in range(self.world_size)
        )

    def batches(self) -> Iterator[HeldOutBatch]:
        """Batches of at most batch_size / world_size rows; rows without targets in the split are left out."""
        count = 0
        for bundle in self._bundles(self.rank):
            held = self.reader.read(bundle)
            packed = joined([held[group] for group in bundle])
            row_ids = np.concatenate([self.reader.first_rows[g] + np.arange(self.reader.group_rows[g]) for g in bundle])
            for start in range(0, row_ids.size, self._share):
                yield self._batch(packed, row_ids, np.arange(start, min(start + self._share, row_ids.size)))
                count += 1
        for _ in range(count, self.num_batches()):
            yield self._empty()

    @property
    def _share(self) -> int:
        return max(1, self.batch_size // self.world_size)

    def _rows_of(self, groups: list[int]) -> int:
        return sum(self.reader.group_rows[group] for group in groups)

    def _bundles(self, rank: int) -> list[list[int]]:
        """A rank's row groups, small ones put together until they fill a batch."""
        bundles: list[list[int]] = []
        for group in range(rank, len(self.reader.group_rows), self.world_size):
            if not bundles or self._rows_of(bundles[-1]) >= self._share:
                bundles.append([])
            bundles[-1].append(group)
        return bundles

    def _batch(self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray) -> HeldOutBatch:
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
            batch=build_batch(row_ids[rows], offsets, recent, NOTHING, NOTHING, None),
            row_ids=row_ids[rows],
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
