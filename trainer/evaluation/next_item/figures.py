"""All metrics of one ranking of the items, the model's or a baseline's: per user, in total, and with intervals. No torch."""

from dataclasses import dataclass

import numpy as np

from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import catalogue_metrics, list_metrics, user_metrics
from trainer.evaluation.next_item.user_values import UserValues, intervals, means


@dataclass(frozen=True)
class Figures:
    """Metrics by name."""

    columns: dict[str, UserValues]
    """The values of the users, of each metric that is a mean over users."""
    metrics: dict[str, float]
    """All metrics: those of `columns`, then those of all lists together."""
    ci95: dict[str, list[float]]
    """The 95 % confidence interval over users of each metric."""


def figures_of(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, lists: RankedLists, ks: list[int]
) -> Figures:
    """Return all metrics of a ranking.

    Args:
        targets: (T,) packed ids of the held-out items; 0 is an unknown item.
        target_ranks: (T,) packed, from 1; 0 where a target cannot be ranked.
        offsets: (U + 1,) bounds of the users' targets.
        lists: the first items of each user's ranking, at least max(ks).
        ks: the cut-offs.
    """
    columns = user_metrics(targets, target_ranks, offsets, ks, lists.train_events) | list_metrics(lists, ks)
    of_catalogue = catalogue_metrics(lists, ks)
    return Figures(
        columns,
        means(columns) | {name: value.value for name, value in of_catalogue.items()},
        intervals(columns) | {name: list(value.interval) for name, value in of_catalogue.items()},
    )
