"""Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928, section 2): attention through all layers, with residual connections.

    rollout = r_n A'_(n-1) ... A'_1,    A' = (A + I) / 2 of a block, A of a layer without residual connection

A is the average over heads, with rows that sum to one. r_n is the row of the last event or the candidate in the last layer.

Deviations: pointwise and differential weights can be negative, so rows are made of absolute values and divided by their sum. Biases
that are maps of their own (FuXi-alpha) are not part of A. A candidate that passes through the blocks is one more entry, to which
events do not attend. What reaches the candidate itself, or a masked event that the model appends, belongs to no event of the
history, so the values of a question sum to at most one.

Shapes: B questions, N events, L longest history.
"""

import numpy as np
import torch
from torch import Tensor

from trainer.explanation.attention import AttentionMaps, NamedMaps, attention_maps, packed
from trainer.explanation.attribution import Attribution
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, pieces
from trainer.explanation.questions import Questions


def attribute(model: Explained, asked: Questions, internal_batch_size: int | None = None) -> Attribution:
    """Return the rollout from the last event, or the candidate, to each event. Collective.

    Args:
        model: the model.
        asked: the questions.
        internal_batch_size: number of events that are encoded at a time.
    """
    values = np.zeros(asked.items.size, np.float32)
    scores = np.zeros(asked.size, np.float32)
    for piece in pieces(asked.lengths, internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        some = asked.part(piece.start, piece.stop)
        maps = attention_maps(model, model.prepare(some))
        scores[piece] = maps.scores[: some.size]
        values[asked.offsets[piece.start] : asked.offsets[piece.stop]] = packed(rollout(maps)[:, None], some)[:, 0]
    return Attribution("rollout", values, asked.offsets, scores)


def rollout(maps: AttentionMaps) -> Tensor:
    """Return the rollout of each question, (B, L), from the last layer back to the first."""
    by_name: dict[str, list[NamedMaps]] = {}
    for layer in maps.layers:
        by_name.setdefault(layer.name, []).append(layer)
    lengths = maps.offsets.diff()
    longest = int(lengths.max()) if lengths.numel() else 0
    place = torch.arange(longest, device=lengths.device)
    last = (place == lengths[:, None] - 1).float()
    # Begin with all weight on the query: the candidate if there is one, else the last event.
    has_candidate = any(layer.maps.is_candidate for layer in maps.layers)
    of_events = torch.zeros_like(last) if has_candidate else last
    of_candidate = torch.full((lengths.numel(), 1), float(has_candidate), device=lengths.device)
    for layers in reversed(by_name.values()):
        through = torch.zeros_like(of_events)
        remaining = torch.zeros_like(of_candidate)
        for layer in layers:
            kept = 0.5 if layer.has_residual else 0.0
            if layer.maps.is_candidate:
                to_events, to_itself = _of_candidate(layer)
                through += of_candidate * (1 - kept) * to_events
                remaining += of_candidate * (kept + (1 - kept) * to_itself)
            else:
                through += _through(layer, of_events, last, kept, maps.offsets)
        if not any(layer.maps.is_candidate for layer in layers):
            remaining = of_candidate
        of_events, of_candidate = through, remaining
    return of_events


def _through(layer: NamedMaps, of_events: Tensor, last: Tensor, kept: float, offsets: Tensor) -> Tensor:
    """Return the weights on the inputs of a layer from those on its outputs, (B, L) each."""
    if layer.maps.weights.shape[2] == 1:  # only the last event has an output, and all the weight
        mean = rows_that_sum_to_one(mean_of_heads(layer))
        row = mean[:, 0] if mean.shape[1] else torch.zeros_like(last)
        return kept * of_events + (1 - kept) * of_events.sum(dim=1, keepdim=True) * row
    mean = rows_that_sum_to_one(mean_of_heads(layer))
    return kept * of_events + (1 - kept) * torch.einsum("bq,bqk->bk", of_events, mean)


def _of_candidate(layer: NamedMaps) -> tuple[Tensor, Tensor]:
    """Return the weights of candidates for events (B, L) and for themselves (B, 1), which sum to one."""
    heads = layer.maps.num_heads
    to_events = layer.maps.weights[:, :heads, 0].mean(dim=1)
    own = layer.maps.own
    to_itself = to_events.new_zeros((to_events.shape[0], 1)) if own is None else own[:, :heads, 0].mean(dim=1)[:, None]
    both = rows_that_sum_to_one(torch.cat((to_events, to_itself), dim=1))
    return both[:, :-1].float(), both[:, -1:].float()


def mean_of_heads(layer: NamedMaps) -> Tensor:
    """Return the average of the weights over heads, (B, Q, L), without maps of biases."""
    return layer.maps.weights[:, : layer.maps.num_heads].mean(dim=1).float()


def rows_that_sum_to_one(weights: Tensor) -> Tensor:
    """Return the absolute weights divided by their sum over the last axis; zeros for a row of zeros."""
    positive = weights.abs()
    return positive / positive.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)
