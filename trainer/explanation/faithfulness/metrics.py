"""Metrics of faithfulness: what removing events by their importance does to the place and the probability of the explained item.

Definitions (LXR: Barkan et al. 2024, WWW, doi 10.1145/3589334.3645560; with a fixed number of events: Baklanov et al. 2025, SIGIR,
doi 10.1145/3726302.3730242; SPINRec: Barkan et al. 2026, AAAI, arXiv:2511.18047). An order ranks the n events of a history by their
importance. With the k most important events removed, the explained item has the place r(k) among all candidates and the probability
p(k), a softmax over them. With the k least important events removed its place is r'(k). With only the k most important events
kept its probability is q(k).

pos@K  1 if r(k) <= K. Smaller is better.
neg@K  1 if r'(k) <= K. Larger is better.
del    p(k). Smaller is better.
ins    q(k). Larger is better.
cdcg   1 / log2(1 + r(k)). Smaller is better.

Each is measured at a fixed k, or as an area over growing shares of the history (levels.py). Every value is in [0, 1]. Pure numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.evaluation.confidence import SHARE
from trainer.evaluation.metric import Metric

CUTOFFS = (5, 10, 20)
Side = Literal["most", "least", "kept"]


@dataclass(frozen=True, kw_only=True)
class FaithfulnessMetric(Metric):
    """A metric of faithfulness."""

    side: Side
    """What is removed: the most important events, the least important ones, or all but the most important ones ("kept")."""


METRICS = (
    FaithfulnessMetric(
        name="pos",
        explanation="Share of users for whom the item is still among the first K after its most important events are removed.",
        larger_is_better=False,
        within=SHARE,
        has_cutoff=True,
        side="most",
    ),
    FaithfulnessMetric(
        name="neg",
        explanation="Share of users for whom the item is still among the first K after its least important events are removed.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        side="least",
    ),
    FaithfulnessMetric(
        name="del",
        explanation="Probability of the item after its most important events are removed.",
        larger_is_better=False,
        within=SHARE,
        side="most",
    ),
    FaithfulnessMetric(
        name="ins",
        explanation="Probability of the item with its most important events only.",
        larger_is_better=True,
        within=SHARE,
        side="kept",
    ),
    FaithfulnessMetric(
        name="cdcg",
        explanation="Discounted gain, 1 / log2(1 + place), of the item after its most important events are removed.",
        larger_is_better=False,
        within=SHARE,
        side="most",
    ),
)


def metric_names() -> tuple[str, ...]:
    """Return the names of all values, for example "pos@5" and "del"."""
    return tuple(metric.value_name(k) for metric in METRICS for k in (CUTOFFS if metric.has_cutoff else CUTOFFS[:1]))


def metric_of(name: str) -> FaithfulnessMetric:
    """Return the metric of a value, for example of "pos@5". Raises KeyError if there is none."""
    for metric in METRICS:
        if metric.matches(name):
            return metric
    raise KeyError(f"no metric of faithfulness is called {name!r}")


def larger_is_better(name: str) -> bool:
    """Return whether a larger value is better."""
    return metric_of(name).larger_is_better is True


def values_at(
    places: Mapping[Side, np.ndarray] | None, probabilities: Mapping[Side, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the values by name, each of the shape of its places.

    Args:
        places: of the explained item, from 1, by what was removed; None for rankers, which only have probabilities.
        probabilities: of the explained item, by what was removed.
    """
    values: dict[str, np.ndarray] = {}
    if places is not None:
        for name, side in (("pos", "most"), ("neg", "least")):
            values |= {f"{name}@{k}": (places[side] <= k).astype(np.float64) for k in CUTOFFS}  # type: ignore[index]
    values |= {"del": probabilities["most"], "ins": probabilities["kept"]}
    if places is not None:
        values["cdcg"] = 1.0 / np.log2(1.0 + places["most"])
    return values
