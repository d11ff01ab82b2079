"""Dense blocks of queries and keys that define which events attend to which. Attention is padded here only.

A block is R rows of Q queries that attend to the same K keys. Without a window, a row is a whole history, of a bucket of
similar lengths. With a window, it is a piece of a history and its visible neighbours, so that the cost is linear in the window.
Every event of the batch is a query in exactly one row. Where only the last or newest events are asked for, a row is a whole
history with these as queries.

Shapes: N total events, M candidates, n histories that are not empty, R rows, Q queries and K keys of a row.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from models.attention.bias import prepare_ages
from models.attention.candidates import CandidateContext
from models.attention.config import AttentionConfig
from models.attention.rotary import turns_of
from models.batches.jagged import Bucket, JaggedLayout, MergedEvents, NewestEvents, real_places
from models.compiled.attention import AttentionKernel
from models.compiled.layers import LayerKernels


@dataclass(frozen=True)
class HistoryBlock:
    """R rows of Q queries and K keys of the same histories."""

    query_gather: Tensor  # (R, Q), queries: packed events, or with the last events alone histories; 0 for padding
    key_gather: Tensor  # (R, K), packed events, 0 for padding; the same tensor if queries are the keys
    scatter: Tensor  # (q,), the queries here, as in query_gather
    block_index: Tensor  # (q,), their places in the flat block
    distance: Tensor  # (1 or R, Q, K) int64, place of the query minus that of the key
    visible: Tensor  # (1 or R, Q, K) bool
    triangular: bool  # keys are the queries and the mask is causal: row q sees the keys up to q
    counted: Tensor | None = None  # (N,) bool, queries that a penalty counts; None: all

    @property
    def may_be_blind(self) -> bool:
        """Return whether a query can see nothing. An event always sees itself."""
        return False

    def last_key(self, rows: slice, queries: slice) -> int:
        """Return the number of keys that some rows and queries need. No key after these is visible."""
        return queries.stop if self.triangular else self.key_gather.shape[1]

    def pairs(self, rows: slice, queries: slice, stop: int) -> tuple[Tensor, Tensor]:
        """Return (distance, visible) of some rows and queries, and the keys before `stop`; each (1 or r, q, stop)."""
        distance, visible = (
            pairs[rows if pairs.shape[0] > 1 else slice(None), queries, :stop]
            for pairs in (self.distance, self.visible)
        )
        return distance, visible

    @cached_property
    def is_counted(self) -> Tensor:
        """Return the entries that a penalty counts, (R, Q) bool: events, no padding."""
        real = real_places(self.block_index, *self.query_gather.shape)
        return real if self.counted is None else real & self.counted[self.query_gather]


@dataclass
class AttentionContext:
    """State that all blocks of an encoder share for one batch."""

    layout: JaggedLayout
    times: Tensor | None = None  # (N,) int64; None: no part uses times
    # (N,) int64, when each event's successor is requested, not before the event's own time; of outputs "last" (n,), those of the
    # last events
    request_times: Tensor | None = None
    # candidates that pass through the blocks; they follow the events in all tensors
    candidates: CandidateContext | None = None
    # the rows that a layer returns: events and candidates (N + M), the candidates (M), the last event of each history that is not
    # empty (n), or its newest events (n). No later layer uses the other rows
    outputs: Literal["all", "candidates", "last", "newest"] = "all"
    # of outputs "last" and "newest": these events (n,), ascending, and how many a history has at most
    chosen: Tensor | None = None
    most_chosen: int = 1
    # number of events, the most recent and itself, that an event attends to at most; None: no limit
    reach: int | None = None
    # (N,) bool, events that a penalty counts, of outputs "last" (n,); None: all
    counted: Tensor | None = None
    # (N,) int64, these events among those of the batch, if they are the newest ones of its histories; of merged events the newest
    # one of each token; None: all
    events: Tensor | None = None
    # whether events are tokens, each of one event or of adjacent events that were merged
    has_tokens: bool = False
    _blocks: dict[tuple[str, int | None, int], list[HistoryBlock]] = field(default_factory=dict)
    _ages: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    _turns: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)
    # the compiled kernel of causal attention, if it is to be used
    kernel: AttentionKernel | None = None
    # the compiled layers between matrix products, if they are to be used
    layer_kernels: LayerKernels | None = None
    masks: dict[Any, Any] = field(default_factory=dict)  # cache of the paths with kernels, shared by layers

    def narrowed_to_candidates(self) -> "AttentionContext":
        """Return the context of a last layer, of which only the candidates are used."""
        return replace(self, outputs="candidates")

    def narrowed_to_last(self) -> "AttentionContext":
        """Return the context of a last layer, of which only the last event of each history is used."""
        return self._narrowed_to("last", self.layout.last, 1)

    def narrowed_outputs(self, newest: NewestEvents) -> "AttentionContext":
        """Return the context of a layer of which only the newest events are used. It receives all events."""
        return self._narrowed_to("newest", newest.index, newest.number)

    def _narrowed_to(self, outputs: Literal["last", "newest"], chosen: Tensor, most: int) -> "AttentionContext":
        return replace(
            self,
            outputs=outputs,
            chosen=chosen,
            most_chosen=most,
            request_times=None if self.request_times is None else self.request_times[chosen],
            counted=None if self.counted is None else self.counted[chosen],
            _blocks={},
            _ages={},
            masks={},
        )

    def narrowed_to_newest(self, newest: NewestEvents) -> "AttentionContext":
        """Return the context of layers that receive only these events."""
        return self._of_rows(newest.index, newest.layout)

    def of_tokens(self, merged: MergedEvents) -> "AttentionContext":
        """Return the context of layers that receive these tokens. A token has the times of its newest event."""
        return replace(self._of_rows(merged.newest_event, merged.layout), has_tokens=True)

    def _of_rows(self, events: Tensor, layout: JaggedLayout) -> "AttentionContext":
        assert self.candidates is None, "candidates of one history end at different events"
        assert self.outputs == "all"
        times, requested, counted = (
            None if values is None else values.index_select(0, events)
            for values in (self.times, self.request_times, self.counted)
        )
        return AttentionContext(
            *(layout, times, requested),
            reach=self.reach,
            counted=counted,
            events=events,
            kernel=self.kernel,
            layer_kernels=self.layer_kernels,
        )

    def output_rows(self, x: Tensor) -> Tensor:
        """Return the rows that a layer returns, of a tensor (N + M, ...)."""
        if self.chosen is not None:
            return x.index_select(0, self.chosen)
        return x[self.layout.num_events :] if self.outputs == "candidates" else x

    @property
    def num_output_events(self) -> int:
        """Return how many of the rows that a layer returns are events. Candidates follow them."""
        if self.chosen is not None:
            return self.chosen.shape[0]
        return 0 if self.outputs == "candidates" else self.layout.num_events

    def blocks(self, config: AttentionConfig) -> list[HistoryBlock]:
        """Return the blocks of a form of attention. They are built once for all layers of the same form."""
        window = self.window(config)
        key = (config.mask, window, config.num_global)
        if key not in self._blocks:
            self._blocks[key] = _blocks(self, config, window)
        return self._blocks[key]

    def window(self, config: AttentionConfig) -> int | None:
        """Return the distance from which an event no longer sees another, by the form's window and by reach; None: no limit.

        A reach beyond the longest history of the batch has no effect.
        """
        if self.reach is None or (not self.layout.traceable and self.reach >= self.longest):
            return config.window
        assert not config.num_global, "events seen from everywhere are within no reach"
        return self.reach if config.window is None else min(config.window, self.reach)

    def ages(self, block: HistoryBlock, form: str) -> Tensor:
        """Return the input of a time bias, (R, Q, K): the time from each key to the query's request."""
        assert self.times is not None
        assert self.request_times is not None
        key = (id(block), form)
        if key not in self._ages:
            requested = self.request_times[block.query_gather]
            key_times = self.times[block.key_gather]
            self._ages[key] = prepare_ages((requested[:, :, None] - key_times[:, None, :]).clamp_(min=0), form)
        return self._ages[key]

    def turns(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of rotary positions for heads of this width. They are computed once for all layers."""
        if (width, dtype) not in self._turns:
            self._turns[width, dtype] = turns_of(self.places, width, dtype)
        return self._turns[width, dtype]

    @property
    def places(self) -> Tensor:
        """Return the place of each event in its history, from 0, (N,) int64.

        Those of candidates follow, each after the events that it sees.
        """
        own = self.layout.positions
        return own if self.candidates is None else torch.cat((own, self.candidates.layout.history_end))

    @property
    def longest(self) -> int:
        """Return the number of events of the longest history, from the host."""
        return max((bucket.gather.shape[1] for bucket in self.layout.buckets), default=0)

    @cached_property
    def lengths(self) -> Tensor:
        """Return the lengths of the histories, (B,) int64."""
        return self.layout.offsets.diff()


def _blocks(context: AttentionContext, config: AttentionConfig, window: int | None) -> list[HistoryBlock]:
    layout = context.layout
    if context.chosen is not None:
        blocks = [_chosen_of(bucket, context.chosen, context.most_chosen, config, window) for bucket in layout.buckets]
    # A window of half of the longest history saves nothing: its rows would have the same length.
    elif window is None or layout.traceable or context.longest <= 2 * window:
        blocks = [_whole(bucket, config, window) for bucket in layout.buckets]
    else:
        blocks = [_windowed(layout, config, window)]
    return blocks if context.counted is None else [replace(block, counted=context.counted) for block in blocks]


def _whole(bucket: Bucket, config: AttentionConfig, window: int | None) -> HistoryBlock:
    """Build a block of whole histories of a bucket, right-padded. Under a causal mask no real event sees padding."""
    rows, longest = bucket.gather.shape
    place = torch.arange(longest, device=bucket.gather.device)
    distance = (place[:, None] - place[None, :])[None]
    visible = _within(distance, config, window)
    if config.num_global:
        visible = visible | _seen_globally(distance, place.expand(1, longest), config)
    if config.mask == "bidirectional":
        visible = visible & real_places(bucket.block_index, rows, longest)[:, None]
    triangular = config.mask == "causal" and window is None
    return HistoryBlock(bucket.gather, bucket.gather, bucket.scatter, bucket.block_index, distance, visible, triangular)


def _chosen_of(bucket: Bucket, chosen: Tensor, most: int, config: AttentionConfig, window: int | None) -> HistoryBlock:
    """Build a block of whole histories of a bucket, of which the newest events are the only queries.

    Args:
        bucket: the histories.
        chosen: the newest events of all histories, (n,).
        most: how many of them a history has at most.
        config: the form of attention.
        window: its window.
    """
    rows, longest = bucket.gather.shape
    start = bucket.gather[:, 0]
    length = bucket.gather.amax(dim=1) - start + 1  # padding points at event 0
    number = torch.arange(min(most, longest), device=start.device)
    kept = length.clamp(max=most)[:, None]
    is_query = number < kept
    # Padding among the queries is the last event, so that it sees some event.
    query_place = torch.where(is_query, length[:, None] - kept + number, length[:, None] - 1)
    place = torch.arange(longest, device=start.device).expand(1, longest)
    distance = query_place[:, :, None] - place[:, None]
    visible = _within(distance, config, window)
    if config.num_global:
        visible = visible | _seen_globally(distance, place, config)
    last = (length - 1)[:, None, None]
    visible = visible & (place <= last)  # keys after the last event are padding
    query = torch.searchsorted(chosen, start[:, None] + query_place)
    # One query per history is never padding, so no size depends on the data.
    row = torch.arange(rows, device=start.device)
    block_index = row if most == 1 else is_query.view(-1).nonzero().squeeze(1)
    scatter = query.view(-1)[block_index]
    return HistoryBlock(query, bucket.gather, scatter, block_index, distance, visible, triangular=False)


def _windowed(layout: JaggedLayout, config: AttentionConfig, window: int) -> HistoryBlock:
    """Build a block of pieces of `window` queries.

    The keys of a piece are the pieces that its window reaches, and the events that all see.
    """
    offsets = layout.offsets - layout.offsets[0]
    device = layout.offsets.device
    lengths = offsets.diff()
    pieces = (lengths + window - 1) // window
    history = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), pieces)
    first = torch.arange(history.numel(), device=device) - (pieces.cumsum(0) - pieces)[history]
    start = offsets[history][:, None]
    length = lengths[history][:, None]
    query_place = first[:, None] * window + torch.arange(window, device=device)
    key_place = (first[:, None] - 1) * window + torch.arange(
        window * (2 if config.mask == "causal" else 3), device=device
    )
    key_real = (key_place >= 0) & (key_place < length)
    distance = query_place[:1, :, None] - key_place[:1, None, :]  # the same in all rows
    visible = _within(distance, config, window) & key_real[:, None, :]
    if config.num_global:
        oldest = torch.arange(config.num_global, device=device).expand(history.numel(), -1)
        far = query_place[:, :, None] - oldest[:, None, :]
        # Those inside the window are already among the other keys.
        extra = _seen_globally(far, oldest, config) & ~_within(far, config, window) & (oldest < length)[:, None, :]
        key_place = torch.cat((key_place, oldest), dim=1)
        key_real = torch.cat((key_real, oldest < length), dim=1)
        distance = torch.cat((distance.expand(far.shape[0], -1, -1), far), dim=2)
        visible = torch.cat((visible, extra), dim=2)
    query_real = query_place < length
    query_gather = torch.where(query_real, start + query_place, 0)
    key_gather = torch.where(key_real, start + key_place, 0)
    block_index = query_real.view(-1).nonzero().squeeze(1)
    scatter = query_gather.view(-1)[block_index]
    return HistoryBlock(query_gather, key_gather, scatter, block_index, distance, visible, triangular=False)


def _within(distance: Tensor, config: AttentionConfig, window: int | None) -> Tensor:
    """Return the keys that mask and window make visible."""
    causal = config.mask == "causal"
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible = visible & ((distance if causal else distance.abs()) < window)
    return visible


def _seen_globally(distance: Tensor, key_place: Tensor, config: AttentionConfig) -> Tensor:
    """Return the keys that are among the oldest events, and under a causal mask not later than the query."""
    oldest = key_place[:, None, :] < config.num_global
    return oldest & (distance >= 0) if config.mask == "causal" else oldest.expand_as(distance)
