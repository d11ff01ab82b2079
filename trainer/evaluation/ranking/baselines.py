"""Baselines of ranking: rates of labels among the training impressions, counted in one pass.

popularity     the rate of the item
user_rate      the rate of the user
item_and_user  both, combined as if independent: logit(item) + logit(user) - logit(overall)

A rate is (positives + PRIOR r) / (impressions + PRIOR) with r the overall rate, so that rare items and users are close to it. A
label that is defined on some impressions only is counted on these. Memory: two numbers per item and label on every worker, and per
row and label on the worker that evaluates the row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sharding.world import World
from trainer.data.stream.columns import stretches
from trainer.data.stream.packed import PackedHistories, PackedImpressions
from trainer.data.stream.row_groups import RowGroupReader
from trainer.evaluation.ranking.labels import LabelRules
from trainer.evaluation.ranking.names import BASELINES, PRIOR_IMPRESSIONS

_SMALLEST_RATE = 1e-6  # of labels that are never or always positive


@dataclass(frozen=True)
class Counted:
    """Weights of the impressions of n items or users."""

    seen: np.ndarray
    """(n,) float64 weight of impressions."""
    positive: np.ndarray
    """(n,) float64 weight of positive impressions."""

    @staticmethod
    def nothing(size: int) -> "Counted":
        """Return counts of 0."""
        return Counted(np.zeros(size), np.zeros(size))

    def add(self, place: np.ndarray, weight: np.ndarray, positive: np.ndarray) -> None:
        """Add impressions to the counts at their places, in place."""
        size = self.seen.size
        np.add(self.seen, np.bincount(place, weight, size), out=self.seen)
        np.add(self.positive, np.bincount(place, np.where(positive, weight, 0.0), size), out=self.positive)

    def over(self, world: World) -> "Counted":
        """Return the sum over workers. Collective."""
        return Counted(_summed(self.seen, world), _summed(self.positive, world))

    @property
    def overall(self) -> float:
        """The rate over all impressions, 0.5 without any."""
        total = float(self.seen.sum())
        return float(self.positive.sum()) / total if total else 0.5

    def logits(self, place: np.ndarray, overall: float) -> np.ndarray:
        """Return the logits of the smoothed rates at the places."""
        smoothed = self.positive[place] + PRIOR_IMPRESSIONS * overall
        return _logit(smoothed / (self.seen[place] + PRIOR_IMPRESSIONS))


@dataclass(frozen=True)
class TrainingRates:
    """Counts of the training impressions."""

    item_impressions: np.ndarray
    """(num_ids,) int64 impressions by item."""
    items: Mapping[str, Counted]
    """By label, the counts by item."""
    users: Mapping[str, Counted]
    """By label, the counts by row, for rows of this worker's row groups."""
    first_rows: np.ndarray
    """The first row of each row group."""
    row_places: np.ndarray
    """The place in `users` of the first row of each row group of this worker."""

    def logits(self, label: str, items: np.ndarray, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the logits of each baseline, (M,) float32. items: (M,) ids; row_ids: (M,) rows of this worker."""
        counted = self.items[label]
        overall = counted.overall
        group = np.searchsorted(self.first_rows, row_ids, side="right") - 1
        places = self.row_places[group] + row_ids - self.first_rows[group]
        of_item = counted.logits(items, overall)
        of_user = self.users[label].logits(places, overall)
        both = of_item + of_user - _logit(np.asarray(overall))
        return dict(zip(BASELINES, (x.astype(np.float32) for x in (of_item, of_user, both)), strict=True))


def count_training(reader: RowGroupReader, num_ids: int, rules: LabelRules, world: World) -> TrainingRates:
    """Count the training impressions of a dataset. Collective: each worker reads its own row groups.

    Args:
        reader: reads rows with impressions.
        num_ids: the number of ids of items.
        rules: the labels.
        world: the workers.
    """
    groups = range(world.rank, len(reader.group_rows), world.world_size)
    sizes = np.asarray([reader.group_rows[group] for group in groups], dtype=np.int64)
    row_places = np.zeros(len(reader.group_rows), dtype=np.int64)
    row_places[groups.start :: groups.step] = np.cumsum(sizes) - sizes
    shown = np.zeros(num_ids, dtype=np.int64)
    items = {label: Counted.nothing(num_ids) for label in rules.labels}
    users = {label: Counted.nothing(int(sizes.sum())) for label in rules.labels}
    for group in groups:
        packed = reader.read([group])[group]
        impressions, row, places = _training_part(packed)
        shown += np.bincount(impressions.items[places], minlength=num_ids)
        columns = {name: column[places] for name, column in impressions.labels.items()}
        weight = rules.weights(columns)
        for label in rules.labels:
            defined, positive = rules.defined(label, columns), rules.positive(label, columns)
            items[label].add(impressions.items[places][defined], weight[defined], positive[defined])
            users[label].add(row_places[group] + row[defined], weight[defined], positive[defined])
    summed = {label: counted.over(world) for label, counted in items.items()}
    return TrainingRates(_summed(shown, world), summed, users, reader.first_rows[:-1], row_places)


def _training_part(packed: PackedHistories) -> tuple[PackedImpressions, np.ndarray, np.ndarray]:
    """Return the impressions of packed histories, and rows and places of the training impressions among them."""
    impressions = packed.impressions
    assert impressions is not None
    places, _ = stretches(impressions.starts, impressions.starts + packed.train_end)
    return impressions, np.repeat(np.arange(packed.train_end.size), packed.train_end), places


def _summed(values: np.ndarray, world: World) -> np.ndarray:
    summed: np.ndarray = world.sum(torch.from_numpy(values.copy()).to(world.device)).cpu().numpy()
    return summed


def _logit(rate: np.ndarray) -> np.ndarray:
    rate = np.clip(rate, _SMALLEST_RATE, 1.0 - _SMALLEST_RATE)
    logit: np.ndarray = np.log(rate) - np.log1p(-rate)
    return logit
