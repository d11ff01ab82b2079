"""Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, eq. 1), by event.

    a_j = sum over d of  (x_jd - x'_jd)  integral over t from 0 to 1 of  dF(x' + t (x - x')) / dx_jd

x' is a baseline, and with several baselines of a question a_j is the mean. The sum over all events is F(x) - F(x'), the axiom of
completeness; the convergence delta is by how much it is missed. Quadratures and their names are those of Captum.

The axiom holds for every interval of a path, so it shows where the integral is not exact: at the beginning of a path from zeros, a
norm changes within a few thousandths of the path. Such an interval is cut in halves, and these again.

Completeness holds for scores that are continuous along the path. A search by similarity (SIM) that selects only some of the events
is not: other events can be selected along the path.

Shapes: B questions, N events, D model width, P paths (baselines of questions), I intervals, V points of all intervals.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.explanation.attribution import Attribution
from trainer.explanation.baselines import Baselines
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, pieces
from trainer.explanation.gradients import score_and_gradient
from trainer.explanation.questions import Questions

Quadrature = Literal["gausslegendre", "riemann_middle"]
MAX_STEPS = 1_600
FINER = 16  # parts of an interval may miss the axiom by this much less, since there are several of them
ROUNDING = 1e-6  # of a score in single precision: a smaller delta says nothing


@dataclass(frozen=True)
class _Intervals:
    """Intervals of paths."""

    path: np.ndarray  # (I,) int64
    low: np.ndarray  # (I,) float64 in [0, 1]
    high: np.ndarray  # (I,) float64 in [0, 1]

    def halves(self, chosen: np.ndarray) -> "_Intervals":
        """Return both halves of some intervals, which are given by number."""
        low, high = self.low[chosen], self.high[chosen]
        middle = (low + high) / 2
        return _Intervals(np.tile(self.path[chosen], 2), np.concatenate((low, middle)), np.concatenate((middle, high)))


@dataclass(frozen=True)
class _Integrals:
    """Integrals over intervals."""

    values: np.ndarray  # packed float64, an entry for each event of the question of each interval
    offsets: np.ndarray  # (I + 1,) int64 bounds in `values`
    low: np.ndarray  # (I,) float64, scores at the lower ends
    high: np.ndarray  # (I,) float64, scores at the upper ends

    @property
    def delta(self) -> np.ndarray:
        """By how much each interval misses the axiom of completeness, (I,)."""
        interval = np.repeat(np.arange(self.low.size), np.diff(self.offsets))
        delta: np.ndarray = np.bincount(interval, self.values, minlength=self.low.size) - (self.high - self.low)
        return delta


def attribute(
    model: Explained,
    asked: Questions,
    baselines: Baselines,
    n_steps: int = 50,
    internal_batch_size: int | None = None,
    method: Quadrature = "gausslegendre",
    tolerance: float | None = 0.01,
    max_steps: int = MAX_STEPS,
) -> Attribution:
    """Return the integrated gradients of each event, with convergence deltas. Collective.

    Args:
        model: the model.
        asked: the questions.
        baselines: where paths begin.
        n_steps: steps of each path; a half of an interval has half as many, at least 8.
        internal_batch_size: number of events that are encoded at a time.
        method: quadrature.
        tolerance: largest convergence delta of a path, relative to the difference of the scores at its ends. Intervals of a path
            above it are cut. None: no interval is.
        max_steps: steps of a path after which its intervals are not cut any more.
    """
    paths = asked.size * baselines.num_samples
    owner = np.repeat(np.arange(asked.size), baselines.num_samples)
    intervals = _Intervals(np.arange(paths), np.zeros(paths), np.ones(paths))
    values = np.zeros(asked.items.size)
    done = _integrate(model, asked, baselines, intervals, n_steps, method, internal_batch_size)
    begin, end = done.low, done.high
    allowed = np.maximum((tolerance or 0.0) * np.abs(end - begin), ROUNDING * np.maximum(np.abs(begin), np.abs(end)))
    used = np.full(paths, n_steps)
    steps = n_steps
    share = 1
    while True:
        missed = np.abs(done.delta) > allowed[intervals.path] / share
        missed &= (tolerance is not None) & (used[intervals.path] < max_steps)
        _add(values, done, intervals, owner, asked, ~missed)
        if not model.most(int(missed.sum())):
            break
        intervals = intervals.halves(np.flatnonzero(missed))
        steps, share = max(8, n_steps // 2), FINER
        used += steps * np.bincount(intervals.path, minlength=paths)
        done = _integrate(model, asked, baselines, intervals, steps, method, internal_batch_size)
    number = baselines.num_samples
    values /= number
    scores = end.reshape(asked.size, number)[:, 0] if asked.size else np.zeros(0)
    baseline_scores = begin.reshape(asked.size, number).mean(axis=1) if asked.size else np.zeros(0)
    sums = np.bincount(asked.owner, values, minlength=asked.size)
    return Attribution(
        f"integrated_gradients_{baselines.kind}",
        values.astype(np.float32),
        asked.offsets,
        scores.astype(np.float32),
        (sums - (scores - baseline_scores)).astype(np.float32),
        baseline_scores.astype(np.float32),
    )


def _integrate(
    model: Explained,
    asked: Questions,
    baselines: Baselines,
    intervals: _Intervals,
    n_steps: int,
    method: Quadrature,
    internal_batch_size: int | None,
) -> _Integrals:
    """Return the integrals over intervals. Collective."""
    number = intervals.path.size
    at, weights = quadrature(n_steps, method)
    at, weights = np.append(at, (0.0, 1.0)), np.append(weights, (0.0, 0.0))  # of both ends only the score counts
    interval = np.repeat(np.arange(number), at.size)
    point = np.tile(np.arange(at.size), number)
    length = (intervals.high - intervals.low)[interval]
    place = intervals.low[interval] + length * at[point]
    # A path is a pair of a question and one of its baselines.
    owner, sample = np.divmod(intervals.path[interval], baselines.num_samples)
    question = intervals.path // baselines.num_samples
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(asked.lengths[question])))
    values, ends = np.zeros(int(offsets[-1])), np.zeros((2, number))
    for piece in pieces(asked.lengths[owner], internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        repeated = asked.take(owner[piece])
        prepared = model.prepare(repeated)
        with torch.no_grad():
            vectors = model.vectors(prepared)
        begin = baselines.vectors.to(vectors)[torch.from_numpy(baselines.index(repeated, sample[piece]))]
        line = vectors - begin
        scores, gradient = score_and_gradient(
            model, prepared, begin + _per_event(place[piece], repeated, vectors) * line
        )
        products = (gradient * line).sum(dim=1).double().cpu().numpy()
        weight = (weights[point] * length)[piece]
        event = offsets[interval[piece]][repeated.owner] + repeated.places
        values += np.bincount(event, weight[repeated.owner] * products, minlength=values.size)
        for end in range(2):
            is_end = point[piece] == n_steps + end
            ends[end, interval[piece][is_end]] = scores.double().cpu().numpy()[: repeated.size][is_end]
    return _Integrals(values, offsets, ends[0], ends[1])


def _add(
    values: np.ndarray,
    done: _Integrals,
    intervals: _Intervals,
    owner: np.ndarray,
    asked: Questions,
    accepted: np.ndarray,
) -> None:
    """Add the integrals over accepted intervals, (I,) bool, to the values of events, (N,), in place."""
    interval = np.repeat(np.arange(accepted.size), np.diff(done.offsets))
    place = np.arange(interval.size) - done.offsets[interval]
    event = asked.offsets[owner[intervals.path[interval]]] + place
    kept = accepted[interval]
    values += np.bincount(event[kept], done.values[kept], minlength=values.size)


def quadrature(n_steps: int, method: Quadrature) -> tuple[np.ndarray, np.ndarray]:
    """Return the points in [0, 1] and the weights of an integral, (n_steps,) float64 each."""
    if method == "riemann_middle":
        return (np.arange(n_steps) + 0.5) / n_steps, np.full(n_steps, 1.0 / n_steps)
    at, weights = np.polynomial.legendre.leggauss(n_steps)
    return (1.0 + at) / 2.0, weights / 2.0


def _per_event(numbers: np.ndarray, asked: Questions, like: Tensor) -> Tensor:
    """Return the number of its question for each event, (N, 1)."""
    return torch.from_numpy(numbers[asked.owner]).to(like)[:, None]
