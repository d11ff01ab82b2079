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
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.attention.bias import PositionBias, TimeBias, time_bounds, time_buckets_by_guess
from models.attention.block_mask import Sight, block_mask
from models.attention.blocks import AttentionContext
from models.attention.terms import AttentionTerms

HALF = (torch.float16, torch.bfloat16)
# What the kernels of flash attention take: compute capability, and head widths that are multiples of 8 up to 256.
FLASH_CAPABILITY = (8, 0)
FLASH_WIDTH_STEP, FLASH_WIDEST = 8, 256
FLEX_NARROWEST = 16  # Triton's smallest tile; narrower heads are padded with zeros


def flash_fits(
    parts: AttentionTerms, dtype: torch.dtype, key_width: int, value_width: int, capability: tuple[int, int]
) -> bool:
    """Whether flash attention computes this form: a softmax in half precision over all, or a window of, the events in view.

    key_width, value_width: of a head. Those of values are the same in all forms but differential ones, whose two maps share them.
    capability: of the device.
    """
    config = parts.config
    narrow = key_width % FLASH_WIDTH_STEP == 0 and key_width <= FLASH_WIDEST
    takes_shapes = narrow and key_width == value_width and capability >= FLASH_CAPABILITY
    is_plain_softmax = flex_fits(parts) and config.bias == "none" and config.num_global == 0
    return dtype in HALF and takes_shapes and is_plain_softmax and _flash_has_windows()


def flex_fits(parts: AttentionTerms) -> bool:
    """Whether FlexAttention computes this form: a softmax with any mask and bias on its scores. Heads may be of any width."""
    config = parts.config
    added = config.bias == "none" or config.bias_as == "score"
    weighted = config.normalisation == "softmax" and not parts.threshold and not parts.with_penalty
    return weighted and added and parts.unit is None


def flash_attention(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: AttentionTerms
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
    parts: AttentionTerms,
    compiled: bool = True,
) -> Tensor:
    """(N, H, V). Dong et al. 2024 (arXiv:2412.05496). compiled: fused into one kernel; else plain, which is for tests."""
    run: Any = _compiled_flex_attention() if compiled else flex_attention
    attended: Tensor = run(
        _by_head(query_NHK),
        _by_head(key_NGK),
        _by_head(value_NGV),
        score_mod=_score_mod(context, parts),
        block_mask=_block_mask(context, parts),
        scale=parts.scale,
        enable_gqa=query_NHK.shape[1] != key_NGK.shape[1],
    )
    return attended[0].transpose(0, 1)[..., : value_NGV.shape[-1]]


def _by_head(packed_NHK: Tensor) -> Tensor:
    """(1, H, N, K), with zeros behind heads that are too narrow: they add nothing to a score, nor to what is attended to."""
    missing = FLEX_NARROWEST - packed_NHK.shape[-1]
    if missing > 0:
        packed_NHK = F.pad(packed_NHK, (0, missing))
    return packed_NHK.transpose(0, 1)[None]


def _block_mask(context: AttentionContext, parts: AttentionTerms) -> BlockMask:
    """Which pairs are looked at, by blocks: those that no history spans cost nothing. Made once for all layers of a form."""
    config = parts.config
    key = Sight(config.mask == "causal", context.window(config), config.num_global)
    if key not in context.masks:
        context.masks[key] = block_mask(context.layout, key)
    mask: BlockMask = context.masks[key]
    return mask


def _score_mod(context: AttentionContext, parts: AttentionTerms) -> Callable[..., Tensor] | None:
    """The biases of a pair, looked up where the kernel has its score."""
    if parts.position is None and parts.time is None:
        return None
    position, time, places = parts.position, parts.time, context.layout.positions
    times, asked = context.times, context.request_times
    farthest = max(1, context.longest) - 1
    buckets, bounds = None, None
    if position is not None and position.form != "functional":
        # Of every distance there is, once: their logarithms are too dear for each pair.
        buckets = position.buckets(torch.arange(-farthest, farthest + 1, device=places.device))
    if time is not None and time.form != "functional":
        bounds = time_bounds(places.device)

    def with_biases(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if position is not None:
            distance = places[query] - places[key]
            score = score + _position_of(position, distance, head, buckets, farthest)
        if time is not None:
            assert times is not None
            assert asked is not None
            score = score + _time_of(time, (asked[query] - times[key]).clamp(min=0), head, bounds)
        return score

    return with_biases


def _position_of(bias: PositionBias, distance: Tensor, head: Tensor, buckets: Tensor | None, farthest: int) -> Tensor:
    """buckets: of the distances from -farthest on."""
    if buckets is None:
        return -bias.slope[head] * distance.abs()
    return bias.weight[head, buckets[distance + farthest]]


def _time_of(bias: TimeBias, age: Tensor, head: Tensor, bounds: Tensor | None) -> Tensor:
    if bounds is None:
        return -bias.slope[head] * age.to(torch.promote_types(bias.slope.dtype, torch.float32)).log1p()
    return bias.weight[head, time_buckets_by_guess(age, bounds)]


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
