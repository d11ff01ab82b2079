"""Maps of attention give the outputs of the layers again, and rollout is a product of matrices."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.candidates import CandidateContext
from models.attention.config import POINTWISE
from models.attention.layer import Attention
from models.attention.maps import RecordedLayer, maps_of, recorded_layers
from models.encoders.merge import TokenMerge
from models.encoders.pooling import AttentionPooling
from tests.support.explained_models import FORMS, Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation import attention, rollout
from trainer.explanation.attention import AttentionMaps, NamedMaps, attention_maps


@torch.no_grad()
def outputs_of(case: Case) -> tuple[list[RecordedLayer], list[Tensor], Tensor]:
    """Return the layers that a forward pass went through, what each returned, and the bounds of the histories."""
    outputs: list[Tensor] = []
    prepared = case.model.prepare(case.asked)
    network = case.model.trained.model
    with recorded_layers(network, AttentionPooling, TokenMerge) as recording, contextlib.ExitStack() as stack:
        classes = {"Attention", "TargetAttention", "MeanOfEvents", "AttentionPooling"}
        for name, module in network.named_modules():
            if type(module).__name__ in classes and ".merge." not in name:
                note = module.register_forward_hook(
                    lambda _, __, result: outputs.append(result[0] if isinstance(result, tuple) else result)
                )
                stack.callback(note.remove)
        case.model.scores(prepared, case.model.vectors(prepared))
    return recording.layers, outputs, prepared.batch.layout.offsets


def again(layer: RecordedLayer, offsets: Tensor) -> Tensor:
    """Return the output of a layer from its maps and values."""
    module, context = layer.module, layer.context
    is_target = isinstance(context, CandidateContext)
    _, _, value, gate = module.heads(*layer.inputs) if is_target else module.heads(*layer.inputs, context)
    parts = maps_of(layer, offsets)
    num_events = int(offsets[-1])
    lengths = offsets.diff().tolist()
    kept = lengths
    with_tokens = not is_target and context.has_tokens
    if with_tokens:  # all events of a token have its value
        value = value[torch.searchsorted(context.events, torch.arange(num_events))]
    elif not is_target and context.events is not None:
        value = torch.zeros((num_events, *value.shape[1:])).index_copy(0, context.events, value)
        kept = context.lengths.tolist()
    elif not is_target and context.outputs == "newest":
        kept = [min(length, context.most_chosen) for length in lengths]
    pieces = []
    for maps in parts:
        heads = maps.num_heads
        shared = heads // value.shape[1] if value.shape[1] <= heads else 1
        every = value[:, :heads] if value.shape[1] > heads else value.repeat_interleave(shared, dim=1)
        for history, (start, length) in enumerate(zip(offsets.tolist(), lengths, strict=False)):
            queries = maps.weights.shape[2]
            if not maps.is_candidate:
                if not length:
                    continue
                queries = length if queries > 1 or length == 1 else 1
            first = length - kept[history] if queries == length else 0
            weights = maps.weights[history, :, first:queries, :length].unflatten(0, (len(maps.channels), heads))
            seen = torch.einsum("chqk,khv->qchv", weights, every[start : start + length])
            if maps.own is not None:
                own = maps.own[history, :, :queries].unflatten(0, (len(maps.channels), heads))
                seen = seen + own.permute(2, 0, 1)[..., None] * every[num_events + history][None, None]
            pieces.append(seen)
    seen = torch.cat(pieces)
    if with_tokens and context.outputs == "all":
        seen = seen[context.events]
    if getattr(module, "num_maps", 1) == 1:
        events = (context.num_output_events,) if isinstance(module, Attention) else ()
        return module.output_of(seen, gate, *events)
    normed = module.head_norm(seen) * (1.0 - module._initial_share)
    return module.attention_output(normed.flatten(1))


@pytest.mark.parametrize("form", FORMS)
def test_maps_give_the_outputs_of_every_layer(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    layers, outputs, offsets = outputs_of(case)
    assert len(layers) == len(outputs)
    for layer, expected in zip(layers, outputs, strict=True):
        actual = again(layer, offsets)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        check_sums(layer, maps_of(layer, offsets), offsets)


def check_sums(layer: RecordedLayer, parts: list[Any], offsets: Tensor) -> None:
    """Weights that the normaliser promises to sum to one do so, and those of a differential head to one minus a share."""
    config = layer.module.terms().config
    if config.normalisation in POINTWISE:
        return
    lengths = offsets.diff()
    promised = 1.0
    if getattr(layer.module, "num_maps", 1) > 1:
        promised = float(1.0 - layer.module.second_share())
    for maps in parts:
        total = maps.weights[:, : maps.num_heads].sum(dim=-1)
        if maps.own is not None:
            total = total + maps.own[:, : maps.num_heads]
        query = torch.arange(total.shape[2])
        has_query = (query < lengths[:, None]) if not maps.is_candidate else (lengths[:, None] >= 0)
        has_all = getattr(layer.context, "has_tokens", False) or getattr(layer.context, "events", None) is None
        if total.shape[2] > 1 and not has_all:
            has_query = has_query & (query >= (lengths - layer.context.lengths)[:, None])
        if getattr(layer.context, "outputs", "all") == "newest":
            has_query = has_query & (query >= (lengths - layer.context.most_chosen)[:, None])
        sees = has_query & ((lengths[:, None] > 0) | (maps.own is not None))
        if isinstance(layer.context, CandidateContext):  # a search by category can select nothing
            sees = sees & (maps.weights.abs().sum(dim=(1, 3)) > 0)
        expected = torch.where(sees, promised, 0.0)[:, None].expand_as(total)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def by_products(maps: AttentionMaps, history: int) -> np.ndarray:
    """Return the rollout of one history by products of whole matrices over its events and its candidate."""
    length = int(maps.offsets.diff()[history])
    names = dict.fromkeys(layer.name for layer in maps.layers)
    has_candidate = any(layer.maps.is_candidate for layer in maps.layers)
    product = np.eye(length + 1)
    for name in names:
        parts: list[NamedMaps] = [layer for layer in maps.layers if layer.name == name]
        mixed = np.eye(length + 1)
        for layer in parts:
            weights = layer.maps.weights[history, : layer.maps.num_heads, :, :length].double().mean(dim=0).abs().numpy()
            own = layer.maps.own
            for query, row in enumerate(weights):
                to_itself = 0.0 if own is None else float(own[history, : layer.maps.num_heads].double().mean().abs())
                if layer.maps.is_candidate:
                    place = length
                elif len(weights) == 1:
                    place = length - 1
                else:
                    place = query
                if not layer.maps.is_candidate and place >= length:
                    continue
                total = row.sum() + to_itself
                if not total:
                    mixed[place] = 0.5 * np.eye(length + 1)[place] if layer.has_residual else 0.0
                    continue
                mixed[place] = np.append(row, to_itself) / total
                if layer.has_residual:
                    mixed[place] = (mixed[place] + np.eye(length + 1)[place]) / 2
        product = mixed @ product
    return product[length if has_candidate else length - 1, :length] if length else np.zeros(0)


@pytest.mark.parametrize("form", FORMS)
def test_rollout_is_a_product_of_matrices(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    with torch.no_grad():
        maps = attention_maps(case.model, case.model.prepare(case.asked))
    actual = rollout.rollout(maps)
    for history, length in enumerate(maps.offsets.diff().tolist()):
        np.testing.assert_allclose(actual[history, :length].numpy(), by_products(maps, history), rtol=1e-4, atol=1e-5)
    attribution = rollout.attribute(case.model, case.asked, internal_batch_size=50)
    sums = np.bincount(case.asked.owner, attribution.values, minlength=case.asked.size)
    assert (sums < 1.0001).all()
    first = attention.attribute(case.model, case.asked, internal_batch_size=50)
    second = attention.attribute(case.model, case.asked)
    assert first.detail is not None
    assert second.detail is not None
    assert first.detail.shape == (case.asked.items.size, len(first.maps))
    np.testing.assert_allclose(first.detail, second.detail, rtol=1e-3, atol=1e-5)
