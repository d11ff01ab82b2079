"""Attention by the Triton kernels: which forms they compute, the ranges of keys that each query sees, and the gradients.

Shapes: N total events, M candidates, B histories, n queries, H heads of queries, G of keys and values, K head width, V of
values.
"""

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attention.bias import TIME_BUCKET_BASE, time_bounds
from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.config import NUM_TIME_BUCKETS
from models.attention.terms import AttentionTerms

TILE = 64  # queries, and keys, of a tile
WIDE_TILE = 32  # keys of a tile, for heads wider than WIDE
WIDE = 64
NARROWEST = 16  # smallest side of a product on tensor cores
BLIND = 1e29  # a log of a sum above this is that of a query that sees nothing
FORMS = {"softmax": 0, "silu": 1, "none": 2}
LARGEST_LOG_AGE = 44.0  # log(1 + 2^63)


@dataclass(frozen=True)
class Ranges:
    """The keys that each query sees: two ranges of places in its history, and what biases are looked up by."""

    query_offsets: Tensor  # (B + 1,) int64, the queries of each history
    key_offsets: Tensor  # (B + 1,) int64, its keys
    first: Tensor  # (n,) int64
    last: Tensor  # (n,) int64, included; before `first` if the range is empty
    oldest: Tensor  # (n,) int64
    shared: Tensor  # (n,) int64, not included
    place: Tensor  # (n,) int64, of the query; its distance to a key is this minus the key's place
    query_times: Tensor | None  # (n,) int64
    key_times: Tensor | None  # (N,) int64
    longest: int  # at least every distance, from the host


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed, as it is with torch's builds for CUDA."""
    return importlib.util.find_spec("triton") is not None


def triton_fits(parts: AttentionTerms) -> bool:
    """Return whether the kernels compute this form: softmax, SiLU or linear weights, with any mask and added biases."""
    config = parts.config
    plain_weights = config.normalisation in FORMS and not parts.threshold and not parts.with_penalty
    return plain_weights and config.num_channels == 1 and parts.unit is None


def ranges_of_events(context: AttentionContext, parts: AttentionTerms) -> Ranges:
    """Return what each event sees of its history. It is computed once for all layers of a form."""
    config = parts.config
    window = context.window(config)
    key = ("ranges", config.mask, window, config.num_global)
    if key not in context.masks:
        offsets = context.layout.offsets - context.layout.offsets[0]
        place = context.layout.positions
        causal = config.mask == "causal"
        lengths = offsets.diff()
        newest = place
        if not causal:
            newest = torch.repeat_interleave(lengths, lengths, output_size=place.numel()) - 1
        if window is None:
            first, last = torch.zeros_like(place), newest
        else:
            first = (place - window + 1).clamp(min=0)
            last = newest if causal else torch.minimum(newest, place + window - 1)
        shared = (newest + 1).clamp(max=config.num_global)
        oldest = torch.zeros_like(place)
        context.masks[key] = Ranges(
            offsets, offsets, first, last, oldest, shared, place, context.request_times, context.times, context.longest
        )
    ranges: Ranges = context.masks[key]
    return ranges


def ranges_of_candidates(context: CandidateContext, offsets: Tensor, longest: int, parts: AttentionTerms) -> Ranges:
    """Return what each candidate sees of its history, without itself.

    Args:
        context: the candidates.
        offsets: of the events of all histories, (B + 1,) int64.
        longest: number of events of the longest history.
        parts: the form of the attention.
    """
    config, layout = parts.config, context.layout
    end = layout.history_end
    oldest = (end - layout.reach).clamp(min=0)
    first, shared = oldest, torch.zeros_like(end)
    if config.window is not None:
        first = torch.maximum(oldest, end - config.window + 1)
        shared = torch.minimum(oldest + config.num_global, end)
    query_offsets = torch.searchsorted(layout.history, torch.arange(offsets.numel(), device=end.device))
    return Ranges(
        query_offsets,
        offsets - offsets[0],
        first,
        end - 1,
        oldest,
        shared,
        end,
        context.times,
        context.event_times,
        longest + 1,
    )


def triton_attention(query: Tensor, key: Tensor, value: Tensor, ranges: Ranges, parts: AttentionTerms) -> Tensor:
    """Compute the attention of queries (n, H, K) to keys (N, G, K) and values (N, G, V), as (n, H, V)."""
    return _with_log_sums(query, key, value, ranges, parts)[0]


