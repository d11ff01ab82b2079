"""Layouts of a batch from which torch.export can trace a program with batch and event dimensions that may vary.

The layouts of training choose buckets and blocks by the lengths of the batch, on the host. Here all histories are one padded block
and all candidates one other, whatever the lengths. Attention is the same function on both (attend.py). Its fast paths take no
decision by sizes if the layout is `traceable`, so that the sizes may be symbols.

Padded sizes cannot follow from the values of a tensor in a traced program. So they are the sizes of an input: `places` are the
numbers 0, 1, 2 and so on below the longest history.

Shapes: B histories, N events, L longest history or more, M candidates, Q most candidates of a history or more.
"""

import torch
from torch import Tensor

from models.attention.candidates import NO_KEY, CandidateBlock, CandidateLayout
from models.batches.jagged import Bucket, JaggedLayout, MergedEvents, NewestEvents


def traceable_layout(offsets: Tensor, num_events: int, places: Tensor) -> JaggedLayout:
    """Return the layout of histories as one padded block.

    Args:
        offsets: of the histories, (B + 1,) int64 from 0.
        num_events: N.
        places: (L,) int64.
    """
    owner, position = _owners(offsets, num_events)
    gather = _gather(offsets, places)
    event = torch.arange(num_events, device=offsets.device)
    bucket = Bucket(gather, event, owner * places.shape[0] + position)
    return JaggedLayout(offsets, position, (bucket,), traceable=True)


def traceable_candidates(
    layout: JaggedLayout, candidate_offsets: Tensor, history_end: Tensor, reach: int, candidate_places: Tensor
) -> CandidateLayout:
    """Return the layout of candidates as one block with a row per history.

    Args:
        layout: of the histories, traceable.
        candidate_offsets: of the candidates of each history, (B + 1,) int64 from 0.
        history_end: number of events before each candidate, (M,) int64.
        reach: number of events, the most recent ones, that a candidate sees at most.
        candidate_places: (Q,) int64.
    """
    num_candidates = history_end.shape[0]
    owner, position = _owners(candidate_offsets, num_candidates)
    query_gather = _gather(candidate_offsets, candidate_places)
    key_gather = layout.buckets[0].gather
    key_place = torch.arange(key_gather.shape[1], device=key_gather.device).expand_as(key_gather)
    number = torch.arange(num_candidates, device=history_end.device)
    block = CandidateBlock(
        query_gather,
        key_gather,
        history_end[query_gather],
        torch.where(key_place < layout.offsets.diff()[:, None], key_place, NO_KEY),
        number,
        owner * candidate_places.shape[0] + position,
        (key_gather.shape[1],),
        reach,
    )
    return CandidateLayout(owner, layout.offsets[owner], history_end, reach, (block,), traceable=True)


def traceable_newest(layout: JaggedLayout, number: int) -> NewestEvents:
    """Return the newest events of each history as one padded block with `number` places for each.

    A shorter history is followed by padding, which counts as events. No event of the history sees it, and nobody uses its output.
    """
    lengths = layout.offsets.diff()
    kept = lengths.clamp(max=number)
    place = torch.arange(number, device=lengths.device)
    starts = layout.offsets[1:] - kept
    index = torch.where(place < kept[:, None], starts[:, None] + place, 0).flatten()
    event = torch.arange(lengths.shape[0] * number, device=lengths.device)
    gather = event.view(-1, number)
    offsets = torch.arange(lengths.shape[0] + 1, device=lengths.device) * number
    bucket = Bucket(gather, event, event)
    own = JaggedLayout(offsets, place.expand_as(gather).flatten(), (bucket,), traceable=True)
    return NewestEvents(number, index, own)


