"""All metrics of one ranking of the items, the model's or a baseline's: per user, in total, and with intervals. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import catalogue_metrics, list_metrics, user_metrics
from trainer.evaluation.next_item.user_values import UserValues, intervals, means
from trainer.evaluation.spooled import spooled


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
    return figures_of_columns(columns_of(targets, target_ranks, offsets, lists, ks), lists, ks)


def columns_of(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, lists: RankedLists, ks: list[int]
) -> dict[str, UserValues]:
    """Return the metrics that are means over users, by name. A user's value depends on no other user.

    Arguments are those of figures_of.
    """
    return user_metrics(targets, target_ranks, offsets, ks, lists.train_events) | list_metrics(lists, ks)


def figures_of_columns(columns: dict[str, UserValues], lists: RankedLists, ks: list[int]) -> Figures:
    """Return all metrics of a ranking from the values of users and the lists."""
    of_catalogue = catalogue_metrics(lists, ks)
    return Figures(
        columns,
        means(columns) | {name: value.value for name, value in of_catalogue.items()},
        intervals(columns) | {name: list(value.interval) for name, value in of_catalogue.items()},
    )


def joined_columns(num_users: int, pieces: Iterable[dict[str, UserValues]]) -> dict[str, UserValues]:
    """Return the values of all users, in temporary files, from those of consecutive parts of them.

    Args:
        num_users: the number of all users.
        pieces: the values of the parts, by metric. They are taken one at a time.
    """
    values: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    last: dict[str, UserValues] = {}
    stop = 0
    for last in pieces:
        start = stop
        for name, part in last.items():
            stop = start + part.size
            if name not in values:
                values[name] = spooled(num_users, np.float64)
            values[name][start:stop] = part.values
            if part.weights is not None and name not in weights:
                weights[name] = spooled(num_users, np.float64)
                weights[name][:start] = 1.0  # those without weights count equally
            if name in weights:
                weights[name][start:stop] = 1.0 if part.weights is None else part.weights
    return {name: UserValues(column, last[name].within, weights.get(name)) for name, column in values.items()}
