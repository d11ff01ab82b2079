"""Which blocks of queries and keys FlexAttention has to visit, from the offsets of histories alone.

torch's create_block_mask evaluates the mask of all pairs, about 11.5 bytes for each: 49 GB for 65,536 events. What a query sees
is an interval of keys, and perhaps the oldest events of its history before it. So for a block of queries the blocks of keys
follow from the ends of these intervals: memory is that of the events, and of the pairs of blocks.

The invariant: the blocks are those of create_block_mask, partial and full ones alike.
Shapes: N total events, Q blocks of BLOCK events; numbers of keys that end an interval belong to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from models.batches.jagged import JaggedLayout

BLOCK = 128  # events; what torch's kernels are built for


@dataclass(frozen=True)
class Sight:
    """What an event sees of its own history."""

    # Whether it sees itself and earlier events only.
    causal: bool
    # It sees events less than so many places away; None: no bound.
    window: int | None = None
    # So many of the oldest events are seen from beyond the window too.
    num_global: int = 0


def block_mask(layout: JaggedLayout, sight: Sight) -> BlockMask:
    """Return the mask of packed histories, one after another, without holding a number for each pair of events."""
    place_N, device, num_events = layout.positions, layout.positions.device, layout.num_events
    lengths = layout.offsets.diff()
    history_N = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), lengths, output_size=num_events)

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = place_N[query] - place_N[key]
        seen = history_N[query] == history_N[key]
        if sight.causal:
            seen = seen & (distance >= 0)
        if sight.window is not None:
            seen = seen & ((distance.abs() < sight.window) | (place_N[key] < sight.num_global))
        return seen

    some, full = _visited(place_N, history_N, lengths, sight)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=is_seen,
        seq_lengths=(num_events, num_events),
    )


def _visited(place_N: Tensor, history_N: Tensor, lengths: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """(Q, Q) bool twice, queries by keys: blocks of which some pair, and every pair, is seen."""
    num_events = place_N.numel()
    event_N = torch.arange(num_events, device=place_N.device)
    start_N = event_N - place_N
    last_N = start_N + lengths[history_N] - 1
    (near_from, near_to), (old_from, old_to) = _intervals(event_N, start_N, last_N, sight)
    num_blocks = -(-num_events // BLOCK)
    first_Q = torch.arange(num_blocks, device=place_N.device) * BLOCK
    # A history that began in an earlier block shows its oldest events there. Those of others are next to what is near.
    began_before = start_N < event_N // BLOCK * BLOCK
    nothing = (torch.full_like(event_N, num_events), torch.full_like(event_N, -1))
    extended_to = torch.where(began_before, near_to, torch.maximum(near_to, old_to))
    from_Q, to_Q = _least(near_from, num_events), _largest(extended_to)
    old_from_Q = _least(torch.where(began_before & (old_from <= old_to), old_from, nothing[0]), num_events)
    old_to_Q = _largest(torch.where(began_before & (old_from <= old_to), old_to, nothing[1]))
    last_Q = first_Q + BLOCK - 1
    near = (first_Q <= to_Q[:, None]) & (last_Q >= from_Q[:, None])
    old = (first_Q <= old_to_Q[:, None]) & (last_Q >= old_from_Q[:, None])
    return near | old, _full(place_N, history_N, first_Q, sight)


def _intervals(
    event_N: Tensor, start_N: Tensor, last_N: Tensor, sight: Sight
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """First and last key that each event sees nearby, and among the oldest, which may be none."""
    near_from = start_N if sight.window is None else torch.maximum(start_N, event_N - sight.window + 1)
    near_to = last_N if sight.window is None else torch.minimum(last_N, event_N + sight.window - 1)
    old_to = torch.minimum(last_N, start_N + sight.num_global - 1)
    if sight.causal:
        near_to, old_to = event_N, torch.minimum(old_to, event_N)
    return (near_from, near_to), (start_N, old_to)


def _full(place_N: Tensor, history_N: Tensor, first_Q: Tensor, sight: Sight) -> Tensor:
    """(Q, Q) bool: blocks in which every query sees every key. The last block is none unless it is complete."""
    num_events = place_N.numel()
    last_Q = first_Q + BLOCK - 1
    end_Q = last_Q.clamp(max=num_events - 1)
    of_Q = history_N[first_Q]
    single_Q = (of_Q == history_N[end_Q]) & (last_Q < num_events)
    full = single_Q[:, None] & single_Q & (of_Q[:, None] == of_Q)
    if sight.causal:
        full = full & (last_Q <= first_Q[:, None])
    if sight.window is not None:
        # The key farthest back that is not among the oldest; of those ahead the last one.
        start_Q = first_Q - place_N[first_Q]
        oldest_Q = torch.maximum(first_Q, start_Q + sight.num_global)
        back = (oldest_Q > last_Q) | (last_Q[:, None] - oldest_Q < sight.window)
        ahead = (oldest_Q > last_Q) | (last_Q - first_Q[:, None] < sight.window)
        full = full & back & ahead
    return full


def _least(value_N: Tensor, nothing: int) -> Tensor:
    """(Q,): the least of each block's events."""
    padding = -value_N.numel() % BLOCK
    return torch.nn.functional.pad(value_N, (0, padding), value=nothing).view(-1, BLOCK).amin(dim=1)


def _largest(value_N: Tensor) -> Tensor:
    padding = -value_N.numel() % BLOCK
    return torch.nn.functional.pad(value_N, (0, padding), value=-1).view(-1, BLOCK).amax(dim=1)


def _listed(visited_QQ: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, Q) int32, how many blocks of keys each block of queries visits, and (1, 1, Q, Q) int32, which: those first."""
    count_Q = visited_QQ.sum(dim=1, dtype=torch.int32)
    order_QQ = visited_QQ.int().argsort(dim=1, descending=True, stable=True).int()
    return count_Q[None, None], order_QQ[None, None].contiguous()
