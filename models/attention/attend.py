"""Attention over jagged histories: one function, with a path that is chosen by form, device and shapes.

The invariant: an event attends to the events of its own history that its mask allows, and to no others. Under a causal mask
these are itself and earlier events. All paths equal models/attention/reference.py in values and gradients.

Shapes: N total events, M candidates, H heads of queries, G heads of keys and values, K head width, V width of values, C
channels.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.blocks import AttentionContext, HistoryBlock
from models.attention.candidates import CandidateBlock, CandidateContext
from models.attention.compiled import compiled_attention, compiled_fits
from models.attention.continued import ContinuedContext
from models.attention.gpu import flash_attention, flash_fits, flex_fits, flexible_attention
from models.attention.terms import Attended, AttentionTerms
from models.attention.tiled import are_kept, tiled_attention, whole_attention
from models.attention.triton_attention import (
    has_triton,
    ranges_of_candidates,
    ranges_of_events,
    triton_attention,
    triton_attention_with_itself,
    triton_fits,
)
from models.batches.jagged import JaggedLayout, padded, padded_parts, unpadded

KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # of the Triton kernels


def attend(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext,
    parts: AttentionTerms,
    joint_NS: Tensor | None = None,
) -> Attended:
    """Compute the attention of each event, (N, C, H, V), and the penalty of the weights if `parts` include it.

    Candidates of the context follow the events in all tensors, (N + M, ...). If the context requests candidates only, they are
    all of the output. If it requests the last or newest events of each history only, the queries and the output are theirs alone,
    and keys and values are those of all events. With a ContinuedContext the events attend to past ones too.

    Args:
        query_NHK: queries.
        key_NGK: keys.
        value_NGV: values.
        context: the layout of the batch.
        parts: the form of the attention.
        joint_NS: the tensor of which queries, keys and values are the columns, in this order, if there is one. Gathers and
            gradients of all three then need one pass over memory.
    """
    if isinstance(context, ContinuedContext):
        key_NGK, value_NGV = context.with_past(key_NGK, value_NGV)
        return _in_tiles(query_NHK, key_NGK, value_NGV, context, parts)
    if context.chosen is not None:
        return _of_chosen_events(query_NHK, key_NGK, value_NGV, context, parts)
    shown = context.candidates
    if shown is None:
        return _among_events(query_NHK, key_NGK, value_NGV, context, parts, joint_NS)
    sizes = [context.layout.num_events, shown.layout.num_candidates]
    (query, candidate_query), (key, own_key), (value, own_value) = (
        t.split(sizes) for t in (query_NHK, key_NGK, value_NGV)
    )
    if candidates_fit_triton(query, shown, parts):
        ranges = ranges_of_candidates(shown, context.layout.offsets, context.longest, parts)
        own = (own_key, own_value)
        candidates = Attended(triton_attention_with_itself(candidate_query, key, value, own, ranges, parts)[:, None])
    else:
        candidates = attend_to_events(candidate_query, key, value, shown, parts, (own_key, own_value))
    if context.outputs == "candidates":
        return candidates
    events = _among_events(query, key, value, context, parts)
    penalty = None
    if events.penalty is not None and candidates.penalty is not None:
        penalty = events.penalty + candidates.penalty
    return Attended(torch.cat((events.output, candidates.output)), penalty)


def candidates_fit_triton(query: Tensor, context: CandidateContext, parts: AttentionTerms) -> bool:
    """Return whether the Triton kernels compute the attention of an encoder's candidates."""
    on_gpu = query.is_cuda and query.dtype in KERNEL_TYPES and has_triton()
    return on_gpu and context.itself and triton_fits(parts)


def attend_to_events(
    query_MHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: CandidateContext,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
) -> Attended:
    """Compute the attention of each candidate to the events of its history, (M, C, H, V); zeros if it sees none.

    own: key (M, G, K) and value (M, G, V) of the candidates, if each sees itself too.
    """
    if not key_NGK.shape[0]:
        # A row for padding, since blocks point at one.
        key_NGK, value_NGV = (F.pad(packed, (0, 0, 0, 0, 0, 1)) for packed in (key_NGK, value_NGV))
    return _in_tiles(query_MHK, key_NGK, value_NGV, context, parts, own)


