"""What attention is, by definition: one history after another, every part in its plainest form.

Each fast path is compared with this in values and gradients. Shapes: N total events, H heads of queries, G heads of keys
and values, K head width, V width of values, C channels, L length of one history.
"""

import itertools

import torch
from torch import Tensor

from models.attention.activation_unit import ActivationUnit
from models.attention.bias import prepare_ages
from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.config import POINTWISE, AttentionConfig
from models.attention.terms import Attended, AttentionTerms


def attend_reference(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: AttentionTerms
) -> Attended:
    """weights(scale x Q K^T + bias) V within what is visible (Vaswani et al. 2017, eq. 1, arXiv:1706.03762). Without dropout."""
    config = parts.config
    shared = query_NHK.shape[1] // key_NGK.shape[1]
    outputs, penalty = [value_NGV.new_zeros((0, config.num_channels, query_NHK.shape[1], value_NGV.shape[-1]))], []
    for start, end in itertools.pairwise(context.layout.offsets.tolist()):
        if start == end:
            continue
        query_HLK = query_NHK[start:end].transpose(0, 1)
        key_HLK, value_HLV = (
            t[start:end].transpose(0, 1).repeat_interleave(shared, dim=0) for t in (key_NGK, value_NGV)
        )
        place_L = torch.arange(end - start, device=query_NHK.device)
        distance_LL = place_L[:, None] - place_L[None, :]
        visible_LL = visible_reference(distance_LL, place_L, config)
        if context.reach is not None:
            visible_LL = visible_LL & (distance_LL.abs() < context.reach)
        scores_HLL = parts.scale * (query_HLK @ key_HLK.transpose(-1, -2))
        biases = []
        if parts.position is not None:
            biases.append(parts.position(distance_LL[None])[0])
        if parts.time is not None:
            assert context.times is not None
            assert context.request_times is not None
            age_LL = context.request_times[start:end, None] - context.times[None, start:end]
            biases.append(parts.time(prepare_ages(age_LL.clamp(min=0)[None], parts.time.form))[0])
        if config.bias_as == "score":
            scores_HLL = scores_HLL + sum(biases)
        weights_HLL = weights_reference(scores_HLL, visible_LL, config.normalisation, parts.silu_divisor)
        maps = [weights_HLL]
        if config.bias_as == "channel":
            maps += [(bias * visible_LL).expand_as(weights_HLL) for bias in biases]
        outputs.append(torch.stack([part @ value_HLV for part in maps]).permute(2, 0, 1, 3))
        counted_HLL = weights_HLL if context.counted is None else weights_HLL[:, context.counted[start:end]]
        penalty.append(penalty_reference(counted_HLL, config.normalisation))
    total = sum(penalty, start=query_NHK.new_zeros(()))
    return Attended(torch.cat(outputs), total if parts.with_penalty else None)


def attend_to_events_reference(
    query_MHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: CandidateContext,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
    found: Tensor | None = None,
) -> Attended:
    """The same of candidates, one after another, over the events that it may see and no others; zeros where there are none.

    own: key and value of the candidates, (M, G, .), where each sees itself too. found: (M, k), to which places of the history each
    is narrowed; NO_KEY is none.
    """
    config, layout = parts.config, context.layout
    shared = query_MHK.shape[1] // key_NGK.shape[1]
    outputs, penalty = [value_NGV.new_zeros((0, config.num_channels, query_MHK.shape[1], value_NGV.shape[-1]))], []
    for number, (first, end) in enumerate(zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)):
        places = [place for place in range(end) if _sees(end, place, layout.reach, config)]
        if found is not None:
            places = [place for place in places if place in found[number].tolist()]
        seen = [first + place for place in places]
        key_SGK, value_SGV = key_NGK[seen], value_NGV[seen]
        distance = [end - place for place in places]
        ages: list[int] = []
        if parts.time is not None:
            assert context.times is not None
            assert context.event_times is not None
            ages = [max(0, int(context.times[number] - context.event_times[event])) for event in seen]
        if own:
            key_SGK, value_SGV = torch.cat((key_SGK, own[0][[number]])), torch.cat((value_SGV, own[1][[number]]))
            distance, ages = [*distance, 0], [*ages, 0]
        if not distance:
            outputs.append(value_NGV.new_zeros((1, *outputs[0].shape[1:])))
            continue
        key_HSK, value_HSV = (t.repeat_interleave(shared, dim=1).transpose(0, 1) for t in (key_SGK, value_SGV))
        query_H1K = query_MHK[number][:, None]
        if isinstance(parts.unit, ActivationUnit):
            scores_H1S = unit_reference(query_H1K, key_HSK, parts.unit)
        else:
            scores_H1S = parts.scale * (query_H1K @ key_HSK.transpose(-1, -2))
        biases = []
        if parts.position is not None:
            biases.append(parts.position(torch.tensor([[distance]]))[0])
        if parts.time is not None:
            biases.append(parts.time(prepare_ages(torch.tensor([[ages]]), parts.time.form))[0])
        if config.bias_as == "score":
            scores_H1S = scores_H1S + sum(biases)
        all_visible = torch.ones(1, len(distance), dtype=torch.bool)
        weights_H1S = weights_reference(scores_H1S, all_visible, config.normalisation, parts.silu_divisor)
        maps = [weights_H1S, *(biases if config.bias_as == "channel" else [])]
        outputs.append(torch.stack([part @ value_HSV for part in maps]).permute(2, 0, 1, 3))
        penalty.append(penalty_reference(weights_H1S, config.normalisation))
    total = sum(penalty, start=query_MHK.new_zeros(()))
    return Attended(torch.cat(outputs), total if parts.with_penalty else None)


