"""The layout of a jagged batch, and the only module that pads.

Shapes: B histories, N total events, L longest history of a bucket, D width.

A jagged tensor is a pair (values (N, ...), offsets (B + 1,)): history b owns values[offsets[b]:offsets[b + 1]]. Only attention
kernels need padding. `JaggedLayout` groups histories of similar length, so that a padded (rows, L, D) block wastes little, and
keeps the gather index back to the packed values. `padded` and `unpadded` convert between the two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batches.transfer import to_device

NUM_BUCKETS = 4
# A bucket costs a few calls of each operation. In a large batch that is little compared with the padding that it saves: with 4
# buckets 15 % of the slots are padding for 512 histories of MovieLens-1M, with 8 it is 7 %.
MANY_BUCKETS = 8
MANY_HISTORIES = 256


@dataclass(frozen=True)
class Bucket:
    """Histories of similar length as one right-padded block."""

    gather: Tensor  # (rows, L) int64, position in the packed values; padding points at row 0
    scatter: Tensor  # (n,) int64, packed positions of the real events
    block_index: Tensor  # (n,) int64, their places in the flat block


@dataclass(frozen=True)
class JaggedLayout:
    """Offsets and buckets of a jagged batch. Buckets cover every event exactly once; empty histories are in no bucket."""

    offsets: Tensor  # (B + 1,) int64
    positions: Tensor  # (N,) int64, place of each event in its history, the oldest is 0
    buckets: tuple[Bucket, ...]
    traceable: bool = False  # one bucket, from which torch.export can trace a program (models.attention.traceable)
    _newest: dict[int, "NewestEvents"] = field(default_factory=dict, compare=False, repr=False)
    _merged: dict[tuple[int, int], "MergedEvents"] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_events(self) -> int:
        return self.positions.numel()

    @cached_property
    def gather(self) -> Tensor:
        """Return the events (P,) int64 of the flat blocks of all buckets, in order. Padding points at event 0."""
        return torch.cat([bucket.gather.view(-1) for bucket in self.buckets] or [self.positions])

    @cached_property
    def slots(self) -> Tensor:
        """Return the index of each event in `gather`, (N,) int64."""
        slots = torch.empty_like(self.positions)
        first = 0
        for bucket in self.buckets:
            slots[bucket.scatter] = bucket.block_index + first
            first += bucket.gather.numel()
        return slots

    @cached_property
    def last(self) -> Tensor:
        """Return the last event of each history that is not empty, (n,) int64, in the order of the histories."""
        ends = self.offsets[1:] - self.offsets[0]
        return (ends - 1)[self.offsets.diff() > 0]

    def newest(self, number: int) -> "NewestEvents":
        """Return the `number` newest events of each history, or all of a shorter one. They are laid out once, on the host."""
        if number not in self._newest:
            self._newest[number] = _newest_events(self.offsets, number)
        return self._newest[number]

    def merged(self, size: int, recent: int) -> "MergedEvents":
        """Return the tokens of each history: groups of `size` adjacent older events, and the `recent` newest events.

        They are laid out once, on the host.
        """
        if (size, recent) not in self._merged:
            self._merged[size, recent] = _merged_events(self.offsets, size, recent)
        return self._merged[size, recent]


@dataclass(frozen=True)
class NewestEvents:
    """The newest events of each history of a batch, as a batch of their own."""

    number: int  # at most of each history
    index: Tensor  # (n,) int64, these events among those of the batch, ascending
    layout: JaggedLayout  # of these events; it has the same number of histories


def _newest_events(offsets: Tensor, number: int) -> NewestEvents:
    bounds = offsets.cpu().numpy()
    ends = bounds[1:] - bounds[0]
    kept = np.minimum(np.diff(bounds), number)
    own = np.concatenate(([0], np.cumsum(kept)))
    index = np.arange(own[-1]) + np.repeat(ends - kept - own[:-1], kept)
    return to_device(NewestEvents(number, torch.from_numpy(index), layout_of(own)), offsets.device)


@dataclass(frozen=True)
class MergedEvents:
    """Histories as tokens: groups of adjacent older events, oldest first, and then the newest events.

    Groups are counted from the newest of the older events, so only the oldest group of a history can have fewer than `size` events.
    A group has `size` slots. Its events are in the last ones.
    """

    older: Tensor  # (O,) int64, the events that are in groups, ascending
    slots: Tensor  # (O,) int64, slot of each of them among those of all G groups
    groups: JaggedLayout  # of these events, with a group in the place of a history
    rows: Tensor  # (T,) int64, the row of each token among G groups followed by all N events
    newest_event: Tensor  # (T,) int64, the newest event of each token
    layout: JaggedLayout  # of the tokens; it has the same number of histories
    # (O,) bool, of a traceable layout: which slots hold an event. Each slot has an entry in `older`
    is_event: Tensor | None = None


def _merged_events(offsets: Tensor, size: int, recent: int) -> MergedEvents:
    bounds = offsets.cpu().numpy()
    bounds = bounds - bounds[0]
    lengths = np.diff(bounds)
    num_older = np.maximum(lengths - recent, 0)
    num_groups = -(-num_older // size)
    num_tokens = num_groups + lengths - num_older
    first_group, first_token, first_older = (
        np.concatenate(([0], np.cumsum(counts))) for counts in (num_groups, num_tokens, num_older)
    )
    place = np.arange(first_older[-1]) - np.repeat(first_older[:-1], num_older)  # of an older event in its history
    older = np.repeat(bounds[:-1], num_older) + place
    slots = np.repeat(first_group[1:] * size - num_older, num_older) + place
    group_sizes = np.bincount(slots // size, minlength=first_group[-1])
    number = np.arange(first_token[-1]) - np.repeat(first_token[:-1], num_tokens)  # of a token in its history
    from_end = np.repeat(num_tokens, num_tokens) - number - 1
    newer_groups = from_end - np.repeat(lengths - num_older, num_tokens)  # than this group; below 0 for an event
    event = np.repeat(bounds[1:], num_tokens) - 1 - from_end
    last_of_group = np.repeat(bounds[:-1] + num_older, num_tokens) - 1 - newer_groups * size
    group = np.repeat(first_group[:-1], num_tokens) + number
    merged = MergedEvents(
        torch.from_numpy(older),
        torch.from_numpy(slots),
        layout_of(np.concatenate(([0], np.cumsum(group_sizes)))),
        torch.from_numpy(np.where(newer_groups >= 0, group, first_group[-1] + event)),
        torch.from_numpy(np.where(newer_groups >= 0, last_of_group, event)),
        layout_of(first_token),
    )
    return to_device(merged, offsets.device)


def layout_of(offsets: np.ndarray, num_buckets: int | None = None) -> JaggedLayout:
    """Lay out a jagged batch from its offsets ((B + 1,) int64), with at most `num_buckets` padded blocks.

    By default these are NUM_BUCKETS, and MANY_BUCKETS for batches of MANY_HISTORIES or more.

    This runs on the host, outside of the step: the reader's thread calls it while the previous step computes.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(offsets)
    if num_buckets is None:
        num_buckets = NUM_BUCKETS if lengths.size < MANY_HISTORIES else MANY_BUCKETS
    positions = np.arange(offsets[-1] - offsets[0])
    positions -= np.repeat(offsets[:-1] - offsets[0], lengths)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    buckets = tuple(_bucket(rows, offsets, lengths) for rows in split_by_length(order, lengths, num_buckets))
    return JaggedLayout(torch.from_numpy(offsets), torch.from_numpy(positions), buckets)


