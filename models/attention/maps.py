"""Maps of attention weights, computed again from what the layers of a model received.

Layers do not return their weights. `recorded_layers` notes the input of each layer of a forward pass, and `maps_of` computes its
weights with the code of models.attention.tiled: multiplied by the values they give the layer's own output. Where events were
merged, the weights are those of tokens, and the events of a token share its weight evenly.

Shapes: B histories, N events, L longest history, M maps (heads, times channels), Q queries of a history: L, or 1 for the last event
or a candidate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.layer import Attention
from models.attention.target import MeanOfEvents, TargetAttention
from models.attention.terms import AttentionTerms
from models.attention.tiled import whole_maps


@dataclass(frozen=True)
class RecordedLayer:
    """A layer of attention, with the tensors and the context that it received."""

    module: Any
    """An Attention, a TargetAttention, a MeanOfEvents or an AttentionPooling."""
    inputs: tuple[Tensor, ...]
    """Vectors of events, and for target attention those of candidates."""
    context: AttentionContext | CandidateContext
    """Who attends to whom."""


@dataclass(frozen=True)
class LayerMaps:
    """The weights of one layer. The maps of the heads of the first channel come first, then those of the next."""

    weights: Tensor
    """(B, M, Q, L): history, map, query, event. Zero for events that the history does not have."""
    own: Tensor | None
    """(B, M, Q), the weight of a candidate for itself; None if candidates do not see themselves."""
    channels: tuple[str, ...]
    """"weights", and "position" or "time" for biases that are maps of their own."""
    is_candidate: bool
    """True if the queries are candidates, False if they are events."""
    only_last: bool = False
    """True if the only query is the last event."""

    @property
    def num_heads(self) -> int:
        """Number of maps of a channel."""
        return self.weights.shape[1] // len(self.channels)


@dataclass
class Recording:
    """The layers of a forward pass, in order."""

    layers: list[RecordedLayer] = field(default_factory=list)
    """The layers."""


@contextmanager
def recorded_layers(
    model: nn.Module, pooling: type[nn.Module], left_out: type[nn.Module] | None = None
) -> Iterator[Recording]:
    """Record the attention of every forward pass of the model until the context exits.

    Args:
        model: a model with attention.
        pooling: the class of attention pooling, which this package does not import.
        left_out: a class of modules with attention of their own that is not recorded.
    """
    recording = Recording()

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        *inputs, context = given
        recording.layers.append(RecordedLayer(module, tuple(inputs), context))

    kinds = (Attention, TargetAttention, MeanOfEvents, pooling)
    layers = [module for module in modules_outside(model, left_out) if isinstance(module, kinds)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def modules_outside(model: nn.Module, left_out: type[nn.Module] | None) -> Iterator[nn.Module]:
    """Yield the modules of a model, except those of a class and all within them."""
    roots = [] if left_out is None else [module for module in model.modules() if isinstance(module, left_out)]
    within = {id(part) for root in roots for part in root.modules()}
    return (module for module in model.modules() if id(module) not in within)


def maps_of(layer: RecordedLayer, offsets: Tensor) -> list[LayerMaps]:
    """Return the weights of a layer: those of events, those of candidates, or both in this order.

    Args:
        layer: the layer. With candidates, every history has exactly one.
        offsets: bounds of the histories, (B + 1,).
    """
    context = layer.context
    terms: AttentionTerms = layer.module.terms()
    if isinstance(context, CandidateContext):
        query, key, _, _ = layer.module.heads(*layer.inputs)
        return [_of_candidates(query, key, None, context, terms, offsets)]
    query, key, _, _ = layer.module.heads(*layer.inputs, context)
    shown = context.candidates
    own_key = None
    if shown is not None:
        sizes = [context.layout.num_events, shown.layout.num_candidates]
        query, candidate_query = query.split(sizes)
        key, own_key = key.split(sizes)
        of_candidates = _of_candidates(candidate_query, key, own_key, shown, terms, offsets)
        if context.outputs == "candidates":
            return [_differences(layer.module, of_candidates)]
        of_events = _of_events(query, key, context, terms, offsets)
        return [_differences(layer.module, maps) for maps in (of_events, of_candidates)]
    return [_differences(layer.module, _of_events(query, key, context, terms, offsets))]


def _of_events(
    query_NHK: Tensor, key_NGK: Tensor, context: AttentionContext, terms: AttentionTerms, offsets: Tensor
) -> LayerMaps:
    if context.has_tokens:
        assert context.events is not None
        of_tokens = replace(context, events=None, has_tokens=False)
        own_offsets = context.layout.offsets
        return _spread(
            _of_events(query_NHK, key_NGK, of_tokens, terms, own_offsets), context.events, own_offsets, offsets
        )
    places = _Places.of(offsets)
    only_last = context.outputs == "last"
    num_queries = 1 if only_last else places.longest
    maps = _num_maps(query_NHK, terms)
    dense = query_NHK.new_zeros((places.num_histories, num_queries, places.longest, maps))
    filled = offsets.diff().nonzero().squeeze(1)
    for block in context.blocks(terms.config):
        query = query_NHK[block.query_gather].transpose(1, 2)
        key = key_NGK[block.key_gather].transpose(1, 2)
        ages = context.ages(block, terms.time.form) if terms.time is not None else None
        weights = whole_maps(query, key, block, ages, terms)
        _, visible = block.pairs(slice(None), slice(None), key.shape[2])
        real = block.is_counted[:, :, None] & visible
        row, asking, seen = real.expand(*weights.shape[0:1], *weights.shape[3:]).nonzero(as_tuple=True)
        of_query, of_key = block.query_gather[row, asking], block.key_gather[row, seen]
        if context.outputs == "newest":
            assert context.chosen is not None
            of_query = context.chosen[of_query]
        if context.events is not None:  # the newest events of the histories
            of_key = context.events[of_key]
            of_query = of_query if only_last else context.events[of_query]
        history = filled[of_query] if only_last else places.history[of_query]
        place = torch.zeros_like(of_query) if only_last else places.place[of_query]
        dense[history, place, places.place[of_key]] = (
            weights.flatten(1, 2).permute(0, 2, 3, 1)[row, asking, seen].to(dense.dtype)
        )
    return LayerMaps(dense.permute(0, 3, 1, 2), None, _channels(terms), False, only_last)


def _spread(maps: LayerMaps, newest_event: Tensor, token_offsets: Tensor, offsets: Tensor) -> LayerMaps:
    """Return the weights of events from those of tokens.

    The events of a token share its weight evenly. As queries each of them has the row of the token.

    Args:
        maps: the weights of tokens.
        newest_event: the newest event of each token, ascending.
        token_offsets: bounds of the histories among the tokens, (B + 1,).
        offsets: bounds of the histories among the events, (B + 1,).
    """
    places, of_tokens = _Places.of(offsets), _Places.of(token_offsets)
    token_N = torch.searchsorted(newest_event, torch.arange(places.history.numel(), device=offsets.device))
    num_events = torch.bincount(token_N, minlength=newest_event.numel())[token_N][:, None, None]
    place_N = of_tokens.place[token_N]
    size, num_maps, num_queries, _ = maps.weights.shape
    seen = maps.weights.new_zeros((size, num_maps, num_queries, places.longest))
    seen[places.history, :, :, places.place] = maps.weights[places.history, :, :, place_N] / num_events
    if maps.only_last:
        return replace(maps, weights=seen)
    weights = seen.new_zeros((size, num_maps, places.longest, places.longest))
    weights[places.history, :, places.place] = seen[places.history, :, place_N]
    return replace(maps, weights=weights)


def _of_candidates(
    query_MHK: Tensor,
    key_NGK: Tensor,
    own_MGK: Tensor | None,
    context: CandidateContext,
    terms: AttentionTerms,
    offsets: Tensor,
) -> LayerMaps:
    places = _Places.of(offsets)
    number, maps = query_MHK.shape[0], _num_maps(query_MHK, terms)
    dense = query_MHK.new_zeros((places.num_histories, places.longest, maps))
    own = None if own_MGK is None else query_MHK.new_zeros((places.num_histories, maps))
    if not key_NGK.shape[0]:
        key_NGK = key_NGK.new_zeros((1, *key_NGK.shape[1:]))  # blocks point at an event even if there is none
    for block in context.blocks(terms.config) if number else ():
        query = query_MHK[block.query_gather].transpose(1, 2)
        key = key_NGK[block.key_gather].transpose(1, 2)
        own_key = () if own_MGK is None else (own_MGK[block.query_gather].transpose(1, 2),)
        ages = context.ages(block, terms.time.form) if terms.time is not None else None
        weights = whole_maps(query, key, block, ages, terms, own_key).flatten(1, 2).permute(0, 2, 3, 1)
        num_keys = key.shape[2]
        _, visible = block.pairs(slice(None), slice(None), num_keys)
        real = block.is_counted[:, :, None] & visible[..., :num_keys]
        row, asking, seen = real.nonzero(as_tuple=True)
        history = context.layout.history[block.query_gather[row, asking]]
        dense[history, block.key_place[row, seen]] = weights[row, asking, seen].to(dense.dtype)
        if own is not None:
            row, asking = block.is_counted.nonzero(as_tuple=True)
            own[context.layout.history[block.query_gather[row, asking]]] = weights[row, asking, num_keys].to(own.dtype)
    return LayerMaps(
        dense.permute(0, 2, 1)[:, :, None], None if own is None else own[:, :, None], _channels(terms), True
    )


def _differences(module: Any, maps: LayerMaps) -> LayerMaps:
    """Return the maps by which values are multiplied: of differential heads, the first minus a share of the second."""
    if not getattr(module, "config", None) or not getattr(module, "num_maps", 1) > 1:
        return maps
    share = module.second_share()
    first, second = maps.weights.chunk(2, dim=1)
    own = None
    if maps.own is not None:
        own_first, own_second = maps.own.chunk(2, dim=1)
        own = own_first - share * own_second
    return replace(maps, weights=first - share * second, own=own)


@dataclass(frozen=True)
class _Places:
    """Places of packed events in their histories."""

    history: Tensor  # (N,) int64, history of each event
    place: Tensor  # (N,) int64, place in it
    num_histories: int
    longest: int

    @classmethod
    def of(cls, offsets: Tensor) -> "_Places":
        lengths = offsets.diff()
        history = torch.repeat_interleave(torch.arange(lengths.numel(), device=offsets.device), lengths)
        place = torch.arange(history.numel(), device=offsets.device) - (offsets[:-1] - offsets[0])[history]
        return cls(history, place, lengths.numel(), int(lengths.max()) if lengths.numel() else 0)


def _num_maps(query: Tensor, terms: AttentionTerms) -> int:
    return query.shape[1] * terms.config.num_channels


def _channels(terms: AttentionTerms) -> tuple[str, ...]:
    if terms.config.bias_as != "channel":
        return ("weights",)
    biases = (("position", terms.position), ("time", terms.time))
    return ("weights", *(name for name, bias in biases if bias is not None))
