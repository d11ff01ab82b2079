"""Search in long histories, the first of two stages: it selects a few events for each candidate, which attends to these only.

The method is the search-based interest model (Pi et al. 2020, arXiv:2006.05639, section 3.2). "Hard" search takes the events
that share a category with the candidate, "soft" search those with the largest dot product of vectors. Here hard search takes
the most recent events of the category, and soft search uses the vectors detached: the attention to the selected events learns,
the search does not.

Shapes: N events, M candidates, k events at most for each candidate, D width, R rows, Q candidates and K events of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models import devices
from models.attention.candidates import NO_KEY, CandidateBlock, CandidateLayout
from models.attention.tiled import GPU_PIECE_SCORES, PIECE_SCORES


@torch.no_grad()
def search_by_category(
    event_category: Tensor, candidate_category: Tensor, offsets: Tensor, layout: CandidateLayout, num_found: int
) -> Tensor:
    """Return the places of the most recent events of each candidate's category, (M, k) int64, NO_KEY where there are fewer.

    Events are sorted by history, category and place once. The events of a candidate are then a range that ends at its own
    place.

    Args:
        event_category: (N,) int64; a negative one matches nothing.
        candidate_category: (M,) int64; a negative one matches nothing.
        offsets: of the histories, (B + 1,).
        layout: the layout of the candidates.
        num_found: k.
    """
    num_events = event_category.numel()
    device = event_category.device
    back = torch.arange(1, num_found + 1, device=device)
    if not num_events:
        return torch.full((layout.num_candidates, num_found), NO_KEY, device=device)
    category = _dense_ranks(torch.cat((event_category, candidate_category)))
    lengths = offsets.diff()
    history = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), lengths, output_size=num_events)
    place = torch.arange(num_events, device=device) - (offsets[:-1] - offsets[0])[history]
    longest = num_events + 1  # places are below it
    group = torch.cat((history, layout.history)) * (category.numel() + 1) + category
    own_group, wanted_group = group.split([num_events, layout.num_candidates])
    key, order = (own_group * longest + place).sort()
    stop = torch.searchsorted(key, wanted_group * longest + layout.history_end)
    oldest = (layout.history_end - layout.reach).clamp(min=0)
    start = torch.searchsorted(key, wanted_group * longest + oldest)
    at = stop[:, None] - back
    is_found = (at >= start[:, None]) & (candidate_category >= 0)[:, None]
    return torch.where(is_found, place[order[at.clamp(min=0)]], NO_KEY)


def _dense_ranks(values: Tensor) -> Tensor:
    """Return the place of each value among the distinct ones, in ascending order, without waiting for the device."""
    ordered, order = values.sort(stable=True)
    is_new = F.pad(ordered.diff() != 0, (1, 0))  # the first one begins rank 0
    return torch.empty_like(order).index_copy_(0, order, is_new.cumsum(0))


@torch.no_grad()
def search_by_similarity(event_ND: Tensor, candidate_MD: Tensor, layout: CandidateLayout, num_found: int) -> Tensor:
    """Return the places of the events most similar to each candidate, (M, k) int64, NO_KEY where it sees fewer.

    Of equal dot products the more recent event is preferred, so that the result does not depend on the padding of rows.
    """
    places = torch.full((layout.num_candidates, num_found), NO_KEY, device=candidate_MD.device)
    if not event_ND.shape[0]:
        return places
    size = PIECE_SCORES if devices.is_host(event_ND.device) else GPU_PIECE_SCORES
    for block in layout.blocks:
        pieces = [slice(None)]
        if not layout.traceable:
            rows, queries = block.query_gather.shape
            rows_each = max(1, size // (queries * block.key_gather.shape[1]))
            pieces = [slice(row, row + rows_each) for row in range(0, rows, rows_each)]
        best = torch.cat([_best(block, piece, event_ND, candidate_MD, num_found) for piece in pieces])
        places.index_copy_(0, block.scatter, best.flatten(0, 1).index_select(0, block.block_index))
    return places


def _best(block: CandidateBlock, rows: slice, event_ND: Tensor, candidate_MD: Tensor, num_found: int) -> Tensor:
    """Return places (r, Q, k) for some rows of the block. The number of pairs in memory is bounded."""
    key_gather = block.key_gather[rows]
    key_place = block.key_place[rows, None]
    # Autocast would round scores, so that training would select other events than evaluation.
    with torch.autocast(event_ND.device.type, enabled=False):
        scores = (candidate_MD[block.query_gather[rows]] @ event_ND[key_gather].transpose(-1, -2)).float()
    _, visible = block.pairs(rows, slice(None), key_gather.shape[1])
    # One number orders by score and, for equal scores, by place: floats in the order of integers, in the bits above the place.
    bits = (scores + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    rank = torch.where(visible, ordered * NO_KEY + key_place, torch.iinfo(torch.int64).min)
    top = rank.topk(min(num_found, key_gather.shape[1]), dim=-1).indices
    place = torch.where(visible, key_place, NO_KEY).gather(-1, top)
    return F.pad(place, (0, num_found - place.shape[-1]), value=NO_KEY)