def traceable_merged(layout: JaggedLayout, size: int, recent: int, longest: int) -> MergedEvents:
    """Return the tokens of each history as one padded block, with as many groups for each as the longest history can have.

    Its own groups come first, then its newest events. Tokens that follow are padding. No token of the history sees them, and nobody
    uses their output.

    Args:
        layout: of the events, traceable. No history is empty.
        size: number of events of a group.
        recent: number of newest events that are not merged.
        longest: number of events of the longest history that is allowed.
    """
    start = layout.offsets[:-1, None]
    num_older, num_groups, num_tokens = _tokens(layout, size, recent)
    most_groups = -(-max(0, longest - recent) // size)
    group = torch.arange(most_groups, device=start.device)
    first = start + num_older - (num_groups - group) * size  # event of the first slot of each group, (B, most_groups)
    slot = torch.arange(size, device=start.device)
    event = first[:, :, None] + slot
    is_event = (event >= start[:, :, None]) & (group < num_groups)[:, :, None]
    # A slot without an event points at the last one, which always has one in a group that is used: so attention sees it once.
    slots = torch.arange(is_event.numel(), device=start.device).view(is_event.shape)
    groups = JaggedLayout(
        torch.arange(is_event.numel() // size + 1, device=start.device) * size,
        slot.expand(is_event.shape).flatten(),
        (Bucket(slots.view(-1, size), slots.flatten(), torch.where(is_event, slots, slots[:, :, -1:]).flatten()),),
        traceable=True,
    )
    place = torch.arange(most_groups + recent, device=start.device)
    is_group = place < num_groups
    is_whole = ~is_group & (place < num_tokens)
    whole_event = torch.where(is_whole, start + num_older + place - num_groups, 0)
    number = torch.arange(start.shape[0], device=start.device)[:, None]
    last_of_group = start + num_older - (num_groups - 1 - place) * size - 1
    rows = torch.where(is_group, number * most_groups + place, start.shape[0] * most_groups + whole_event)
    tokens = torch.arange(rows.numel(), device=start.device).view(rows.shape)
    own = JaggedLayout(
        torch.arange(start.shape[0] + 1, device=start.device) * place.shape[0],
        place.expand_as(tokens).flatten(),
        (Bucket(tokens, tokens.flatten(), tokens.flatten()),),
        traceable=True,
    )
    return MergedEvents(
        torch.where(is_event, event, 0).flatten(),
        slots.flatten(),
        groups,
        rows.flatten(),
        torch.where(is_group, last_of_group, whole_event).flatten(),
        own,
        is_event.flatten(),
    )


def _tokens(layout: JaggedLayout, size: int, recent: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many older events, groups and tokens each history has, (B, 1) int64 each."""
    lengths = layout.offsets.diff()[:, None]
    num_older = (lengths - recent).clamp(min=0)
    num_groups = (num_older + size - 1) // size
    return num_older, num_groups, num_groups + lengths - num_older


def last_tokens(layout: JaggedLayout, size: int, recent: int, longest: int) -> Tensor:
    """Return the row of the last event of each history, (B,) int64, among the tokens of `traceable_merged`."""
    _, _, num_tokens = _tokens(layout, size, recent)
    most = -(-max(0, longest - recent) // size) + recent
    return torch.arange(num_tokens.shape[0], device=num_tokens.device) * most + num_tokens[:, 0] - 1


def last_rows(layout: JaggedLayout, number: int | None) -> Tensor:
    """Return the row of the last event of each history, (B,) int64, in what an encoder returns of a traceable layout.

    number: how many newest events the last blocks receive; None: all.
    """
    if number is None:
        return layout.offsets[1:] - 1
    lengths = layout.offsets.diff()
    return torch.arange(lengths.shape[0], device=lengths.device) * number + lengths.clamp(max=number) - 1


def last_of_each(layout: JaggedLayout) -> Tensor:
    """Return which events are the last of their history, (N,) bool."""
    return _ends_at(layout.offsets, layout.num_events)[1:] > 0


def _owners(offsets: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the owner of each of `number` packed entries, and its place among those of the owner, (number,) int64 each."""
    owner = _ends_at(offsets, number)[:-1].cumsum(0)
    return owner, torch.arange(number, device=offsets.device) - offsets[owner]


def _ends_at(offsets: Tensor, number: int) -> Tensor:
    """Return how many owners end before each of `number` entries, and at the end, (number + 1,) int64."""
    ends = offsets[1:]
    # Not a search in the offsets: ONNX has none.
    return torch.zeros(number + 1, dtype=torch.int64, device=offsets.device).scatter_add(0, ends, torch.ones_like(ends))


def _gather(offsets: Tensor, places: Tensor) -> Tensor:
    """Return the packed entries of each owner, right-padded with entry 0, (owners, places) int64."""
    starts = offsets[:-1, None]
    return torch.where(places < offsets.diff()[:, None], starts + places, 0)
