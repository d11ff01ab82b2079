"""Attention of new events to earlier ones with kept keys and values, so that a history is not encoded again for each new event.

Under a causal mask no event changes what an earlier one computed. So the keys and values of earlier events stay valid in every
layer, as long as their places do: positions must count from the oldest event, and no event may have been dropped.

Shapes: B histories, P past events, N new events, G heads of keys and values, K head width, V width of values.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.attention.blocks import AttentionContext, HistoryBlock
from models.attention.config import AttentionConfig
from models.batches.jagged import JaggedLayout


@dataclass(frozen=True)
class PastEvents:
    """Kept keys, values and times of the events of B histories."""

    offsets: Tensor  # (B + 1,) int64, bounds of the histories
    times: Tensor | None  # (P,) int64, seconds from the first event of each history; None: no part uses times
    keys: tuple[Tensor, ...] = ()  # (P, G, K) by layer, in the order in which layers attend
    values: tuple[Tensor, ...] = ()  # (P, G, V) by layer

    @property
    def num_events(self) -> int:
        """Return P."""
        return int(self.offsets[-1])


def nothing_past(num_histories: int, with_times: bool) -> PastEvents:
    """Return what is kept of histories without events."""
    times = torch.zeros(0, dtype=torch.int64) if with_times else None
    return PastEvents(torch.zeros(num_histories + 1, dtype=torch.int64), times)


@dataclass
class ContinuedContext(AttentionContext):
    """A context in which the events of the batch follow past ones. It collects the keys and values of each layer.

    The layers must attend in the same order in each pass.
    """

    past: PastEvents = field(default_factory=lambda: nothing_past(0, False))
    _keys: list[Tensor] = field(default_factory=list)
    _values: list[Tensor] = field(default_factory=list)

    def with_past(self, key_NGK: Tensor, value_NGV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the past events followed by those of the new ones, and keep both."""
        layer = len(self._keys)
        if self.past.keys:
            key_NGK = torch.cat((self.past.keys[layer], key_NGK))
            value_NGV = torch.cat((self.past.values[layer], value_NGV))
        self._keys.append(key_NGK)
        self._values.append(value_NGV)
        return key_NGK, value_NGV

    def kept(self, num_kept: Tensor) -> PastEvents:
        """Return the past of a later pass, after all layers have attended.

        num_kept: (B,) int64, number of new events of each history, the oldest ones, that are final.
        """
        past_lengths = self.past.offsets.diff()
        index = _interleaved(self.past.offsets, past_lengths, self.layout.offsets, num_kept)
        offsets = torch.cat((self.past.offsets[:1], (past_lengths + num_kept).cumsum(0)))
        times = None
        if self.past.times is not None and self.times is not None:
            times = torch.cat((self.past.times, self.times))[index]
        keys, values = (tuple(layer[index] for layer in layers) for layers in (self._keys, self._values))
        return PastEvents(offsets, times, keys, values)

    @property
    def places(self) -> Tensor:
        """Return the place of each new event in its whole history, from 0, (N,) int64."""
        before = self.past.offsets.diff()
        return self.layout.positions + before.repeat_interleave(self.lengths, output_size=self.layout.num_events)

    @property
    def longest(self) -> int:
        """Return the number of events of the longest whole history."""
        return int((self.past.offsets.diff() + self.lengths).max()) if self.lengths.numel() else 0

    def blocks(self, config: AttentionConfig) -> list[HistoryBlock]:
        """Return one block with a row per history: queries are the new events, keys all of them."""
        assert config.mask == "causal", "earlier events must not depend on later ones"
        window = self.window(config)
        key = (config.mask, window, config.num_global)
        if key not in self._blocks:
            self._blocks[key] = [_block(self.past.offsets, self.layout, config, window)]
        return self._blocks[key]

    def ages(self, block: HistoryBlock, form: str) -> Tensor:
        """Return the input of a time bias, (B, Q, K): the time from each key to the query's request."""
        assert self.times is not None
        assert self.past.times is not None
        whole = AttentionContext(self.layout, torch.cat((self.past.times, self.times)), self.request_times)
        return whole.ages(block, form)


def _interleaved(past: Tensor, num_past: Tensor, new: Tensor, num_new: Tensor) -> Tensor:
    """Return the places of the first events of each history among all past events followed by all new ones."""
    pieces = torch.stack((num_past, num_new), dim=1).reshape(-1)
    starts = torch.stack((past[:-1], new[:-1] - new[0] + past[-1]), dim=1).reshape(-1)
    total = int(pieces.sum())
    first = (starts - (pieces.cumsum(0) - pieces)).repeat_interleave(pieces, output_size=total)
    return first + torch.arange(total)


def _block(past: Tensor, layout: JaggedLayout, config: AttentionConfig, window: int | None) -> HistoryBlock:
    new = layout.offsets - layout.offsets[0]
    num_past, num_new = past.diff(), new.diff()
    query = torch.arange(int(num_new.max()) if num_new.numel() else 0)
    key = torch.arange(int((num_past + num_new).max()) if num_new.numel() else 0)
    is_query = query < num_new[:, None]
    is_key = key < (num_past + num_new)[:, None]
    of_past = key < num_past[:, None]
    key_gather = torch.where(of_past, past[:-1, None] + key, past[-1] + new[:-1, None] + key - num_past[:, None])
    distance = (num_past[:, None] + query)[:, :, None] - key[None, None, :]
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
        if config.num_global:
            visible = visible | ((key < config.num_global) & (distance >= 0))
    # Padding among the queries sees the first key, so that no row of weights is empty.
    visible = (visible & is_key[:, None]) | (~is_query[:, :, None] & (key == 0))
    block_index = is_query.reshape(-1).nonzero().squeeze(1)
    query_gather = torch.where(is_query, new[:-1, None] + query, 0)
    return HistoryBlock(
        query_gather,
        torch.where(is_key, key_gather, 0),
        query_gather.reshape(-1)[block_index],
        block_index,
        distance,
        visible,
        triangular=False,
    )
