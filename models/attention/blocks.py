"""Which events look at which, as dense blocks: the only place where attention is padded.

A block is R rows of Q queries that look at the same K keys each. Without a window a row is a whole history, of a bucket of
similar lengths; with one it is a piece of a history and the neighbours that it can see, so that the cost is linear in the window.
Every event of the batch is a query in exactly one row.

Shapes: N total events, R rows, Q queries and K keys of a row.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from models.attention.bias import prepare_ages
from models.attention.candidates import CandidateContext
from models.attention.config import AttentionConfig
from models.batches.jagged import Bucket, JaggedLayout, real_places


@dataclass(frozen=True)
class Block:
    """query_gather (R, Q), key_gather (R, K): packed events, 0 where there is none; the same tensor if queries are the keys.

    scatter, block_index: (n,) packed events that are queries here, and where they sit in the flat block. distance: (1 or R, Q, K)
    int64, place of the query minus that of the key. visible: (1 or R, Q, K) bool; triangular: it is causality alone, of keys that
    are the queries, so that row q sees the keys up to q. counted: (N,) bool, the events whose weights a penalty counts, none for
    all.
    """

    query_gather: Tensor
    key_gather: Tensor
    scatter: Tensor
    block_index: Tensor
    distance: Tensor
    visible: Tensor
    triangular: bool
    counted: Tensor | None = None

    @property
    def may_be_blind(self) -> bool:
        """Whether a query may see nothing at all: an event always sees itself."""
        return False

    def last_key(self, rows: slice, queries: slice) -> int:
        """How many keys have to be looked at for some rows and queries: none behind them is visible."""
        return queries.stop if self.triangular else self.key_gather.shape[1]

    def pairs(self, rows: slice, queries: slice, stop: int) -> tuple[Tensor, Tensor]:
        """(distance, visible) of some rows and queries, and the keys before `stop`; each (1 or r, q, stop)."""
        distance, visible = (
            pairs[rows if pairs.shape[0] > 1 else slice(None), queries, :stop]
            for pairs in (self.distance, self.visible)
        )
        return distance, visible

    @cached_property
    def is_counted(self) -> Tensor:
        """(R, Q) bool: whether an event is there, and no padding, whose weights a penalty counts."""
        real = real_places(self.block_index, *self.query_gather.shape)
        return real if self.counted is None else real & self.counted[self.query_gather]


@dataclass
class AttentionContext:
    """What all blocks of an encoder share for one batch. times, request_times: (N,) int64, none where no part asks for them.

    request_times: the moment at which each event's successor is asked for, not before the event's own. candidates: those that pass
    through the blocks beside the events, behind which they stand in all tensors; only_candidates: in a layer after which nobody
    asks for events, so that candidates alone are what comes out. reach: how many events, the most recent up to and including
    itself, an event attends to at most, whatever a form's own window; none for no limit. counted: (N,) bool, the events whose
    weights a penalty counts, none for all. masks: what the paths of GPUs keep between layers.
    """

    layout: JaggedLayout
    times: Tensor | None = None
    request_times: Tensor | None = None
    candidates: CandidateContext | None = None
    only_candidates: bool = False
    reach: int | None = None
    counted: Tensor | None = None
    _blocks: dict[tuple[str, int | None, int], list[Block]] = field(default_factory=dict)
    _ages: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    masks: dict[Any, Any] = field(default_factory=dict)

    def blocks(self, config: AttentionConfig) -> list[Block]:
        """The blocks that a form of attention looks at; made once for all layers of the same form."""
        window = self.window(config)
        key = (config.mask, window, config.num_global)
        if key not in self._blocks:
            self._blocks[key] = _blocks(self, config, window)
        return self._blocks[key]

    def window(self, config: AttentionConfig) -> int | None:
        """Return how many places away an event no longer sees another: by the form's window and by reach; none sees all.

        A reach beyond the longest history of the batch limits nothing.
        """
        if self.reach is None or self.reach >= self.longest:
            return config.window
        assert not config.num_global, "events seen from everywhere are within no reach"
        return self.reach if config.window is None else min(config.window, self.reach)

    def ages(self, block: Block, form: str) -> Tensor:
        """(R, Q, K): how long before each query's request the key happened, as a time bias of this form looks at it."""
        assert self.times is not None
        assert self.request_times is not None
        key = (id(block), form)
        if key not in self._ages:
            asked, happened = self.request_times[block.query_gather], self.times[block.key_gather]
            self._ages[key] = prepare_ages((asked[:, :, None] - happened[:, None, :]).clamp_(min=0), form)
        return self._ages[key]

    @property
    def places(self) -> Tensor:
        """(N,) int64: of each event in its history, from 0; behind them those of candidates, which are after what they see."""
        own = self.layout.positions
        return own if self.candidates is None else torch.cat((own, self.candidates.layout.history_end))

    @property
    def longest(self) -> int:
        """Events of the longest history; known on the host."""
        return max((bucket.gather.shape[1] for bucket in self.layout.buckets), default=0)

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.layout.offsets.diff()


