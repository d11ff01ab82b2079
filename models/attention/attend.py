"""Attention over jagged histories: one function, and the path by which it is computed chosen by form, device and shapes.

The invariant: an event attends to what its mask lets it see of its own history, and to nothing else; under a causal mask these are
itself and earlier events. All paths equal models/attention/reference.py in values and gradients.
Shapes: N total events, H heads of queries, G heads of keys and values, K head width, V width of values, C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.gpu import flash_attention, flash_fits, flex_fits, flexible_attention
from models.attention.parts import Attended, Parts
from models.attention.pieces import attend_in_pieces
from models.jagged import JaggedLayout


def attend(query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: Parts) -> Attended:
    """What each event sees, (N, C, H, V), and the penalty of the weights where it is wanted.

    Where candidates pass through beside the events they stand behind them in all tensors, (N + M, ...), or are all of the output.
    """
    shown = context.candidates
    if shown is None:
        return _among_events(query_NHK, key_NGK, value_NGV, context, parts)
    sizes = [context.layout.num_events, shown.layout.num_candidates]
    (query, theirs), (key, own_key), (value, own_value) = (t.split(sizes) for t in (query_NHK, key_NGK, value_NGV))
    candidates = attend_to_events(theirs, key, value, shown, parts, (own_key, own_value))
    if context.only_candidates:
        return candidates
    events = _among_events(query, key, value, context, parts)
    penalty = None
    if events.penalty is not None and candidates.penalty is not None:
        penalty = events.penalty + candidates.penalty
    return Attended(torch.cat((events.output, candidates.output)), penalty)


def attend_to_events(
    query_MHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: CandidateContext,
    parts: Parts,
    own: tuple[Tensor, ...] = (),
) -> Attended:
    """What each candidate sees of its history's events, (M, C, H, V); zeros if it sees nothing.

    own: key (M, G, K) and value (M, G, V) of the candidates, if each sees itself too.
    """
    if not key_NGK.shape[0]:
        # A row that stands for padding, since blocks point at one.
        key_NGK, value_NGV = (F.pad(packed, (0, 0, 0, 0, 0, 1)) for packed in (key_NGK, value_NGV))
    return _in_pieces(query_MHK, key_NGK, value_NGV, context, parts, own)


def _among_events(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: Parts
) -> Attended:
    if query_NHK.is_cuda and flash_fits(parts, query_NHK.dtype):
        return Attended(flash_attention(query_NHK, key_NGK, value_NGV, context, parts)[:, None])
    if parts.is_plain:
        return Attended(_softmax_attention(query_NHK, key_NGK, value_NGV, context.layout, parts.scale)[:, None])
    if query_NHK.is_cuda and flex_fits(parts):
        return Attended(flexible_attention(query_NHK, key_NGK, value_NGV, context, parts)[:, None])
    return _in_pieces(query_NHK, key_NGK, value_NGV, context, parts)


def _in_pieces(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext | CandidateContext,
    parts: Parts,
    own: tuple[Tensor, ...] = (),
) -> Attended:
    num_queries, num_heads = query_NHK.shape[:2]
    shape = (num_queries, parts.config.num_channels, num_heads, value_NGV.shape[-1])
    output_NCHV = value_NGV.new_zeros(shape)
    penalty = torch.zeros((), device=query_NHK.device)
    for block in context.blocks(parts.config):
        query = _rows(query_NHK, block.query_gather)
        key, value = _rows(key_NGK, block.key_gather), _rows(value_NGV, block.key_gather)
        ages = context.ages(block, parts.time.form) if parts.time is not None else None  # type: ignore[arg-type]
        own_rows = tuple(_rows(packed, block.query_gather) for packed in own)
        attended, penalty_of_block = attend_in_pieces(query, key, value, block, ages, parts, own_rows)
        flat = attended.permute(0, 3, 1, 2, 4).reshape(-1, *shape[1:])
        output_NCHV = output_NCHV.index_copy(0, block.scatter, flat.index_select(0, block.block_index))
        penalty = penalty + penalty_of_block
    return Attended(output_NCHV, penalty if parts.with_penalty else None)


def _rows(packed_NHK: Tensor, gather: Tensor) -> Tensor:
    """(R, H, L, K) from packed events."""
    rows = packed_NHK.index_select(0, gather.reshape(-1)).view(*gather.shape, *packed_NHK.shape[1:])
    return rows.transpose(1, 2)


def _softmax_attention(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, layout: JaggedLayout, scale: float
) -> Tensor:
    """Causal softmax over length buckets, through torch's scaled_dot_product_attention. Returns (N, H, V).

    Histories are padded on the right, so under a causal mask no real event ever sees padding and no second mask is
    needed. Padding repeats event 0, whose outputs are dropped and which therefore receives no gradient from them.
    """
    shared = query_NHK.shape[1] // key_NGK.shape[1]
    if shared > 1:
        key_NGK, value_NGV = key_NGK.repeat_interleave(shared, dim=1), value_NGV.repeat_interleave(shared, dim=1)
    output_NHV = value_NGV.new_zeros((*query_NHK.shape[:2], value_NGV.shape[-1]))
    alike = query_NHK.shape == value_NGV.shape
    # One gather for all three: they share the index, and the packed (N, 3, H, K) rows are contiguous.
    packed_N3HK = torch.stack((query_NHK, key_NGK, value_NGV), dim=1) if alike else None
    for bucket in layout.buckets:
        rows, longest = bucket.gather.shape
        if packed_N3HK is not None:
            block = packed_N3HK.index_select(0, bucket.gather.reshape(-1))
            query, key, value = block.view(rows, longest, *packed_N3HK.shape[1:]).permute(2, 0, 3, 1, 4)
        else:
            query, key, value = (_rows(packed, bucket.gather) for packed in (query_NHK, key_NGK, value_NGV))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        flat = attended.transpose(1, 2).reshape(rows * longest, *output_NHV.shape[1:])
        output_NHV = output_NHV.index_copy(0, bucket.scatter, flat.index_select(0, bucket.block_index))
    return output_NHV
