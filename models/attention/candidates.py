"""Candidates as queries: each attends to the events of its history before it, never to another candidate.

A row of a block holds candidates of one history, which share its gathered events as keys. So gathers and products grow with the
number of histories and not of impressions. Rows and blocks are chosen on the host, by lengths alone.

The invariant: candidate m sees event j of its history (counted from 0) if and only if history_end[m] - reach <= j <
history_end[m], and window, num_global and search do not exclude it. Its place is history_end[m], that of the event after all it
sees.

Shapes: B histories, N events, M candidates, R rows of a block, Q candidates of a row, K keys of a row.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.attention.bias import prepare_ages
from models.attention.config import AttentionConfig
from models.batches.jagged import real_places, split_by_length

ROW_SIZE = 8  # candidates of a row at most: more would see too different ranges of their history
NUM_SIZES = 4  # at most
BLOCKS_PER_SIZE = 3  # at most
BLOCK_COST = 4096  # pairs that cost as much as one more block
NO_KEY = 1 << 30  # the place of padding: after every candidate, so that none sees it


@dataclass(frozen=True)
class CandidateBlock:
    """R rows of Q candidates and K events each, in the form that models.attention.tiled needs."""

    query_gather: Tensor  # (R, Q) into candidates, 0 for padding
    key_gather: Tensor  # (R, K) into events, 0 for padding
    query_place: Tensor  # (R, Q), place in the history
    key_place: Tensor  # (R, K), place in the history, NO_KEY for padding
    scatter: Tensor  # (n,), candidates that are queries here
    block_index: Tensor  # (n,), their places in the flat block
    num_keys: tuple[int, ...]  # of each row, on the host, ascending; a single one if all rows have as many
    reach: int
    window: int | None = None
    num_global: int = 0
    itself: bool = False  # a candidate sees itself too, as one more key after the others

    def last_key(self, rows: slice, queries: slice) -> int:
        """Return the number of keys that some rows and queries need."""
        return self.num_keys[int(rows.stop) - 1 if len(self.num_keys) > 1 else 0]

    def pairs(self, rows: slice, queries: slice, stop: int) -> tuple[Tensor, Tensor]:
        """Return (distance, visible) of some rows and queries, and the keys before `stop`, (r, q, stop) each.

        With `itself` there is one key more. The result is computed at each call, since there are many of them.
        """
        key_place = self.key_place[rows, None, :stop]
        distance = self.query_place[rows, queries, None] - key_place
        visible = (distance >= 1) & (distance <= self.reach)
        if self.window is not None:
            # The oldest within reach, so that the number of events in the batch does not matter.
            oldest = (self.query_place[rows, queries, None] - self.reach).clamp(min=0)
            visible &= (distance < self.window) | (key_place < oldest + self.num_global)
        if not self.itself:
            return distance, visible
        own = distance.new_zeros((*distance.shape[:2], 1))
        return torch.cat((distance, own), dim=2), torch.cat((visible, own == 0), dim=2)

    @property
    def may_be_blind(self) -> bool:
        """Return whether a query can see nothing, as a candidate without events before it."""
        return not self.itself

    @cached_property
    def is_counted(self) -> Tensor:
        """Return the entries that are candidates and not padding, (R, Q) bool."""
        return real_places(self.block_index, *self.query_gather.shape)


@dataclass(frozen=True)
class CandidateLayout:
    """The histories and places of the candidates of a batch. Blocks cover every candidate exactly once."""

    history: Tensor  # (M,) int64, history of each candidate
    first_event: Tensor  # (M,) int64, first packed event of that history
    history_end: Tensor  # (M,) int64, number of its events before the candidate
    reach: int  # number of events, the most recent ones, that a candidate sees at most
    blocks: tuple[CandidateBlock, ...]
    traceable: bool = False  # one block, from which torch.export can trace a program (models.attention.traceable)

    @property
    def num_candidates(self) -> int:
        return self.history.numel()


def lay_out_candidates(
    offsets: np.ndarray, candidate_offsets: np.ndarray, history_end: np.ndarray, reach: int
) -> CandidateLayout:
    """Lay out candidates on the host, outside of the step, as `models.batches.jagged.layout_of` does for events.

    Args:
        offsets: of the histories, (B + 1,) int64.
        candidate_offsets: of the candidates of each history, (B + 1,) int64.
        history_end: number of events before each candidate, (M,) int64, in any order.
        reach: number of events, the most recent ones, that a candidate sees at most.
    """
    starts = np.asarray(offsets, dtype=np.int64)[:-1] - offsets[0]
    counts = np.diff(candidate_offsets)
    history = np.repeat(np.arange(counts.size), counts)
    history_end = np.asarray(history_end, dtype=np.int64)
    first_event = starts[history]
    blocks = tuple(_blocks(_rows(counts, first_event, history_end, reach), history_end, reach))
    owner, first, end = map(torch.from_numpy, (history, first_event, history_end))
    return CandidateLayout(owner, first, end, reach, blocks)


@dataclass(frozen=True)
class _Rows:
    """Candidates first .. first + size - 1 of one history, and the places of the keys that they need; (rows,) int64 each."""

    first: np.ndarray
    size: np.ndarray
    first_event: np.ndarray
    first_key: np.ndarray
    num_keys: np.ndarray


def _rows(counts: np.ndarray, first_event: np.ndarray, history_end: np.ndarray, reach: int) -> _Rows:
    """Split the candidates of each history into as few rows as possible, of about equal size."""
    rows_each = -(-counts // ROW_SIZE)
    own = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)  # number within the same history
    row = np.repeat(rows_each.cumsum() - rows_each, counts)
    row += own * np.repeat(rows_each, counts) // np.repeat(counts, counts)
    first = np.flatnonzero(np.diff(row, prepend=-1))
    if not first.size:
        return _Rows(first, first, first, first, first)
    first_key = np.maximum(0, np.minimum.reduceat(history_end, first) - reach)
    num_keys = np.maximum.reduceat(history_end, first) - first_key
    return _Rows(first, np.diff(first, append=row.size), first_event[first], first_key, num_keys)


def _blocks(rows: _Rows, history_end: np.ndarray, reach: int) -> list[CandidateBlock]:
    """Group rows of similar size and number of keys into blocks. More blocks are used only where they save more than they cost."""
    lengths = np.maximum(1, rows.num_keys)
    by_size = np.argsort(rows.size, kind="stable")
    ways = [_partition(rows.size, lengths, by_size, num_sizes) for num_sizes in {1, 2, NUM_SIZES}]
    return [_block(rows, chosen, history_end, reach) for chosen in min(ways, key=lambda way: way[0])[1]]


def _partition(
    size: np.ndarray, lengths: np.ndarray, by_size: np.ndarray, num_sizes: int
) -> tuple[float, list[np.ndarray]]:
    """Return the cost of a partition into blocks, in pairs, and its rows. `size`, `lengths`: of all rows."""
    cost = 0.0
    chosen = []
    for group in split_by_length(by_size, size, num_sizes):
        order = group[np.argsort(lengths[group], kind="stable")]
        widest = int(size[group].max())
        blocks = split_by_length(order, lengths, BLOCKS_PER_SIZE, BLOCK_COST / widest)
        cost += sum(float(block.size * widest * lengths[block].max()) + BLOCK_COST for block in blocks)
        chosen += blocks
    return cost, chosen


def _block(rows: _Rows, chosen: np.ndarray, history_end: np.ndarray, reach: int) -> CandidateBlock:
    query = np.arange(rows.size[chosen].max())
    is_query = query < rows.size[chosen, None]
    query_gather = np.where(is_query, rows.first[chosen, None] + query, 0)
    key = np.arange(max(1, rows.num_keys[chosen].max()))
    is_key = key < rows.num_keys[chosen, None]
    key_place = rows.first_key[chosen, None] + key
    block_index = np.flatnonzero(is_query)
    return CandidateBlock(
        torch.from_numpy(query_gather),
        torch.from_numpy(np.where(is_key, rows.first_event[chosen, None] + key_place, 0)),
        torch.from_numpy(np.where(is_query, history_end[query_gather], 0)),
        torch.from_numpy(np.where(is_key, key_place, NO_KEY)),
        torch.from_numpy(query_gather.reshape(-1)[block_index]),
        torch.from_numpy(block_index),
        tuple(np.maximum(1, rows.num_keys[chosen]).tolist()),
        reach,
    )


@dataclass
class CandidateContext:
    """State that all layers with candidates as queries share for one batch."""

    layout: CandidateLayout
    times: Tensor | None = None  # (M,) int64; None: no part uses times
    event_times: Tensor | None = None  # (N,) int64, in the same unit
    itself: bool = False  # a candidate sees itself too, as in the blocks of an encoder
    _blocks: dict[tuple[int | None, int], list[CandidateBlock]] = field(default_factory=dict)
    _ages: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def blocks(self, config: AttentionConfig) -> list[CandidateBlock]:
        """Return the blocks of a form of attention. They are built once for all layers of the same form."""
        key = (config.window, config.num_global)
        if key not in self._blocks:
            self._blocks[key] = [
                replace(block, window=config.window, num_global=config.num_global, itself=self.itself)
                for block in self.layout.blocks
            ]
        return self._blocks[key]

    def ages(self, block: CandidateBlock, form: str) -> Tensor:
        """Return the input of a time bias, (R, Q, K), or K + 1 with itself: the time from each key to the candidate."""
        assert self.times is not None
        assert self.event_times is not None
        key = (id(block), form)
        if key not in self._ages:
            # Blocks point at an event even if the batch has none.
            known = self.event_times if self.event_times.numel() else self.event_times.new_zeros(1)
            shown = self.times[block.query_gather]
            key_times = known[block.key_gather]
            age = (shown[:, :, None] - key_times[:, None, :]).clamp_(min=0)
            if block.itself:
                age = torch.cat((age, age.new_zeros((*age.shape[:2], 1))), dim=2)
            self._ages[key] = prepare_ages(age, form)
        return self._ages[key]

    def narrowed(self, place: Tensor) -> "CandidateContext":
        """Return the context where each candidate sees only the events at `place` (M, k) int64 of its history.

        NO_KEY is no event. Every candidate is then a row of its own, since no two share their keys.
        """
        layout = self.layout
        number = torch.arange(layout.num_candidates, device=place.device)
        block = CandidateBlock(
            number[:, None],
            torch.where(place < NO_KEY, layout.first_event[:, None] + place, 0),
            layout.history_end[:, None],
            place,
            number,
            number,
            (place.shape[1],),
            layout.reach,
        )
        return replace(self, layout=replace(layout, blocks=(block,)), _blocks={}, _ages={})