def _blocks(context: AttentionContext, config: AttentionConfig, window: int | None) -> list[Block]:
    layout = context.layout
    # A window of half of the longest history saves nothing: its rows would be as long.
    if window is None or context.longest <= 2 * window:
        blocks = [_whole(bucket, config, window) for bucket in layout.buckets]
    else:
        blocks = [_windowed(layout, config, window)]
    return blocks if context.counted is None else [replace(block, counted=context.counted) for block in blocks]


def _whole(bucket: Bucket, config: AttentionConfig, window: int | None) -> Block:
    """Whole histories of a bucket, right-padded: under causality no real event sees padding."""
    rows, longest = bucket.gather.shape
    place = torch.arange(longest, device=bucket.gather.device)
    distance = (place[:, None] - place[None, :])[None]
    visible = _within(distance, config, window)
    if config.num_global:
        visible = visible | _seen_globally(distance, place.expand(1, longest), config)
    if config.mask == "bidirectional":
        visible = visible & real_places(bucket.block_index, rows, longest)[:, None]
    triangular = config.mask == "causal" and window is None
    return Block(bucket.gather, bucket.gather, bucket.scatter, bucket.block_index, distance, visible, triangular)


def _windowed(layout: JaggedLayout, config: AttentionConfig, window: int) -> Block:
    """Pieces of `window` queries, each with the pieces that its window reaches into, and the globally seen events."""
    offsets, device = layout.offsets - layout.offsets[0], layout.offsets.device
    lengths = offsets.diff()
    pieces = (lengths + window - 1) // window
    history = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), pieces)
    first = torch.arange(history.numel(), device=device) - (pieces.cumsum(0) - pieces)[history]
    start, length = offsets[history][:, None], lengths[history][:, None]
    query_place = first[:, None] * window + torch.arange(window, device=device)
    key_place = (first[:, None] - 1) * window + torch.arange(
        window * (2 if config.mask == "causal" else 3), device=device
    )
    key_real = (key_place >= 0) & (key_place < length)
    distance = query_place[:1, :, None] - key_place[:1, None, :]  # alike in all rows
    visible = _within(distance, config, window) & key_real[:, None, :]
    if config.num_global:
        oldest = torch.arange(config.num_global, device=device).expand(history.numel(), -1)
        far = query_place[:, :, None] - oldest[:, None, :]
        # Those inside the window are among the other keys already.
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
    return Block(query_gather, key_gather, scatter, block_index, distance, visible, triangular=False)


def _within(distance: Tensor, config: AttentionConfig, window: int | None) -> Tensor:
    """Which keys are seen by mask and window."""
    causal = config.mask == "causal"
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible = visible & ((distance if causal else distance.abs()) < window)
    return visible


def _seen_globally(distance: Tensor, key_place: Tensor, config: AttentionConfig) -> Tensor:
    """Which keys are among the oldest events, and not later than the query under causality."""
    oldest = key_place[:, None, :] < config.num_global
    return oldest & (distance >= 0) if config.mask == "causal" else oldest.expand_as(distance)