def padded(packed: Tensor, layout: JaggedLayout) -> list[Tensor]:
    """Return the padded block (rows, L, ...) of each bucket from packed events (N, ...). Padding has no gradient."""
    flat = _Padded.apply(packed, layout.gather, layout.slots)
    blocks = flat.split([bucket.gather.numel() for bucket in layout.buckets])
    return [b.view(*bucket.gather.shape, *packed.shape[1:]) for b, bucket in zip(blocks, layout.buckets, strict=True)]


def padded_parts(joint: Tensor, sizes: Sequence[int], layout: JaggedLayout) -> list[tuple[Tensor, ...]]:
    """Return the padded blocks (rows, L, size) of each bucket, of tensors that are stored next to each other.

    All parts are views of one gather of contiguous rows, and their gradients are written into one tensor.

    Args:
        joint: packed events (N, S).
        sizes: width of each part, S in total.
        layout: of the events.
    """
    if not torch.is_grad_enabled():
        return [rows.split(list(sizes), dim=-1) for rows in padded(joint, layout)]
    parts = _PaddedParts.apply(joint, tuple(sizes), layout)
    return [parts[first : first + len(sizes)] for first in range(0, len(parts), len(sizes))]


def unpadded(blocks: Iterable[Tensor], layout: JaggedLayout) -> Tensor:
    """Return packed events (N, ...) from the block (rows, L, ...) of each bucket."""
    flat = torch.cat([block.flatten(0, 1) for block in blocks])
    unpacked: Tensor = _Unpadded.apply(flat, layout.slots)
    return unpacked


