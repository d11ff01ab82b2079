"""Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, eq. 1), by event.

    a_j = sum over d of  (x_jd - x'_jd)  integral over t from 0 to 1 of  dF(x' + t (x - x')) / dx_jd

x' is a baseline, and with several baselines of a question a_j is the mean. The sum over all events is F(x) - F(x'), the axiom of
completeness; the convergence delta is by how much it is missed. Quadratures and their names are those of Captum. A question that
misses the axiom by more than a tolerance is integrated again with twice as many steps.

Completeness holds for scores that are continuous along the path. A search by similarity (SIM) that finds only some of the events is
not: other events can be found along the path.

Shapes: B questions, N events, D model width, V pairs of a baseline of a question and a step.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.explanation.attribution import Attribution
from trainer.explanation.baselines import Baselines
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, pieces, score
from trainer.explanation.gradients import score_and_gradient
from trainer.explanation.questions import Questions

Quadrature = Literal["gausslegendre", "riemann_middle"]
MAX_STEPS = 1_600


@dataclass(frozen=True)
class Integral:
    """The result of one round of integration."""

    values: np.ndarray
    """(N,) float64."""
    baseline_scores: np.ndarray
    """(B,) float64, mean score of the baselines."""


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
        n_steps: steps of each integral.
        internal_batch_size: number of events that are encoded at a time.
        method: quadrature.
        tolerance: largest convergence delta, relative to the difference of the scores of input and baseline. Questions above it
            are integrated again. None: no question is.
        max_steps: no integral is repeated with more steps than these.
    """
    scores = score(model, asked, internal_batch_size)
    done = integrate(model, asked, baselines, n_steps, internal_batch_size, method)
    values = done.values
    sums = sums_of(values, asked)
    difference = scores - done.baseline_scores
    steps = n_steps
    while tolerance is not None and 2 * steps <= max_steps:
        rest = np.flatnonzero(np.abs(sums - difference) > tolerance * np.abs(difference))
        if not model.most(rest.size):
            break
        steps *= 2
        again = asked.take(rest)
        values[np.isin(asked.owner, rest)] = integrate(
            model, again, baselines, steps, internal_batch_size, method, only_values=True
        ).values
        sums = sums_of(values, asked)
    return Attribution(
        f"integrated_gradients_{baselines.kind}",
        values.astype(np.float32),
        asked.offsets,
        scores,
        (sums - difference).astype(np.float32),
        done.baseline_scores.astype(np.float32),
    )


def integrate(
    model: Explained,
    asked: Questions,
    baselines: Baselines,
    n_steps: int,
    internal_batch_size: int | None = None,
    method: Quadrature = "gausslegendre",
    only_values: bool = False,
) -> Integral:
    """Return the integral by event, and the scores of baselines. Collective.

    Args:
        model: the model.
        asked: the questions.
        baselines: where paths begin.
        n_steps: steps of each integral.
        internal_batch_size: number of events that are encoded at a time.
        method: quadrature.
        only_values: leave the scores of the baselines at zero.
    """
    at, weights = quadrature(n_steps, method)
    if not only_values:  # one more step, at the baseline, of which only the score counts
        at, weights = np.append(at, 0.0), np.append(weights, 0.0)
    paths = asked.size * baselines.num_samples
    path = np.repeat(np.arange(paths), at.size)
    step = np.tile(np.arange(at.size), paths)
    owner, sample = path // baselines.num_samples, path % baselines.num_samples
    values = np.zeros(asked.items.size)
    at_baseline = np.zeros(asked.size)
    for piece in pieces(asked.lengths[owner], internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        repeated = asked.take(owner[piece])
        prepared = model.prepare(repeated)
        with torch.no_grad():
            vectors = model.vectors(prepared)
        begin = baselines.vectors.to(vectors)[torch.from_numpy(baselines.index(repeated, sample[piece]))]
        line = vectors - begin
        points = begin + _per_event(at[step[piece]], repeated, vectors) * line
        scores, gradient = score_and_gradient(model, prepared, points)
        products = (gradient * line).sum(dim=1).double().cpu().numpy()
        event = asked.offsets[owner[piece][repeated.owner]] + repeated.places
        values += np.bincount(event, weights[step[piece]][repeated.owner] * products, minlength=asked.items.size)
        last = step[piece] == n_steps
        at_baseline += np.bincount(owner[piece][last], scores.double().cpu().numpy()[last], minlength=asked.size)
    number = baselines.num_samples
    return Integral(values / number, at_baseline / number)


def quadrature(n_steps: int, method: Quadrature) -> tuple[np.ndarray, np.ndarray]:
    """Return the points in [0, 1] and the weights of an integral, (n_steps,) float64 each."""
    if method == "riemann_middle":
        return (np.arange(n_steps) + 0.5) / n_steps, np.full(n_steps, 1.0 / n_steps)
    at, weights = np.polynomial.legendre.leggauss(n_steps)
    return (1.0 + at) / 2.0, weights / 2.0


def sums_of(values: np.ndarray, asked: Questions) -> np.ndarray:
    """Return the sum of the values of each question, (B,) float64."""
    sums: np.ndarray = np.bincount(asked.owner, values, minlength=asked.size)
    return sums


def _per_event(numbers: np.ndarray, asked: Questions, like: Tensor) -> Tensor:
    """Return the number of its question for each event, (N, 1)."""
    return torch.from_numpy(numbers[asked.owner]).to(like)[:, None]
