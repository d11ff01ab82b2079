"""Slices of a next-item evaluation: of users by history and time, and by the first target and its features. No torch."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.evaluation.slice_features import feature_slices, item_values
from trainer.evaluation.slices import FEW, GAPS, Slice, steps
from trainer.evaluation.spooled import kept

BUILT_IN = (
    "history_length",
    "target_popularity",
    "target_training_events",
    "user_training_events",
    "time_since_last_event",
)
TRAIN_LENGTH = "train_length"  # column of a user's training events
SINCE_LAST = "since_last"  # column of the ticks between the last event of the history and the first target
USER_PREFIX = "slice."  # of the columns of user features


def built_in_slices(
    rows: pa.Table, first_targets: np.ndarray, train_events: np.ndarray, ticks: int | None, names: list[str] | None
) -> list[Slice]:
    """Return the slices that need no features.

    Args:
        rows: the rows of results.merge_parts. TRAIN_LENGTH and SINCE_LAST may be missing.
        first_targets: (U,) id of each user's first target; 0 is unknown.
        train_events: (num_items,) training events by id from 1 on.
        ticks: ticks per second of the logs' times; None if these are not clock times.
        names: the chosen slices; None for all.
    """
    of_target = np.concatenate(([0], train_events))[first_targets]
    slices = [
        *_by_length(rows.column("history_length").to_numpy()),
        *_by_popularity(of_target, train_events),
        *steps("target_training_events", of_target, FEW),
    ]
    if TRAIN_LENGTH in rows.column_names:
        slices += steps("user_training_events", rows.column(TRAIN_LENGTH).to_numpy(), FEW)
    if SINCE_LAST in rows.column_names and ticks is not None:
        slices += steps("time_since_last_event", rows.column(SINCE_LAST).to_numpy() / ticks, GAPS)
    return [part for part in slices if names is None or part.name in names]


def slices_by_features(
    rows: pa.Table,
    first_targets: np.ndarray,
    features: tuple[Feature, ...],
    folder: Path,
    manifest: Manifest,
    unknown: bool,
) -> Iterator[Slice]:
    """Yield the slices by features: of users, and of the first target.

    Args:
        rows: the rows of results.merge_parts.
        first_targets: (U,) id of each user's first target.
        features: the chosen features.
        folder: the dataset.
        manifest: its manifest.
        unknown: whether items that the training part does not know have ids after the known ones.
    """
    for feature in features:
        if feature.owner == "item":
            values = item_values(feature, first_targets, folder, manifest, unknown)
        else:
            values = whole(rows.column(USER_PREFIX + feature.column))
        yield from feature_slices(feature, [values].__iter__, folder, manifest)


def first_targets_of(rows: pa.Table) -> np.ndarray:
    """Return the id of each user's first target, (U,); every user has one."""
    first: np.ndarray = pc.list_element(rows.column("targets"), 0).to_numpy()
    return first


def _by_length(lengths: np.ndarray) -> Iterator[Slice]:
    """Yield quartiles of history length."""
    cuts = np.quantile(lengths, [0.25, 0.5, 0.75])
    for low, high in itertools.pairwise([0, *(int(cut) for cut in cuts), int(lengths.max())]):
        inside = (lengths > low) & (lengths <= high)
        if inside.any():
            yield Slice("history_length", f"{low + 1}-{high}", kept(inside))


def _by_popularity(of_target: np.ndarray, train_events: np.ndarray) -> Iterator[Slice]:
    """Yield head, middle and tail: items that each have a third of the training events."""
    order = np.sort(train_events)[::-1]
    share = np.cumsum(order) / max(1, order.sum())
    cuts = np.minimum(np.searchsorted(share, np.asarray([1 / 3, 2 / 3])), order.size - 1)
    head = order[cuts[0]]
    middle = order[cuts[1]]
    for value, inside in (
        ("head", of_target >= head),
        ("middle", (of_target < head) & (of_target >= middle)),
        ("tail", of_target < middle),
    ):
        if inside.any():
            yield Slice("target_popularity", value, kept(inside))