# Every event has exactly one slot, so the gradient of one direction is a gather and that of the other a copy. Autograd does not
# know this of an index: in both directions it would write a tensor of zeros and add to it.


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, gather: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return packed.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Unpadded.apply(*gradient, *ctx.saved_tensors), None, None


class _Unpadded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.num_slots = flat.shape[0]
        return flat.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        zeros = gradient[0].new_zeros((ctx.num_slots, *gradient[0].shape[1:]))
        return zeros.index_copy_(0, slots, gradient[0]), None


class _PaddedParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor, sizes: tuple[int, ...], layout: JaggedLayout) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        ctx.layout = layout
        return tuple(_cut(joint.index_select(0, layout.gather), sizes, layout))

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        layout: JaggedLayout = ctx.layout
        flat = gradients[0].new_empty((layout.gather.numel(), sum(ctx.sizes)))
        for part, gradient in zip(_cut(flat, ctx.sizes, layout), gradients, strict=True):
            part.copy_(gradient)
        return flat.index_select(0, layout.slots), None, None


def _cut(flat: Tensor, sizes: tuple[int, ...], layout: JaggedLayout) -> Iterator[Tensor]:
    """Yield the parts (rows, L, size) of each bucket as views of the flat blocks (P, S)."""
    blocks = flat.split([bucket.gather.numel() for bucket in layout.buckets])
    for block, bucket in zip(blocks, layout.buckets, strict=True):
        yield from block.view(*bucket.gather.shape, flat.shape[1]).split(sizes, dim=-1)


def split_by_length(
    order: np.ndarray, lengths: np.ndarray, num_buckets: int, bucket_cost: float = 0.0
) -> list[np.ndarray]:
    """Cut rows, `order`ed by length, into pieces with the smallest padded area. Cuts are at quantiles of the length.

    Args:
        order: rows by ascending length.
        lengths: of all rows, 1 at least.
        num_buckets: number of pieces at most.
        bucket_cost: the area that costs as much as one more bucket.

    Returns:
        At most num_buckets pieces of `order`.
    """
    if order.size == 0:
        return []
    sorted_lengths = lengths[order]
    # Candidate cuts: 32 evenly spaced places suffice to come within a few percent of the best partition.
    num_pieces = min(order.size, 32)
    cuts = np.arange(num_pieces + 1) * order.size // num_pieces
    num_cuts = cuts.size
    longest = sorted_lengths[cuts[1:] - 1].astype(np.float64)
    # area[i, j]: padded area of one block from cut i to cut j + 1. Longer rows cost attention quadratically, but at
    # the widths used here the linear part dominates; the linear area is the simpler and nearly equal criterion.
    area = np.where(cuts[1:][None, :] > cuts[:-1][:, None], (cuts[1:][None, :] - cuts[:-1][:, None]) * longest, np.inf)
    best = np.full((num_buckets + 1, num_cuts), np.inf)
    best[:, 0] = 0.0
    came_from = np.zeros((num_buckets + 1, num_cuts), dtype=np.int64)
    for count in range(1, num_buckets + 1):
        total = best[count - 1, :-1][:, None] + area
        came_from[count, 1:] = total.argmin(axis=0)
        best[count, 1:] = total.min(axis=0)
    end = num_cuts - 1
    pieces = []
    count = int((best[:, end] + bucket_cost * np.arange(num_buckets + 1)).argmin()) if bucket_cost else num_buckets
    while end > 0:
        start = int(came_from[count, end])
        pieces.append(order[cuts[start] : cuts[end]])
        end = start
        count = count - 1
    return pieces[::-1]


def real_places(block_index: Tensor, rows: int, width: int) -> Tensor:
    """Return which places of a padded block hold events, (rows, width) bool.

    block_index: their places in the flat block, (n,) int64.
    """
    real = torch.zeros(rows * width, dtype=torch.bool, device=block_index.device)
    real[block_index] = True
    return real.view(rows, width)


def _bucket(rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> Bucket:
    sizes = lengths[rows]
    longest = int(sizes.max())
    first = np.cumsum(sizes) - sizes  # of each history among the events of the bucket
    events = np.arange(first[-1] + sizes[-1])
    scatter = events + np.repeat(offsets[rows] - offsets[0] - first, sizes)
    block_index = events + np.repeat(np.arange(rows.size) * longest - first, sizes)
    gather = np.zeros(rows.size * longest, dtype=np.int64)
    gather[block_index] = scatter
    return Bucket(torch.from_numpy(gather.reshape(rows.size, longest)), *map(torch.from_numpy, (scatter, block_index)))