def triton_attention_with_itself(
    query: Tensor, key: Tensor, value: Tensor, own: tuple[Tensor, Tensor], ranges: Ranges, parts: AttentionTerms
) -> Tensor:
    """Compute the same for candidates that each see themselves too, as one more key (n, G, K) and value (n, G, V)."""
    attended, log_sums = _with_log_sums(query, key, value, ranges, parts)
    sharing = query.shape[1] // key.shape[1]
    own_key, own_value = (rows.repeat_interleave(sharing, dim=1).float() for rows in own)
    scores = parts.scale * (query.float() * own_key).sum(dim=-1)
    nothing = torch.zeros((1, 1, 1), dtype=torch.int64, device=query.device)
    if parts.position is not None:
        scores = scores + parts.position(nothing).view(1, -1)
    if parts.time is not None and parts.time.form != "functional":  # log(1 + 0) is 0
        scores = scores + parts.time.weight[:, :1].view(1, -1)
    if parts.config.normalisation == "softmax":
        blind = log_sums > BLIND
        weights = torch.where(blind, 1.0, torch.sigmoid(scores - log_sums.masked_fill(blind, 0.0)))
        both = attended.float() * (1 - weights)[..., None] + weights[..., None] * own_value
    else:
        silu = parts.config.normalisation == "silu"
        weights = torch.nn.functional.silu(scores) / parts.silu_divisor if silu else scores
        both = attended.float() + weights[..., None] * own_value
    return both.to(attended.dtype)


