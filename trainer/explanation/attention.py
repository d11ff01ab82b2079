"""Attention as an explanation: the weight that the last event, or the candidate of a ranker, gives each event.

The values are those of the last layer of attention, averaged over heads. `detail` has every head of every layer: of an encoder's
block the weights of the last event, or of the candidate if it passes through the blocks. Heads with pointwise weights (silu, or
none in DIN) can have negative weights, and weights that do not sum to one. Of a differential head it is the first map minus the
learned share of the second.

With token merge the events of a group share the weight of their token evenly. The weights inside a group (`merge_form =
"transformer"`) are not part of the maps.

A model of masked items attends from the masked event that it appends. The weight of that event for itself belongs to no event of
the history.

Shapes: B questions, N events, L longest history, M maps of a layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.attention.maps import LayerMaps, maps_of, recorded_layers
from models.attention.target import MeanOfEvents, TargetAttention
from models.encoders.merge import TokenMerge
from models.encoders.pooling import AttentionPooling
from trainer.explanation.attribution import Attribution, MapName
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, Prepared, pieces
from trainer.explanation.questions import Questions


@dataclass(frozen=True)
class NamedMaps:
    """The weights of one layer of a model."""

    name: str
    """"block 1" and so on, "pooling", "candidate" or "mean"."""
    maps: LayerMaps
    """The weights."""
    has_residual: bool
    """Whether the layer adds its output to its input, as blocks do."""


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of all layers for some questions, from the first layer to the last."""

    layers: tuple[NamedMaps, ...]
    """Each layer once, or twice if it has events and candidates as queries: first the events."""
    offsets: Tensor
    """(B + 1,) bounds of the histories. They have one event more than the questions if the model appends a masked one."""
    scores: np.ndarray
    """(B,) scores of the questions."""


@torch.no_grad()
def attention_maps(model: Explained, prepared: Prepared) -> AttentionMaps:
    """Return the weights of all layers for prepared questions."""
    network: Any = model.trained.model
    with recorded_layers(network, AttentionPooling, TokenMerge) as recording:
        scores = model.scores(prepared, model.vectors(prepared))
    offsets = prepared.batch.layout.offsets
    layers: list[NamedMaps] = []
    for recorded in recording.layers:
        match recorded.module:
            case AttentionPooling():
                name = "pooling"
            case TargetAttention():
                name = "candidate"
            case MeanOfEvents():
                name = "mean"
            case _:
                blocks = {layer.name for layer in layers}
                name = f"block {len(blocks) + 1}"
        has_residual = name.startswith("block")
        layers += [NamedMaps(name, maps, has_residual) for maps in maps_of(recorded, offsets)]
    return AttentionMaps(tuple(layers), offsets, scores.cpu().numpy())


def attribute(model: Explained, asked: Questions, internal_batch_size: int | None = None) -> Attribution:
    """Return the weight of each event in the last layer, with all heads as detail. Collective.

    A model without attention to the history has zeros.

    Args:
        model: the model.
        asked: the questions.
        internal_batch_size: number of events that are encoded at a time.
    """
    scores = np.zeros(asked.size, np.float32)
    names: tuple[MapName, ...] = ()
    columns: list[np.ndarray] = []
    for piece in pieces(asked.lengths, internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        some = asked.part(piece.start, piece.stop)
        maps = attention_maps(model, model.prepare(some))
        scores[piece] = maps.scores[: some.size]
        of_layers = [(layer, packed(final_weights(layer.maps, maps.offsets), some)) for layer in final_layers(maps)]
        names = tuple(name for layer, _ in of_layers for name in names_of(layer))
        columns.append(np.concatenate([np.zeros((some.items.size, 0), np.float32), *(c for _, c in of_layers)], axis=1))
    detail = np.concatenate(columns) if columns else np.zeros((0, 0), np.float32)
    last = [place for place, name in enumerate(names) if name.layer == names[-1].layer and name.channel == "weights"]
    values = detail[:, last].mean(axis=1) if last else np.zeros(asked.items.size, np.float32)
    return Attribution("attention", values, asked.offsets, scores, maps=names, detail=detail)


def final_layers(maps: AttentionMaps) -> list[NamedMaps]:
    """Return each layer once. Where events and candidates are queries, these are the candidates."""
    by_name: dict[str, NamedMaps] = {}
    for layer in maps.layers:
        by_name[layer.name] = layer
    return list(by_name.values())


def names_of(layer: NamedMaps) -> list[MapName]:
    """Return the names of the maps of a layer, in their order."""
    return [
        MapName(layer.name, head, channel) for channel in layer.maps.channels for head in range(layer.maps.num_heads)
    ]


def final_weights(maps: LayerMaps, offsets: Tensor) -> Tensor:
    """Return the weights of the last event or the candidate, (B, M, L)."""
    weights = maps.weights
    if weights.shape[2] <= 1:
        return weights[:, :, 0] if weights.shape[2] else weights.new_zeros((*weights.shape[:2], weights.shape[3]))
    last = (offsets.diff() - 1).clamp(min=0)
    return weights[torch.arange(last.numel(), device=last.device), :, last]


def packed(weights: Tensor, asked: Questions) -> np.ndarray:
    """Return the weights (B, M, L) of the events of questions, (N, M) float32."""
    columns: np.ndarray = weights.transpose(1, 2).float().cpu().numpy()[asked.owner, asked.places]
    return columns
