"""Effects of attention heads: the fall of the score when the output of one head is zero (Michel et al. 2019, arXiv:1905.10650).

    e_h = score(history) - score(history, with zeros for the attended values of head h)

The zeros stay zeros behind the norm of attended values, up to the output projection. So the effect is that of pruning the head
(models.attention.pruned). A head with several channels is removed with all of them. Effects do not add up to the score: heads can
stand in for each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.attention.layer import Attention
from models.attention.maps import modules_outside
from models.attention.target import TargetAttention
from models.encoders.merge import TokenMerge
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, pieces
from trainer.explanation.questions import Questions


@dataclass(frozen=True)
class HeadEffects:
    """Effects of H heads on the scores of B questions."""

    layers: tuple[str, ...]
    """Layer of each head, as in `attribution.MapName`."""
    heads: tuple[int, ...]
    """Number of each head in its layer, from 0."""
    effects: np.ndarray
    """(B, H) float32."""


@dataclass(frozen=True)
class _Head:
    """A head of a layer of attention."""

    layer: str
    """Name of the layer."""
    number: int
    """Number of the head, from 0."""
    module: Attention | TargetAttention
    """The layer."""


def head_effects(model: Explained, asked: Questions, internal_batch_size: int | None = None) -> HeadEffects:
    """Return the fall of the score without each head. Collective.

    Heads without an output projection, as in DIN, are left out.

    Args:
        model: the model.
        asked: the questions.
        internal_batch_size: number of events that are encoded at a time.
    """
    heads = _heads_of(model.trained.model)
    effects = np.zeros((asked.size, len(heads)), np.float32)
    with torch.no_grad():
        for piece in pieces(asked.lengths, internal_batch_size or INTERNAL_BATCH_EVENTS, model):
            prepared = model.prepare(asked.part(piece.start, piece.stop))
            vectors = model.vectors(prepared)
            whole = model.scores(prepared, vectors)
            for number, head in enumerate(heads):
                with without_heads(head.module, [head.number]):
                    fall = whole - model.scores(prepared, vectors)
                effects[piece, number] = fall.cpu().numpy()
    return HeadEffects(tuple(head.layer for head in heads), tuple(head.number for head in heads), effects)


def _heads_of(model: nn.Module) -> list[_Head]:
    """Return the heads of all blocks of the encoder, then those of a ranker's candidates."""
    heads: list[_Head] = []
    block = 0
    for module in modules_outside(model, TokenMerge):
        if isinstance(module, Attention):
            block += 1
            heads += [_Head(f"block {block}", number, module) for number in range(module.config.num_heads)]
    for module in model.modules():
        if isinstance(module, TargetAttention) and module.config.projection:
            heads += [_Head("candidate", number, module) for number in range(module.config.num_heads)]
    return heads


@contextmanager
def without_heads(layer: Attention | TargetAttention, numbers: Sequence[int]) -> Iterator[None]:
    """Give the attended values of some heads of a layer zeros within the context."""
    channels = layer.config.num_channels
    heads = list(numbers)

    def zeroed(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: Tensor = given[0].clone()
        seen.unflatten(-1, (channels, layer.config.num_heads, -1))[..., heads, :] = 0.0
        return (seen, *given[1:])

    # A norm of all heads together gives zeros values of its own.
    modules = [module for module in (layer.output_norm, layer.attention_output) if module is not None]
    hooks = [module.register_forward_pre_hook(zeroed) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
