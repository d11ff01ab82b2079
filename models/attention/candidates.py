"""Candidates as queries: each looks at the events of its history that lie before it, never at another candidate.

A row of a block holds candidates of one history, which share its gathered events as keys, so that what is gathered and multiplied
grows with histories and not with impressions. How rows and blocks are cut is settled on the host, by numbers alone.
The invariant: candidate m sees event j of its history (counted from 0) if and only if history_end[m] - reach <= j < history_end[m],
and of those what window, the oldest events seen from beyond it (num_global) and search leave; its place is history_end[m], that of
the event after all it sees.

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

ROW_SIZE = 8  # candidates of a row at most: more would see too different stretches of their history
NUM_SIZES, BLOCKS_PER_SIZE = 4, 3  # at most
BLOCK_COST = 4096  # pairs that cost as much as one more block
NO_KEY = 1 << 30  # the place of a key that is none: after every candidate, so that none sees it


@dataclass(frozen=True)
class CandidateBlock:
    """R rows of Q candidates and K events each; what models.attention.tiled needs of a block.

    query_gather (R, Q) into candidates, key_gather (R, K) into events, 0 where there is none. query_place (R, Q), key_place (R, K):
    places in the history, of keys that are none NO_KEY. scatter, block_index: (n,), candidates that are queries here, and where
    they sit in the flat block. num_keys: how many keys each row has, on the host, ascending. itself: whether a candidate sees
    itself too, as one more key behind the others.
    """

    query_gather: Tensor
    key_gather: Tensor
    query_place: Tensor
    key_place: Tensor
    scatter: Tensor
    block_index: Tensor
    num_keys: tuple[int, ...]
    reach: int
    window: int | None = None
    num_global: int = 0
    itself: bool = False

    def last_key(self, rows: slice, queries: slice) -> int:
        """How many keys have to be looked at for some rows and queries."""
        return self.num_keys[int(rows.stop) - 1]

    def pairs(self, rows: slice, queries: slice, stop: int) -> tuple[Tensor, Tensor]:
        """(distance, visible) of some rows and queries, and the keys before `stop`, (r, q, stop) each, or one more with itself.

        Made anew each time: they are many.
        """
        key_place = self.key_place[rows, None, :stop]
        distance = self.query_place[rows, queries, None] - key_place
        visible = (distance >= 1) & (distance <= self.reach)
        if self.window is not None:
            # The oldest of those within reach, so that it does not matter how many more the batch has.
            oldest = (self.query_place[rows, queries, None] - self.reach).clamp(min=0)
            visible &= (distance < self.window) | (key_place < oldest + self.num_global)
        if not self.itself:
            return distance, visible
        own = distance.new_zeros((*distance.shape[:2], 1))
        return torch.cat((distance, own), dim=2), torch.cat((visible, own == 0), dim=2)

    @property
    def may_be_blind(self) -> bool:
        """Whether a query may see nothing at all: a candidate without events before it."""
        return not self.itself

    @cached_property
    def is_counted(self) -> Tensor:
        """(R, Q) bool: whether a candidate is there, and no padding."""
        return real_places(self.block_index, *self.query_gather.shape)

    def to(self, device: torch.device) -> "CandidateBlock":
        names = ("query_gather", "key_gather", "query_place", "key_place", "scatter", "block_index")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class CandidateLayout:
    """Where the candidates of a batch stand. history, first_event, history_end: (M,) int64.

    history: whose each is; first_event: the first packed event of that history; history_end: how many events it has before the
    candidate. reach: how many of them, the most recent, a candidate sees at most. blocks cover every candidate exactly once.
    """

    history: Tensor
    first_event: Tensor
    history_end: Tensor
    reach: int
    blocks: tuple[CandidateBlock, ...]

    @property
    def num_candidates(self) -> int:
        return int(self.history.numel())

    def to(self, device: torch.device) -> "CandidateLayout":
        return CandidateLayout(
            self.history.to(device),
            self.first_event.to(device),
            self.history_end.to(device),
            self.reach,
            tuple(block.to(device) for block in self.blocks),
        )


def lay_out_candidates(
    offsets: np.ndarray, candidate_offsets: np.ndarray, history_end: np.ndarray, reach: int
) -> CandidateLayout:
    """From the offsets of histories and of their candidates, (B + 1,) int64 each, and history_end (M,) int64, in any order.

    Runs on the host, away from the step, as `models.batches.jagged.layout_of`.
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
    """The candidates of a history in as few rows as fit, of about equal size."""
    rows_each = -(-counts // ROW_SIZE)
    own = np.arange(counts.sum()) - np.repeat(
        counts.cumsum() - counts, counts
    )  # number among those of the same history
    row = np.repeat(rows_each.cumsum() - rows_each, counts)
    row += own * np.repeat(rows_each, counts) // np.repeat(counts, counts)
    first = np.flatnonzero(np.diff(row, prepend=-1))
    if not first.size:
        return _Rows(first, first, first, first, first)
    first_key = np.maximum(0, np.minimum.reduceat(history_end, first) - reach)
    num_keys = np.maximum.reduceat(history_end, first) - first_key
    return _Rows(first, np.diff(first, append=row.size), first_event[first], first_key, num_keys)


def _blocks(rows: _Rows, history_end: np.ndarray, reach: int) -> list[CandidateBlock]:
    """Rows of similar size and similarly many keys together, in as few blocks as pay for what they save."""
    lengths = np.maximum(1, rows.num_keys)
    by_size = np.argsort(rows.size, kind="stable")
    ways = [_partition(rows.size, lengths, by_size, num_sizes) for num_sizes in {1, 2, NUM_SIZES}]
    return [_block(rows, chosen, history_end, reach) for chosen in min(ways, key=lambda way: way[0])[1]]


def _partition(
    size: np.ndarray, lengths: np.ndarray, by_size: np.ndarray, num_sizes: int
) -> tuple[float, list[np.ndarray]]:
    """What a partition into blocks costs, in pairs, and its rows. size, lengths: of all rows."""
    cost, chosen = 0.0, []
    for alike in split_by_length(by_size, size, num_sizes):
        order, widest = alike[np.argsort(lengths[alike], kind="stable")], int(size[alike].max())
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
    """What all layers in which candidates are queries share for one batch.

    times (M,), event_times (N,): int64 in one unit, none where no part asks for them. itself: whether a candidate sees itself
    beside its events, as it does when it passes through an encoder's blocks.
    """

    layout: CandidateLayout
    times: Tensor | None = None
    event_times: Tensor | None = None
    itself: bool = False
    _blocks: dict[tuple[int | None, int], list[CandidateBlock]] = field(default_factory=dict)
    _ages: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def blocks(self, config: AttentionConfig) -> list[CandidateBlock]:
        """The blocks that a form of attention looks at; made once for all layers of the same form."""
        key = (config.window, config.num_global)
        if key not in self._blocks:
            self._blocks[key] = [
                replace(block, window=config.window, num_global=config.num_global, itself=self.itself)
                for block in self.layout.blocks
            ]
        return self._blocks[key]

    def ages(self, block: CandidateBlock, form: str) -> Tensor:
        """(R, Q, K), or K + 1 with itself: how long before each candidate the key happened, as a time bias looks at it."""
        assert self.times is not None
        assert self.event_times is not None
        key = (id(block), form)
        if key not in self._ages:
            # Blocks point at an event even if there is none.
            known = self.event_times if self.event_times.numel() else self.event_times.new_zeros(1)
            shown, happened = self.times[block.query_gather], known[block.key_gather]
            age = (shown[:, :, None] - happened[:, None, :]).clamp_(min=0)
            if block.itself:
                age = torch.cat((age, age.new_zeros((*age.shape[:2], 1))), dim=2)
            self._ages[key] = prepare_ages(age, form)
        return self._ages[key]

    def narrowed(self, place: Tensor) -> "CandidateContext":
        """The same, where each candidate sees only the events at `place` (M, k) int64 of its history; NO_KEY is none.

        Every candidate is a row of its own then: no two need to share their keys.
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
            number.numel() * (place.shape[1],),
            layout.reach,
        )
        return replace(self, layout=replace(layout, blocks=(block,)), _blocks={}, _ages={})
