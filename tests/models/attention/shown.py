"""Histories with candidates that the tests of attention share."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.attention.candidates import CandidateContext, CandidateLayout, lay_out_candidates
from models.batches.jagged import JaggedLayout
from tests.models.attention.forms import layout_from

# Empty histories and histories without candidates; a candidate before all events; more candidates than a row holds.
LENGTHS = [4, 0, 1, 12, 40, 3, 7]
COUNTS = [3, 2, 0, 9, 70, 1, 5]
REACH = 24


@dataclass(frozen=True)
class Shown:
    """Histories of events at `times` (N,), and candidates at `candidate_times` (M,), each after history_end events."""

    lengths: list[int]
    counts: list[int]
    history_end: np.ndarray
    times: Tensor
    candidate_times: Tensor
    reach: int = REACH

    @property
    def layout(self) -> JaggedLayout:
        return layout_from(self.lengths)

    @property
    def candidate_layout(self) -> CandidateLayout:
        offsets, owned = (np.concatenate(([0], np.cumsum(sizes))) for sizes in (self.lengths, self.counts))
        return lay_out_candidates(offsets, owned, self.history_end, self.reach)

    def context(self, itself: bool = False) -> CandidateContext:
        return CandidateContext(self.candidate_layout, self.candidate_times, self.times, itself)

    def history_of(self, candidate: int) -> int:
        return int(np.searchsorted(np.cumsum(self.counts), candidate, side="right"))

    def alone(self, candidate: int) -> tuple["Shown", slice, slice]:
        """Return one candidate with its history and nothing else; which events and candidates these are."""
        history = self.history_of(candidate)
        start = sum(self.lengths[:history])
        events, own = slice(start, start + self.lengths[history]), slice(candidate, candidate + 1)
        only = replace(
            self,
            lengths=[self.lengths[history]],
            counts=[1],
            history_end=self.history_end[own],
            times=self.times[events],
            candidate_times=self.candidate_times[own],
        )
        return only, events, own


def shown(
    lengths: list[int] | None = None, counts: list[int] | None = None, seed: int = 3, reach: int = REACH
) -> Shown:
    """Return candidates in the order of time, each at some place of its history: events are minutes to years apart."""
    lengths, counts = lengths or LENGTHS, counts or COUNTS
    random = np.random.default_rng(seed)
    ends = [np.sort(random.integers(0, length + 1, count)) for length, count in zip(lengths, counts, strict=True)]
    times = 10**9 + np.exp(random.uniform(0, 18, sum(lengths))).astype(np.int64).cumsum()
    starts = np.cumsum(lengths) - lengths
    before = np.concatenate([start + end - 1 for start, end in zip(starts, ends, strict=True)])
    since = random.integers(0, 86400, before.size)
    history_end = np.concatenate(ends)
    candidate_times = np.where(history_end > 0, times[before.clip(0)] + since, 10**9 - 5) if times.size else since
    return Shown(lengths, counts, history_end, torch.from_numpy(times), torch.from_numpy(candidate_times), reach)


def vectors(rows: int, heads: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, heads, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
