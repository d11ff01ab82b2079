"""Held-out histories of one rank: events to encode, items to mask, targets to rank. Unshuffled, every row exactly once.

Row groups are dealt to the ranks in turn. All ranks yield the same number of batches; the last ones of a rank may be
empty.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from models.batches.history_batch import HistoryBatch, as_tensor, build_batch, with_inputs
from models.features.catalogue import Catalogue
from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.dataset.splits import Split
from trainer.data.stream.columns import Column, gather, stretches, take_all
from trainer.data.stream.masking import times_before
from trainer.data.stream.packed import PackedHistories, joined
from trainer.data.stream.row_groups import RowGroupReader

NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class HeldOutBatch:
    """B users that have targets in the split. All arrays are int64."""

    # Histories up to the split, truncated for the encoder, with the model's further inputs. A model that restores
    # masked events gets one masked event at the end of each.
    batch: HistoryBatch
    # (B,) rows in the dataset.
    row_ids: np.ndarray
    # (B,) raw ids of the users, or nulls.
    users: pa.Array
    # (B,) lengths before truncation.
    history_lengths: np.ndarray
    # Items of the whole histories, packed.
    seen: np.ndarray
    # (B + 1,) bounds in `seen`.
    seen_offsets: np.ndarray
    # Held-out items, packed.
    targets: np.ndarray
    # (B + 1,) bounds in `targets`.
    target_offsets: np.ndarray
    # Times of the targets, if the reader reads times.
    target_times: np.ndarray | None = None
    # (B,) times of the last events before the targets, if the reader reads times.
    last_times: np.ndarray | None = None
    # (B,) events of the training part; None in batches that were not read from a dataset.
    train_lengths: np.ndarray | None = None
    # Columns of the users by feature, those of the model and others that the reader reads.
    user_features: Mapping[str, Column] = field(default_factory=dict)

    def to(self, device: torch.device) -> "HeldOutBatch":
        """Move the batch to the device; the arrays that are used after scoring stay on the host."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class Deal:
    """Assignment of a dataset's rows to ranks, and of a rank's rows to batches of at most batch_size / world_size rows."""

    # Reads row groups.
    reader: RowGroupReader
    # Rows of a batch over all ranks.
    batch_size: int
    # Number of this rank.
    rank: int
    # Number of ranks.
    world_size: int
    # Row groups that are dealt; None for all.
    groups: tuple[int, ...] | None = None

    def num_batches(self) -> int:
        """Return the number of batches, which is the same on every rank: that of the rank with the most."""
        return max(
            sum(-(-self._rows_of(bundle) // self._share) for bundle in self._bundles(rank))
            for rank in range(self.world_size)
        )

    def batches(self) -> Iterator[tuple[PackedHistories, np.ndarray, np.ndarray]]:
        """Yield packed row groups, the numbers of their rows in the dataset, and the rows of the batch among them.

        The last batches have no rows if the rank has fewer than others.
        """
        count = 0
        for bundle in self._bundles(self.rank):
            histories = self.reader.read(bundle)
            packed = joined([histories[group] for group in bundle])
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
        """Return the row groups of a rank. Small ones are combined until they fill a batch."""
        bundles: list[list[int]] = []
        groups = range(len(self.reader.group_rows)) if self.groups is None else self.groups
        for group in groups[rank :: self.world_size]:
            if not bundles or self._rows_of(bundles[-1]) >= self._share:
                bundles.append([])
            bundles[-1].append(group)
        return bundles


@dataclass(frozen=True)
class HeldOut:
    """The held-out part of a dataset, seen by one rank."""

    # Reads row groups.
    reader: RowGroupReader
    # The catalogue.
    catalogue: Catalogue
    # The split to evaluate.
    split: Split
    # Whether all events of the split are targets, or only the first.
    targets: Literal["all", "first"]
    # Most events of a history.
    max_history: int
    # Rows of a batch over all ranks.
    batch_size: int
    # Number of this rank.
    rank: int
    # Number of ranks.
    world_size: int
    # Whether the model restores masked events.
    masks_items: bool = False

    @property
    def _deal(self) -> Deal:
        return Deal(self.reader, self.batch_size, self.rank, self.world_size)

    def num_batches(self) -> int:
        """Return the number of batches, which is the same on every rank."""
        return self._deal.num_batches()

    def batches(self) -> Iterator[HeldOutBatch]:
        """Yield batches of at most batch_size / world_size rows, without rows that have no targets in the split."""
        for packed, row_ids, rows in self._deal.batches():
            yield self._batch(packed, row_ids, rows)

    def _batch(self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray) -> HeldOutBatch:
        low, high = bounds_of(packed, self.split, packed.ends - packed.starts)
        low, high = low[rows], high[rows]
        if self.targets == "first":
            high = np.minimum(high, low + 1)
        # A history without any event before the split has nothing to attend to, and is not evaluated.
        evaluated = (high > low) & (low > 0)
        return self._batch_of(packed, row_ids, rows[evaluated], low[evaluated], high[evaluated])

    def _batch_of(
        self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> HeldOutBatch:
        start = packed.starts[rows]
        seen, seen_offsets = gather(packed.items, start, start + low)
        target_places, target_offsets = stretches(start + low, start + high)
        batch = query_batch(packed, row_ids, rows, low, self.catalogue, self.max_history, self.masks_items)
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
            last_times=None if packed.times is None else packed.times.take(start + low - 1),
            train_lengths=packed.train_end[rows],
            user_features=take_all(packed.user_features, rows),
        )


def query_batch(
    packed: PackedHistories,
    row_ids: np.ndarray,
    rows: np.ndarray,
    low: np.ndarray,
    catalogue: Catalogue,
    max_history: int,
    masks_items: bool,
) -> HistoryBatch:
    """Return the batch that asks a model for the event at place `low` of each row, from the events before it.

    Nothing of that event is used but its time, which is that of the request.

    Args:
        packed: packed row groups.
        row_ids: number of each packed row in the dataset.
        rows: the rows of the batch among the packed ones, (B,).
        low: number of events before the request, (B,). Each row has an event at this place.
        catalogue: the catalogue.
        max_history: most events of a history.
        masks_items: whether the model restores masked events.
    """
    start = packed.starts[rows]
    # A masked event takes the place of the first held-out event. The model sees nothing of that event except its time.
    masks = int(masks_items)
    recent, offsets = stretches(start + np.maximum(0, low - max_history + masks), start + low + masks)
    items = packed.items.take(recent)
    masked = np.zeros(recent.size, dtype=np.bool_)
    if masks_items:
        masked[offsets[1:] - 1] = True
        items[masked] = UNKNOWN_ID
    batch = build_batch(row_ids[rows], offsets, items, NOTHING, NOTHING, catalogue, False)
    if masks_items:
        batch = replace(batch, masked=as_tensor(masked))
    times = next_times = None
    if packed.times is not None:
        # The first held-out event follows the last event of a history: all targets are requested at its time.
        times = packed.times.take(recent)
        next_times = packed.times.take(recent + 1 - masks)
        if masks_items and not catalogue.inputs.has_request_time:
            times = times_before(times, masked, offsets)
    features = take_all(packed.features, recent)
    user_features = take_all(packed.user_features, rows)
    return with_inputs(batch, catalogue, features, user_features, times, next_times)


def bounds_of(packed: PackedHistories, split: Split, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the targets of the split begin and end in each row.

    Args:
        packed: the rows.
        split: the split.
        lengths: length of each row.
    """
    if split == "validation":
        return packed.train_end, packed.validation_end
    return packed.validation_end, lengths
