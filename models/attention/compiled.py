"""Attention of events by the compiled kernel, where it computes the form.

Shapes: N total events, H heads of queries, G heads of keys and values, K head width, V width of values, L distances of positions.
"""

import torch
from torch import Tensor

from models.attention.bias import time_bounds
from models.attention.blocks import AttentionContext
from models.attention.terms import Attended, AttentionTerms
from models.compiled.attention import NORMALISATIONS, AttentionKernel, PairBuckets, WeightForm


def compiled_fits(query_NHK: Tensor, context: AttentionContext, parts: AttentionTerms) -> bool:
    """Return whether the context has a kernel that computes this form, over all earlier events."""
    if context.kernel is None or not context.kernel.takes(query_NHK) or context.window(parts.config) is not None:
        return False
    config = parts.config
    is_plain = not parts.threshold and not parts.with_penalty and parts.unit is None and config.mask == "causal"
    has_biases = config.bias_as == "score" and (parts.time is None or parts.time.form == "bucketed")
    return is_plain and has_biases and config.normalisation in NORMALISATIONS


def compiled_attention(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext,
    parts: AttentionTerms,
    joint_NS: Tensor | None = None,
) -> Attended:
    """Return the attention of each event, if `compiled_fits`. Arguments are those of models.attention.attend.attend."""
    kernel = context.kernel
    assert kernel is not None
    offsets = context.layout.offsets - context.layout.offsets[0]
    weights = _weight_form(context, parts, kernel, offsets)
    exact_NHV = kernel.attend(query_NHK, key_NGK, value_NGV, offsets, parts.scale, joint_NS, weights)
    return Attended(exact_NHV[:, None].to(query_NHK.dtype))


def _weight_form(
    context: AttentionContext, parts: AttentionTerms, kernel: AttentionKernel, offsets: Tensor
) -> WeightForm:
    position_HL = None
    if parts.position is not None:
        distance_L = torch.arange(context.longest, device=offsets.device)
        position_HL = parts.position(distance_L[None, None])[0, :, 0]
    time, pairs = None, None
    if parts.time is not None:
        time, pairs = parts.time.weight, _pair_buckets(context, kernel, offsets)
    return WeightForm(parts.config.normalisation, parts.silu_divisor, position_HL, time, pairs)


def _pair_buckets(context: AttentionContext, kernel: AttentionKernel, offsets: Tensor) -> PairBuckets:
    """Return the buckets of the batch. They are computed once for all layers."""
    assert context.times is not None
    assert context.request_times is not None
    if "pair buckets" not in context.masks:
        bounds = time_bounds(offsets.device)
        context.masks["pair buckets"] = kernel.pair_buckets(offsets, context.times, context.request_times, bounds)
    pairs: PairBuckets = context.masks["pair buckets"]
    return pairs
