"""Slices: parts of the users, or of the impressions, that are evaluated by themselves, and the worst of them. Pure numpy.

The worst slices are those with a mean significantly below the mean of everybody else: a one-sided z-test of the difference of two
independent means, with Holm's correction for the number of tested slices (Holm 1979, Scandinavian Journal of Statistics 6).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.sorting import at_shares, sorted_with_places
from trainer.evaluation.spooled import blocks, chosen, filled, spooled

MIN_USERS = 50  # inside and outside of a slice, for the test
LEVEL = 0.05  # of the test, over all slices together
NUM_WORST = 5  # slices that a report names
# (first value, name) of each slice by a number of training events or impressions, and by seconds.
FEW = ((0, "none"), (1, "1-5"), (6, "6-20"), (21, "21-100"), (101, "more than 100"))
_HOUR, _DAY = 3_600, 86_400
GAPS = (
    (0, "less than an hour"),
    (_HOUR, "an hour to a day"),
    (_DAY, "1 to 7 days"),
    (7 * _DAY, "7 to 30 days"),
    (30 * _DAY, "30 days or more"),
)


@dataclass(frozen=True)
class Slice:
    """A part of n users or impressions."""

    name: str
    """Name of the slices, for example "history_length"."""
    value: str
    """The one of them, for example "1-18"."""
    inside: np.ndarray
    """(n,) bool."""


def quarters(name: str, values: np.ndarray, text: Callable[[float, float], str]) -> Iterator[Slice]:
    """Yield slices of about a quarter of the values each; a value that is not a number is in none.

    Args:
        name: of the slices.
        values: (n,).
        text: the name of a slice, from its smallest and largest value.
    """
    known = chosen(values, filled(values.size, np.bool_, lambda block: ~np.isnan(values[block])))
    if not known.size:
        return
    cuts = np.unique(at_shares(sorted_with_places(known)[0], [0.25, 0.5, 0.75, 1.0]))

    def quarter(block: slice) -> np.ndarray:
        return np.where(np.isnan(values[block]), -1, np.searchsorted(cuts, values[block], side="left"))

    for inside in masks(filled(values.size, np.int8, quarter), range(cuts.size)):
        yield Slice(name, text(*extent(values, inside)), inside)


def masks(numbers: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Return where an array (n,) has each of w numbers, (w, n) bool. All masks are one array, because a file has one each."""
    inside = spooled((len(wanted), numbers.size), np.bool_)
    for block in blocks(numbers.size):
        for place, number in enumerate(wanted):
            inside[place, block] = numbers[block] == number
    return inside


def extent(values: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest value where `inside` is true; it is true somewhere."""
    bounds = [(own.min(), own.max()) for block in blocks(values.size) if (own := values[block][inside[block]]).size]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def steps(name: str, values: np.ndarray, bounds: Sequence[tuple[float, str]]) -> Iterator[Slice]:
    """Yield slices by fixed bounds, without those that are empty.

    Args:
        name: of the slices.
        values: (n,).
        bounds: (first value, name) of each slice, ascending; the first one has the smaller values too.
    """
    firsts = [first for first, _ in bounds]

    def place(block: slice) -> np.ndarray:
        return np.maximum(np.searchsorted(firsts, values[block], side="right") - 1, 0)

    places = filled(values.size, np.int8, place)
    for (_, value), inside in zip(bounds, masks(places, range(len(bounds))), strict=True):
        if inside.any():
            yield Slice(name, value, inside)


@dataclass(frozen=True)
class TestedSlice:
    """A slice, its metric, and the test against everybody else."""

    part: Slice
    """The slice."""
    num_users: int
    """Users of the slice."""
    mean: float
    """The metric inside."""
    mean_of_others: float
    """The metric outside."""
    deficit: float
    """How much worse the metric is inside; negative if it is better."""
    chance: float
    """The one-sided p-value of such a deficit."""
    metric: str
    """The metric."""


def worst_slices(
    slices: Sequence[Slice], values: np.ndarray, metric: str, larger_is_better: bool = True
) -> dict[str, Any]:
    """Return the slices that are significantly worse than everybody else, the largest deficit first, and how they were tested.

    Args:
        slices: the slices.
        values: (n,) values of which the metric is the mean.
        metric: the name of the metric.
        larger_is_better: whether a smaller mean is the worse one.
    """
    sign = 1.0 if larger_is_better else -1.0
    tested = []
    for part in slices:
        inside, outside = values[part.inside], values[~part.inside]
        if min(inside.size, outside.size) >= MIN_USERS:
            means = float(inside.mean()), float(outside.mean())
            chance = _chance(sign * inside, sign * outside)
            tested.append(TestedSlice(part, inside.size, *means, sign * (means[1] - means[0]), chance, metric))
    return name_worst(tested, metric)


def name_worst(tested: Sequence[TestedSlice], metric: str) -> dict[str, Any]:
    """Return the slices that are significantly worse after the correction for all of them, the largest deficit first.

    Args:
        tested: all tested slices.
        metric: the metric or metrics of the test, in words.
    """
    adjusted = holm([of.chance for of in tested])
    worse = [number for number, chance in enumerate(adjusted) if chance < LEVEL and tested[number].deficit > 0]
    worse.sort(key=lambda number: -tested[number].deficit)
    return {
        "metric": metric,
        "num_tested": len(tested),
        "min_users": MIN_USERS,
        "level": LEVEL,
        "slices": [
            {
                "name": tested[number].part.name,
                "value": tested[number].part.value,
                "num_users": tested[number].num_users,
                "mean": tested[number].mean,
                "mean_of_others": tested[number].mean_of_others,
                "p_value": adjusted[number],
                **({} if tested[number].metric == metric else {"metric": tested[number].metric}),
            }
            for number in worse[:NUM_WORST]
        ],
    }


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down procedure, in the order given."""
    adjusted = [1.0] * len(chances)
    largest = 0.0
    for step, number in enumerate(sorted(range(len(chances)), key=lambda number: chances[number])):
        largest = max(largest, min(1.0, chances[number] * (len(chances) - step)))
        adjusted[number] = largest
    return adjusted


def _chance(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the one-sided p-value of a mean inside that is below the one outside, by the normal distribution.

    The standard error is the larger one of those from each side's own variance and from the variance of all. In a small slice
    without any hit the own variance is 0, which would make the difference seem certain.
    """
    own = inside.var(ddof=1) / inside.size + outside.var(ddof=1) / outside.size
    of_all = np.concatenate((inside, outside)).var(ddof=1) * (1.0 / inside.size + 1.0 / outside.size)
    error = math.sqrt(max(own, of_all))
    if error == 0.0:
        return 1.0
    return 0.5 * math.erfc(float(outside.mean() - inside.mean()) / error / math.sqrt(2.0))
