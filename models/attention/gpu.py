"""Paths for GPUs: torch's flash attention over packed histories, and FlexAttention where scores have biases.

Neither pads: histories lie one after another, as they are. What these do not compute (weights that are no softmax, dropout or a
penalty on weights) goes in pieces, as on a CPU. Shapes: N total events, H heads of queries, G of keys and values, K head width.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from models.attention.bias import PositionBias, TimeBias, time_buckets
from models.attention.blocks import AttentionContext
from models.attention.parts import Parts

HALF = (torch.float16, torch.bfloat16)


def flash_fits(parts: Parts, dtype: torch.dtype) -> bool:
    """Whether flash attention computes this form: a softmax in half precision over all, or a window of, the events in view."""
    config = parts.config
    return (
        dtype in HALF and flex_fits(parts) and config.bias == "none" and config.num_global == 0 and _flash_has_windows()
    )


def flex_fits(parts: Parts) -> bool:
    """Whether FlexAttention computes this form: a softmax with any mask and bias on its scores."""
    config = parts.config
    added = config.bias == "none" or config.bias_as == "score"
    return config.normalisation == "softmax" and added and not parts.threshold and not parts.with_penalty


def flash_attention(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: Parts
) -> Tensor:
    """(N, H, V). Dao 2023 (arXiv:2307.08691), through torch.nn.attention.varlen."""
    from torch.nn.attention.varlen import varlen_attn  # not there in every torch that the rest runs on

    config, longest, window = parts.config, context.longest, context.window(parts.config)
    reach = -1 if window is None else window - 1
    offsets = (context.layout.offsets - context.layout.offsets[0]).int()
    attended: Any = varlen_attn(
        query_NHK,
        key_NGK,
        value_NGV,
        offsets,
        offsets,
        longest,
        longest,
        scale=parts.scale,
        window_size=(reach, 0 if config.mask == "causal" else reach),
        enable_gqa=query_NHK.shape[1] != key_NGK.shape[1],
    )
    return attended  # type: ignore[no-any-return]


def flexible_attention(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext,
    parts: Parts,
    compiled: bool = True,
) -> Tensor:
    """(N, H, V). Dong et al. 2024 (arXiv:2412.05496). compiled: fused into one kernel; else plain, which is for tests."""
    run: Any = _compiled_flex_attention() if compiled else flex_attention
    attended: Tensor = run(
        query_NHK.transpose(0, 1)[None],
        key_NGK.transpose(0, 1)[None],
        value_NGV.transpose(0, 1)[None],
        score_mod=_score_mod(context, parts),
        block_mask=_block_mask(context, parts),
        scale=parts.scale,
        enable_gqa=query_NHK.shape[1] != key_NGK.shape[1],
    )
    return attended[0].transpose(0, 1)


def _block_mask(context: AttentionContext, parts: Parts) -> BlockMask:
    """Which pairs are looked at, by blocks: those that no history spans cost nothing. Made once for all layers of a form."""
    config, places, window = parts.config, context.layout.positions, context.window(parts.config)
    key = ("flex", config.mask, window, config.num_global)
    if key not in context.masks:
        history = torch.repeat_interleave(
            torch.arange(context.lengths.numel(), device=places.device), context.lengths, output_size=places.numel()
        )

        def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = places[query] - places[key]
            seen = history[query] == history[key]
            if config.mask == "causal":
                seen = seen & (distance >= 0)
            if window is not None:
                seen = seen & ((distance.abs() < window) | (places[key] < config.num_global))
            return seen

        context.masks[key] = create_block_mask(is_seen, None, None, places.numel(), places.numel(), str(places.device))
    mask: BlockMask = context.masks[key]
    return mask


def _score_mod(context: AttentionContext, parts: Parts) -> Callable[..., Tensor] | None:
    """The biases of a pair, looked up where the kernel has its score."""
    if parts.position is None and parts.time is None:
        return None
    places, times, asked = context.layout.positions, context.times, context.request_times

    def with_biases(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if parts.position is not None:
            score = score + _position_of(parts.position, places[query] - places[key], head)
        if parts.time is not None:
            assert times is not None
            assert asked is not None
            score = score + _time_of(parts.time, (asked[query] - times[key]).clamp(min=0), head)
        return score

    return with_biases


def _position_of(bias: PositionBias, distance: Tensor, head: Tensor) -> Tensor:
    if bias.form == "functional":
        return -bias.slope[head] * distance.abs()
    return bias.weight[head, bias.buckets(distance)]


def _time_of(bias: TimeBias, age: Tensor, head: Tensor) -> Tensor:
    if bias.form == "functional":
        return -bias.slope[head] * age.to(bias.slope.dtype).log1p()
    return bias.weight[head, time_buckets(age)]


@functools.cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@functools.cache
def _flash_has_windows() -> bool:
    """Whether this torch has flash attention over packed sequences, with windows and shared heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa", "scale"} <= set(inspect.signature(varlen_attn).parameters)