def _among_events(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext,
    parts: AttentionTerms,
    joint_NS: Tensor | None = None,
) -> Attended:
    if compiled_fits(query_NHK, context, parts):
        return compiled_attention(query_NHK, key_NGK, value_NGV, context, parts, joint_NS)
    capability = torch.cuda.get_device_capability(query_NHK.device) if query_NHK.is_cuda else None
    match path_of(parts, query_NHK, value_NGV, capability, context.window(parts.config)):
        case "flash":
            return Attended(flash_attention(query_NHK, key_NGK, value_NGV, context, parts)[:, None])
        case "plain":
            softmax = _softmax_attention(query_NHK, key_NGK, value_NGV, context.layout, parts.scale, joint_NS)
            return Attended(softmax[:, None])
        case "triton":
            ranges = ranges_of_events(context, parts)
            return Attended(triton_attention(query_NHK, key_NGK, value_NGV, ranges, parts)[:, None])
        case "flex":
            return Attended(flexible_attention(query_NHK, key_NGK, value_NGV, context, parts)[:, None])
        case "plain_within":
            return Attended(_masked_softmax(query_NHK, key_NGK, value_NGV, context, parts)[:, None])
        case "pieces":
            return _in_tiles(query_NHK, key_NGK, value_NGV, context, parts)


def _of_chosen_events(
    query_nHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: AttentionTerms
) -> Attended:
    # Few queries per history are too little work for the kernels of GPUs: both paths run on every device.
    if parts.is_softmax_without_bias and query_nHK.shape[0]:
        return Attended(_masked_softmax(query_nHK, key_NGK, value_NGV, context, parts)[:, None])
    return _in_tiles(query_nHK, key_NGK, value_NGV, context, parts)


def path_of(
    parts: AttentionTerms,
    query_NHK: Tensor,
    value_NGV: Tensor,
    capability: tuple[int, int] | None,
    window: int | None = None,
) -> Literal["flash", "plain", "triton", "flex", "plain_within", "pieces"]:
    """Choose the path by which events attend to events.

    Args:
        parts: the form of the attention.
        query_NHK: the queries.
        value_NGV: the values.
        capability: compute capability of the GPU, None on other devices.
        window: number of events that an event attends to at most, by the form's window and the batch's reach; None: no limit.
    """
    has_events = query_NHK.shape[0] > 0  # GPU kernels do not accept empty input
    widths = query_NHK.shape[-1], value_NGV.shape[-1]
    if has_events and capability is not None and flash_fits(parts, query_NHK.dtype, *widths, capability):
        return "flash"
    if parts.is_plain and window is None:
        return "plain"
    # FlexAttention adds the gradients of biases in any order, and so would not repeat; it has no weights but a softmax.
    for_kernel = triton_fits(parts) and not parts.is_softmax_without_bias and query_NHK.dtype in KERNEL_TYPES
    if has_events and capability is not None and for_kernel and has_triton():
        return "triton"
    if has_events and capability is not None and flex_fits(parts):
        return "flex"
    return "plain_within" if parts.is_plain else "pieces"


def _in_tiles(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    context: AttentionContext | CandidateContext,
    parts: AttentionTerms,
    own: tuple[Tensor, ...] = (),
) -> Attended:
    blocks: Sequence[HistoryBlock | CandidateBlock] = context.blocks(parts.config)
    penalty = torch.zeros((), device=query_NHK.device)
    outputs: list[Tensor] = []
    shape = (query_NHK.shape[0], parts.config.num_channels, query_NHK.shape[1], value_NGV.shape[-1])
    if not blocks:
        return Attended(value_NGV.new_zeros(shape), penalty if parts.with_penalty else None)
    layout = _layout_of_whole(blocks, context)
    queries, *own_parts = (
        _rows(packed, [block.query_gather for block in blocks], layout) for packed in (query_NHK, *own)
    )
    keys, values = (_rows(packed, [block.key_gather for block in blocks], layout) for packed in (key_NGK, value_NGV))
    keep = not context.layout.traceable and are_kept(blocks, query_NHK.shape[1], parts)
    for block, query, key, value, *own_rows in zip(blocks, queries, keys, values, *own_parts, strict=True):
        ages = context.ages(block, parts.time.form) if parts.time is not None else None  # type: ignore[arg-type]
        if context.layout.traceable:
            outputs.append(
                whole_attention(query, key, value, block, ages, parts, tuple(own_rows)).permute(0, 3, 1, 2, 4)
            )
            continue
        attended, penalty_of_block = tiled_attention(query, key, value, block, ages, parts, tuple(own_rows), keep)
        outputs.append(attended.permute(0, 3, 1, 2, 4))
        penalty = penalty + penalty_of_block
    output_NCHV = _packed(outputs, blocks, layout, value_NGV.new_zeros(shape))
    return Attended(output_NCHV, penalty if parts.with_penalty else None)