def _sees(end: int, place: int, reach: int, config: AttentionConfig) -> bool:
    oldest = max(0, end - reach)
    near = config.window is None or end - place < config.window or place < oldest + config.num_global
    return oldest <= place < end and near


def unit_reference(candidate_HQK: Tensor, event_HSK: Tensor, unit: ActivationUnit) -> Tensor:
    """(H, Q, S): the network of [h; c; h - c; h * c] for every pair, as it is written. Only the first K columns are looked at."""
    width = unit.head_width
    c, h = torch.broadcast_tensors(candidate_HQK[:, :, None, :width], event_HSK[:, None, :, :width])
    both = torch.cat((h, c, h - c, h * c), dim=-1)
    scores = []
    for head, pairs in enumerate(both):
        hidden = pairs @ unit.weight[head].transpose(0, 1).flatten(1).T + unit.bias[head]
        hidden = unit.activations[0](hidden)
        for weight, bias, activation in zip(unit.inner, unit.inner_bias, list(unit.activations)[1:], strict=True):
            hidden = activation(hidden @ weight[head].T + bias[head])
        scores.append(hidden @ unit.out[head] + unit.out_bias[head])
    return torch.stack(scores)


def visible_reference(distance_LL: Tensor, place_L: Tensor, config: AttentionConfig) -> Tensor:
    """(L, L) bool: whether a query (first axis) sees a key: mask, window, and the oldest events that all see."""
    in_time = distance_LL >= 0 if config.mask == "causal" else torch.ones_like(distance_LL, dtype=torch.bool)
    if config.window is None:
        return in_time
    near = distance_LL.abs() < config.window
    oldest = (place_L < config.num_global)[None, :]
    return in_time & (near | oldest)


def weights_reference(scores: Tensor, visible: Tensor, normalisation: str, silu_divisor: int) -> Tensor:
    """Weights of scores (..., K), of which those not visible have none.

    softmax: exp(s) / sum exp(s). silu: s sigmoid(s) / n (Zhai et al. 2024, eq. 2, arXiv:2402.17152). sparsemax: max(0, s - t), t
    such that they sum to one (Martins & Astudillo 2016, arXiv:1602.02068). entmax15: max(0, s / 2 - t)^2 likewise (Peters et al.
    2019, arXiv:1905.05702). none: s.
    """
    if normalisation == "silu":
        return torch.where(visible, scores * torch.sigmoid(scores) / silu_divisor, 0.0)
    if normalisation == "none":
        return torch.where(visible, scores, 0.0)
    scores = scores.masked_fill(~visible, float("-inf"))
    if normalisation == "softmax":
        exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return exponentials / exponentials.sum(dim=-1, keepdim=True)
    power = 1 if normalisation == "sparsemax" else 2
    # The weights' sum falls as t rises, so the root lies where bisection ends; the last step, by Newton, carries the gradient.
    halves = scores / power
    top = halves.detach().amax(dim=-1, keepdim=True)
    low, high = top - 1.0, top
    for _ in range(100):
        middle = (low + high) / 2
        too_much = (halves.detach() - middle).clamp(min=0).pow(power).sum(dim=-1, keepdim=True) >= 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    inside = halves > low
    base = torch.where(inside, halves - low, 0.0)
    slope = (power * base.detach().pow(power - 1) * inside).sum(dim=-1, keepdim=True)
    threshold = low + (base.pow(power).sum(dim=-1, keepdim=True) - 1) / slope
    return torch.where(inside, halves - threshold, 0.0).clamp(min=0).pow(power)


def penalty_reference(weights: Tensor, normalisation: str) -> Tensor:
    """Sum over queries and heads of the entropy of their weights, -sum w log w in nats; of pointwise weights, of sum |w|."""
    if normalisation in POINTWISE:
        return weights.abs().sum()
    positive = weights > 0
    return -torch.where(positive, weights * torch.where(positive, weights, 1.0).log(), 0.0).sum()