def _with_log_sums(
    query: Tensor, key: Tensor, value: Tensor, ranges: Ranges, parts: AttentionTerms
) -> tuple[Tensor, Tensor]:
    by_distance = None
    if parts.position is not None:
        # The table of all distances, so that the kernel knows neither buckets nor slopes. Its gradient is torch's.
        span = torch.arange(-ranges.longest, ranges.longest + 1, device=query.device)
        by_distance = parts.position(span[None, None])[0, :, 0].float()
    by_time = None
    if parts.time is not None:
        by_time = (parts.time.slope if parts.time.form == "functional" else parts.time.weight).float()
    attended, log_sums = _TritonAttention.apply(query, key, value, by_distance, by_time, ranges, parts)
    return attended, log_sums


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        from models.attention import triton_kernels

        by_distance, by_time, ranges, parts = rest
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        launch = _Launch(query, key, value, by_distance, by_time, ranges, parts)
        output = value.new_empty((*query.shape[:2], value.shape[-1]))
        log_sums = query.new_zeros(query.shape[:2], dtype=torch.float32)
        if query.numel():
            grid = (launch.query_tiles[0].numel(), query.shape[1])
            triton_kernels.attention_forward[grid](
                query, key, value, output, log_sums, *launch.query_tiles, *launch.arguments, **launch.constants
            )
        ctx.save_for_backward(query, key, value, by_distance, by_time, output, log_sums)
        ctx.ranges, ctx.parts = ranges, parts
        return output, log_sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from models.attention import triton_kernels

        query, key, value, by_distance, by_time, output, log_sums = ctx.saved_tensors
        grad_output = gradients[0].contiguous()
        launch = _Launch(query, key, value, by_distance, by_time, ctx.ranges, ctx.parts)
        softmax = ctx.parts.config.normalisation == "softmax"
        deltas = torch.zeros_like(log_sums)
        if softmax:  # of the weights' gradients, the part that their sum does not allow
            deltas = (grad_output.float() * output.float()).sum(dim=-1) - gradients[1]
        grads = [torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        sums = [
            None if table is None else torch.zeros(table.shape, dtype=torch.int64, device=query.device)
            for table in (by_distance, by_time)
        ]
        unit = _unit(grad_output, value, gradients[1], ctx.ranges.longest, softmax)
        if query.numel():
            grid = (launch.query_tiles[0].numel(), query.shape[1])
            given = (query, key, value, log_sums, grad_output, deltas)
            places = [of if of is not None else unit for of in sums]
            triton_kernels.attention_backward_queries[grid](
                *given, grads[0], *places, unit, *launch.query_tiles, *launch.arguments, **launch.constants
            )
            grid = (launch.key_tiles[0].numel(), key.shape[1])
            triton_kernels.attention_backward_keys[grid](
                *given, grads[1], grads[2], *launch.key_tiles, *launch.arguments, **launch.constants
            )
        of_tables = (None if of is None else (of.double() / unit.double()).float() for of in sums)
        return (*grads, *of_tables, None, None)


def _unit(grad_output: Tensor, value: Tensor, of_log_sums: Tensor, longest: int, softmax: bool) -> Tensor:
    """Return a factor (1,) float32 with which no sum of gradients of scores exceeds 62 bits. It never waits for the device.

    A gradient of a score is at most the product of the largest norms, and a row of softmax weights sums to one.
    """
    if not grad_output.numel() or not value.numel():
        return torch.ones(1, device=value.device)
    largest = 2 * grad_output.float().norm(dim=-1).amax() * value.float().norm(dim=-1).amax() + of_log_sums.abs().amax()
    pairs = grad_output.shape[0] * (1 if softmax else 2 * longest)
    bound = (largest * (pairs * LARGEST_LOG_AGE)).view(1)
    return torch.where(bound == 0, 1.0, 2.0**61 / bound)  # not finite if a gradient is not, and so are the sums then


class _Launch:
    """Arguments that all kernels of one attention share."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        by_distance: Tensor | None,
        by_time: Tensor | None,
        ranges: Ranges,
        parts: AttentionTerms,
    ) -> None:
        nothing = ranges.place  # a pointer that no kernel reads
        time = 0 if parts.time is None else (2 if parts.time.form == "functional" else 1)
        key_width, value_width = query.shape[-1], value.shape[-1]
        key_wide, value_wide = _power_of_two(key_width), _power_of_two(value_width)
        keys = TILE if max(key_wide, value_wide) <= WIDE else min(TILE, WIDE_TILE)
        self.query_tiles = tiles_of(ranges.query_offsets, query.shape[0], TILE)
        self.key_tiles = tiles_of(ranges.key_offsets, key.shape[0], keys)
        tables = (
            by_distance.contiguous() if by_distance is not None else nothing,
            ranges.longest,
            2 * ranges.longest + 1,
            by_time.contiguous() if by_time is not None else nothing,
            time_bounds(query.device) if time == 1 else nothing,
        )
        self.arguments = (
            ranges.query_offsets,
            ranges.key_offsets,
            ranges.first,
            ranges.last,
            ranges.oldest,
            ranges.shared,
            ranges.place,
            ranges.query_times if time else nothing,
            ranges.key_times if time else nothing,
            *tables,
            parts.scale,
            float(parts.silu_divisor),
            query.shape[1],
            key.shape[1],
        )
        self.constants = {
            "KEY_WIDTH": key_width,
            "KEY_WIDE": key_wide,
            "VALUE_WIDTH": value_width,
            "VALUE_WIDE": value_wide,
            "FORM": FORMS[parts.config.normalisation],
            "HAS_POSITION": parts.position is not None,
            "TIME": time,
            "NUM_BUCKETS": NUM_TIME_BUCKETS,
            "LOG_BASE": math.log(TIME_BUCKET_BASE),
            "QUERIES": TILE,
            "KEYS": keys,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        }


def tiles_of(offsets: Tensor, num_rows: int, tile: int) -> tuple[Tensor, Tensor]:
    """Return the history and the first row of each tile, (T,) int64 each.

    T is a bound that the host knows from shapes; tiles beyond the last one begin at the end of all rows and are empty.

    Args:
        offsets: (B + 1,) int64 of the rows of each history.
        num_rows: of all histories.
        tile: rows of a tile at most.
    """
    num_histories = offsets.numel() - 1
    ends = ((offsets.diff() + tile - 1) // tile).cumsum(0)
    number = torch.arange(num_rows // tile + num_histories, device=offsets.device)
    history = torch.searchsorted(ends, number, right=True)
    owned = history.clamp(max=num_histories - 1)
    within = number - torch.where(owned > 0, ends[(owned - 1).clamp(min=0)], 0)
    start = torch.where(history < num_histories, offsets[owned] + within * tile, offsets[-1])
    return owned, start


def _power_of_two(width: int) -> int:
    return max(NARROWEST, 1 << (width - 1).bit_length())