def _masked_softmax(
    query_NHK: Tensor, key_NGK: Tensor, value_NGV: Tensor, context: AttentionContext, parts: AttentionTerms
) -> Tensor:
    """Compute a softmax over the visible events, (N, H, V), by torch's scaled_dot_product_attention with a mask.

    Padding of a row needs no mask of its own: its queries see some event, and no event sees its keys.
    """
    blocks = context.blocks(parts.config)
    layout = _layout_of_whole(blocks, context)
    queries = _rows(query_NHK, [block.query_gather for block in blocks], layout)
    keys, values = (_rows(packed, [block.key_gather for block in blocks], layout) for packed in (key_NGK, value_NGV))
    outputs = []
    for block, *rows in zip(blocks, queries, keys, values, strict=True):
        attended = _fused_attention(rows, parts.scale, attn_mask=block.visible[:, None])
        outputs.append(attended.transpose(1, 2))
    return _packed(outputs, blocks, layout, value_NGV.new_zeros((*query_NHK.shape[:2], value_NGV.shape[-1])))


def _layout_of_whole(
    blocks: Sequence[HistoryBlock | CandidateBlock], context: AttentionContext | CandidateContext
) -> JaggedLayout | None:
    """Return the layout of the events if its buckets are the blocks, with whole histories as rows; else None."""
    whole = all(block.key_gather is block.query_gather for block in blocks)
    return context.layout if whole and isinstance(context, AttentionContext) else None


def _packed(
    outputs: list[Tensor], blocks: Sequence[HistoryBlock | CandidateBlock], layout: JaggedLayout | None, nothing: Tensor
) -> Tensor:
    """Return packed events from the (R, Q, ...) of each block. `nothing`: zeros, for events that are in no block."""
    if layout is not None:
        return unpadded(outputs, layout)
    real = [of.flatten(0, 1).index_select(0, block.block_index) for of, block in zip(outputs, blocks, strict=True)]
    return nothing.index_copy_(0, torch.cat([block.scatter for block in blocks]), torch.cat(real))


def _rows(packed_NHK: Tensor, gathers: list[Tensor], layout: JaggedLayout | None) -> list[Tensor]:
    """Return the rows (R, H, L, K) of each block from packed events, in one gather with one sum as gradient.

    layout: given if its buckets are the blocks.
    """
    if layout is not None:
        return [rows.transpose(1, 2) for rows in padded(packed_NHK, layout)]
    flat = packed_NHK.index_select(0, torch.cat([gather.reshape(-1) for gather in gathers]))
    parts_of_rows = zip(flat.split([gather.numel() for gather in gathers]), gathers, strict=True)
    return [piece.view(*gather.shape, *packed_NHK.shape[1:]).transpose(1, 2) for piece, gather in parts_of_rows]


def _softmax_attention(
    query_NHK: Tensor,
    key_NGK: Tensor,
    value_NGV: Tensor,
    layout: JaggedLayout,
    scale: float,
    joint_NS: Tensor | None = None,
) -> Tensor:
    """Compute a causal softmax over length buckets, (N, H, V), by torch's scaled_dot_product_attention.

    Histories are padded on the right, so under a causal mask no real event sees padding and no second mask is needed.
    """
    if not layout.buckets:
        return value_NGV.new_zeros((*query_NHK.shape[:2], value_NGV.shape[-1]))
    packed = (query_NHK, key_NGK, value_NGV)
    blocks: Iterable[tuple[Tensor, ...]]
    if joint_NS is not None or torch.is_grad_enabled():
        # One gather of contiguous rows for all three, and one sum as its gradient.
        joint_NS = torch.cat([each.flatten(1) for each in packed], dim=-1) if joint_NS is None else joint_NS
        blocks = padded_parts(joint_NS, [each.shape[1] * each.shape[2] for each in packed], layout)
    else:
        blocks = zip(*(padded(each.flatten(1), layout) for each in packed), strict=True)
    attended = []
    for block in blocks:
        rows = [part.unflatten(-1, each.shape[1:]).transpose(1, 2) for part, each in zip(block, packed, strict=True)]
        attended.append(_fused_attention(rows, scale, is_causal=True).transpose(1, 2))
    return unpadded(attended, layout)


def _fused_attention(rows: Sequence[Tensor], scale: float, **mask: Any) -> Tensor:
    """Compute torch's scaled_dot_product_attention of queries (R, H, Q, K), keys (R, G, K, K) and values (R, G, K, V).

    In training a CPU computes it in float32 at least: its backward pass in bfloat16 takes twice as long.
    """
    query, key, value = rows
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, scale=scale, **mask)
    with torch.autocast("cpu", enabled=False):
        exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale, **mask)
    return exact.to(query.dtype)
