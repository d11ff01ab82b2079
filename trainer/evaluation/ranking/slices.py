"""Slices of the impressions of an evaluation, and those in which a model ranks significantly worse. No torch.

A user may have impressions inside and outside of a slice. So the difference of the two values of a metric is tested with users as
the sampling unit: its standard error comes from the difference of each user's influence on both (metrics.influences).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.evaluation.ranking.intervals import sum_of_squares
from trainer.evaluation.ranking.judged import Judged, Sums, areas_of
from trainer.evaluation.ranking.metrics import METRICS, ImpressionMetric, Totals, UserTerms
from trainer.evaluation.ranking.names import name_of
from trainer.evaluation.ranking.scored import FEATURE_PREFIX, Impressions
from trainer.evaluation.slice_features import feature_slices, reader_of_items, slice_name
from trainer.evaluation.slices import (
    FEW,
    GAPS,
    MIN_USERS,
    Slice,
    TestedSlice,
    extent,
    masks,
    name_worst,
    steps,
)
from trainer.evaluation.sorting import at_shares, sorted_with_places
from trainer.evaluation.spooled import Spool, blocks, chosen, filled, unique_keys

BUILT_IN = ("history_length", "item_impressions", "user_impressions", "time_since_last_event", "hour")
USER_IMPRESSIONS = "user_impressions"  # column of a user's training impressions
SINCE_LAST = "since_last"  # column of the ticks since the last event before the impression, -1 without one
NO_EVENTS = "no events"  # the value of impressions without an event before them
WORST_BY = "auc"  # unlike losses, it does not depend on the rate of positives in a slice
_HOURS = 4  # in a slice by the hour of the day


def built_in_slices(impressions: Impressions, ticks: int | None, names: Sequence[str] | None) -> list[Slice]:
    """Return the slices that need no features.

    Args:
        impressions: all impressions. USER_IMPRESSIONS and SINCE_LAST may be missing.
        ticks: ticks per second of the logs' times; None if these are not clock times.
        names: the chosen slices; None for all.
    """
    slices = [
        *_quarters_of_counts("history_length", impressions.column("history_length")),
        *_quarters_of_counts("item_impressions", impressions.column("item_impressions")),
    ]
    columns = impressions.column_names
    if USER_IMPRESSIONS in columns:
        slices += steps("user_impressions", impressions.column(USER_IMPRESSIONS), FEW)
    if ticks is not None:
        if SINCE_LAST in columns:
            slices += _by_gap(impressions.column(SINCE_LAST), ticks)
        slices += _by_hour(impressions.column("time"), ticks)
    return [part for part in slices if names is None or part.name in names]


def slices_by_features(
    impressions: Impressions, features: Sequence[Feature], folder: Path, manifest: Manifest, unknown: bool
) -> Iterator[Slice]:
    """Yield the slices by features of users, items and impressions.

    Args:
        impressions: all impressions.
        features: the chosen features.
        folder: the dataset.
        manifest: its manifest.
        unknown: whether items that the training part does not know have ids after the known ones.
    """
    for feature in features:
        yield from feature_slices(
            feature, _blocks_of(impressions, feature, folder, manifest, unknown), folder, manifest
        )


def _blocks_of(
    impressions: Impressions, feature: Feature, folder: Path, manifest: Manifest, unknown: bool
) -> Callable[[], Iterator[pa.Array]]:
    """Return the function that reads a feature of all impressions in blocks."""
    if feature.owner == "item":
        values = reader_of_items(feature, folder, manifest, unknown)
        items = impressions.column("item")
        return lambda: (values(items[block]) for block in blocks(items.size))
    name = FEATURE_PREFIX + slice_name(feature)
    return lambda: (whole(table.column(name)) for table in impressions.rows.blocks([name]))


def worst_impressions(impressions: Impressions, slices: Sequence[Slice]) -> dict[str, Any]:
    """Return the slices in which the auc of a label is significantly below that of all other impressions.

    All slices and labels are tested together (trainer.evaluation.slices.name_worst). A slice is tested if the auc is estimated from
    at least MIN_USERS users, inside and outside.
    """
    metric = next(metric for metric in METRICS if metric.name == WORST_BY)
    tested = []
    for label in impressions.labels:
        name = name_of(metric.name, label, impressions.labels)
        for part in slices:
            inside = impressions.judged(label, inside=part.inside)
            outside = impressions.judged(label, inside=part.inside, outside=True)
            if min(metric.independent_users(one) for one in (inside, outside)) >= MIN_USERS:
                tested.append(_tested(metric, name, part, inside, outside))
    return name_worst(tested, WORST_BY)


def _tested(metric: ImpressionMetric, name: str, part: Slice, inside: Judged, outside: Judged) -> TestedSlice:
    """Return a slice with the one-sided test of a metric that is better if larger, by the normal distribution."""
    sides = (inside, outside)
    mean, mean_of_others = (metric.of_totals(Totals(Sums(), areas_of(one.counts))) for one in sides)
    users = _users_of_both(inside, outside)
    of_users, of_others = (metric.influence(UserTerms(one, users)) for one in sides)
    assert of_users is not None
    assert of_others is not None
    squares = sum_of_squares(users.size, lambda some: of_users(some) - of_others(some))
    error = math.sqrt(users.size / (users.size - 1) * squares)
    deficit = mean_of_others - mean
    chance = 0.5 * math.erfc(deficit / error / math.sqrt(2.0)) if error > 0.0 else 1.0
    return TestedSlice(part, unique_keys(inside.user).size, mean, mean_of_others, deficit, chance, name)


def _users_of_both(first: Judged, other: Judged) -> np.ndarray:
    """Return the users of two sets of impressions once, ascending."""
    both = Spool(first.user.dtype)
    for one in (first, other):
        both.append(unique_keys(one.user))
    return unique_keys(sorted_with_places(both.array())[0])


def _quarters_of_counts(name: str, values: np.ndarray) -> Iterator[Slice]:
    """Yield about quarters of the impressions by a count; those with a count of 0 are a slice of their own."""
    some = chosen(values, filled(values.size, np.bool_, lambda block: values[block] > 0))
    ordered = sorted_with_places(some)[0]
    cuts = np.unique(at_shares(ordered, [0.25, 0.5, 0.75])) if some.size else np.zeros(0)

    def quarter(block: slice) -> np.ndarray:
        return np.where(values[block] > 0, np.searchsorted(cuts, values[block], side="left") + 1, 0)

    for inside in masks(filled(values.size, np.int8, quarter), range(cuts.size + 2)):
        if inside.any():
            low, high = extent(values, inside)
            yield Slice(name, f"{low}" if low == high else f"{low}-{high}", inside)


def _by_gap(since: np.ndarray, ticks: int) -> Iterator[Slice]:
    without = filled(since.size, np.bool_, lambda block: since[block] < 0)
    if without.any():
        yield Slice("time_since_last_event", NO_EVENTS, without)
    seconds = filled(since.size, np.float64, lambda block: np.where(without[block], np.inf, since[block] / ticks))
    for part in steps("time_since_last_event", seconds, GAPS):
        inside = filled(since.size, np.bool_, partial(_only_first, part.inside, without))
        if inside.any():
            yield Slice(part.name, part.value, inside)


def _only_first(first: np.ndarray, other: np.ndarray, block: slice) -> np.ndarray:
    inside: np.ndarray = first[block] & ~other[block]
    return inside


def _by_hour(times: np.ndarray, ticks: int) -> Iterator[Slice]:
    part = filled(times.size, np.int8, lambda block: times[block] // (3600 * ticks) % 24 // _HOURS)
    for number, inside in enumerate(masks(part, range(24 // _HOURS))):
        if inside.any():
            first = number * _HOURS
            yield Slice("hour", f"{first:02d}-{first + _HOURS - 1:02d}", inside)


def columns_of(user_impressions: np.ndarray, since_last: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """Return the columns of a worker's impressions that only the built-in slices need, (M,) each."""
    columns = {USER_IMPRESSIONS: user_impressions}
    return columns if since_last is None else columns | {SINCE_LAST: since_last}
