"""Held-out histories of one rank: what to encode, what to mask, what to find. No shuffling, every row exactly once.

Row groups are dealt to the ranks in turn. All ranks yield the same number of batches, the last ones empty where a rank has less.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from models.batches.history_batch import HistoryBatch, as_tensor, build_batch, with_inputs
from models.features.catalogue import Catalogue
from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.dataset.splits import Split
from trainer.data.stream.columns import gather, stretches, take_all
from trainer.data.stream.masking import times_before
from trainer.data.stream.row_groups import PackedHistories, RowGroupReader, joined

NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class HeldOutBatch:
    """B users that have targets in the split. All arrays int64.

    batch: their histories up to the split, truncated for the encoder, with what the model is told besides, and a masked event
    behind each if masked events are what the model restores; history_lengths: (B,) before truncation.
    seen: items of the whole history, packed, seen_offsets (B + 1,).
    targets: held-out items, target_offsets (B + 1,), and their times where the reader was asked for them.
    """

    batch: HistoryBatch
    row_ids: np.ndarray
    users: pa.Array
    history_lengths: np.ndarray
    seen: np.ndarray
    seen_offsets: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray
    target_times: np.ndarray | None = None

    def to(self, device: torch.device) -> "HeldOutBatch":
        """The batch on the device; what is scored afterwards stays on the host."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class Deal:
    """How the rows of a dataset are dealt to ranks, and a rank's to batches of at most batch_size / world_size rows.

    groups: the row groups that are dealt, none for all.
    """

    reader: RowGroupReader
    batch_size: int
    rank: int
    world_size: int
    groups: tuple[int, ...] | None = None

    def num_batches(self) -> int:
        """The same on every rank: what the rank with the most batches needs."""
        return max(
            sum(-(-self._rows_of(bundle) // self._share) for bundle in self._bundles(rank))
            for rank in range(self.world_size)
        )

    def batches(self) -> Iterator[tuple[PackedHistories, np.ndarray, np.ndarray]]:
        """Packed row groups, the numbers of their rows in the dataset, and the batch's rows among them: none in the last
        batches where a rank has less than others."""
        count = 0
        for bundle in self._bundles(self.rank):
            held = self.reader.read(bundle)
            packed = joined([held[group] for group in bundle])
            row_ids = np.concatenate([self.reader.first_rows[g] + np.arange(self.reader.group_rows[g]) for g in bundle])
            for start in range(0, row_ids.size, self._share):
                yield packed, row_ids, np.arange(start, min(start + self._share, row_ids.size))
                count += 1
        for _ in range(count, self.num_batches()):
            yield self.reader.read([0])[0], NOTHING, NOTHING

    @property
    def _share(self) -> int:
        return max(1, self.batch_size // self.world_size)

    def _rows_of(self, groups: list[int]) -> int:
        return sum(self.reader.group_rows[group] for group in groups)

    def _bundles(self, rank: int) -> list[list[int]]:
        """A rank's row groups, small ones put together until they fill a batch."""
        bundles: list[list[int]] = []
        groups = range(len(self.reader.group_rows)) if self.groups is None else self.groups
        for group in groups[rank :: self.world_size]:
            if not bundles or self._rows_of(bundles[-1]) >= self._share:
                bundles.append([])
            bundles[-1].append(group)
        return bundles


@dataclass(frozen=True)
class HeldOut:
    """The held-out part of a dataset as one rank sees it."""

    reader: RowGroupReader
    catalogue: Catalogue
    split: Split
    targets: Literal["all", "first"]
    max_history: int
    batch_size: int
    rank: int
    world_size: int
    masks_items: bool = False

    @property
    def _deal(self) -> Deal:
        return Deal(self.reader, self.batch_size, self.rank, self.world_size)

    def num_batches(self) -> int:
        """The same on every rank."""
        return self._deal.num_batches()

    def batches(self) -> Iterator[HeldOutBatch]:
        """Batches of at most batch_size / world_size rows; rows without targets in the split are left out."""
        for packed, row_ids, rows in self._deal.batches():
            yield self._batch(packed, row_ids, rows)

    def _batch(self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray) -> HeldOutBatch:
        low, high = bounds_of(packed, self.split, packed.ends - packed.starts)
        low, high = low[rows], high[rows]
        if self.targets == "first":
            high = np.minimum(high, low + 1)
        # A history without any event before the split has nothing to attend to, and is not evaluated.
        wanted = (high > low) & (low > 0)
        return self._batch_of(packed, row_ids, rows[wanted], low[wanted], high[wanted])

    def _batch_of(
        self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> HeldOutBatch:
        start = packed.starts[rows]
        seen, seen_offsets = gather(packed.items, start, start + low)
        target_places, target_offsets = stretches(start + low, start + high)
        # A masked event stands at the place of the first event that is held out: of that, nothing but its time is ever seen.
        masks = int(self.masks_items)
        recent, offsets = stretches(start + np.maximum(0, low - self.max_history + masks), start + low + masks)
        items, masked = packed.items.take(recent), np.zeros(recent.size, dtype=np.bool_)
        if self.masks_items:
            masked[offsets[1:] - 1] = True
            items[masked] = UNKNOWN_ID
        batch = build_batch(row_ids[rows], offsets, items, NOTHING, NOTHING, self.catalogue, False)
        if self.masks_items:
            batch = replace(batch, masked=as_tensor(masked))
        times = next_times = None
        if packed.times is not None:
            # After the last event of a history comes the first that is held out: all of its targets are asked for then.
            times, next_times = packed.times.take(recent), packed.times.take(recent + 1 - masks)
            if self.masks_items and not self.catalogue.inputs.has_request_time:
                times = times_before(times, masked, offsets)
        features, user_features = take_all(packed.features, recent), take_all(packed.user_features, rows)
        batch = with_inputs(batch, self.catalogue, features, user_features, times, next_times)
        return HeldOutBatch(
            batch=batch,
            row_ids=row_ids[rows],
            users=packed.users.take(pa.array(rows)) if packed.users is not None else pa.nulls(rows.size),
            history_lengths=low,
            seen=seen.astype(np.int64),
            seen_offsets=seen_offsets,
            targets=packed.items.take(target_places).astype(np.int64),
            target_offsets=target_offsets,
            target_times=None if packed.times is None else packed.times.take(target_places),
        )


def bounds_of(packed: PackedHistories, split: Split, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the targets of the split begin and end in each row, of which there are `lengths` in all."""
    if split == "validation":
        return packed.train_end, packed.validation_end
    return packed.validation_end, lengths
