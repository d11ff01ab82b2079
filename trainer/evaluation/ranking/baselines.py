"""What a model has to beat: rates of labels among the training impressions, counted in one pass over them.

popularity     the rate of the item
user_rate      the rate of the user
item_and_user  both, as if neither knew of the other: logit(item) + logit(user) - logit(overall)

A rate is (positives + PRIOR r) / (impressions + PRIOR) with r the overall rate, so that who was seen seldom is taken to be like the
others. Of a label that is defined on some impressions only, these are counted. Memory: two numbers per item and label on every
rank, and per row and label on the rank that evaluates it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sharding.world import World
from trainer.data.stream.columns import stretches
from trainer.data.stream.row_groups import PackedHistories, PackedImpressions, RowGroupReader
from trainer.evaluation.ranking.labels import LabelRules
from trainer.evaluation.ranking.names import BASELINES, PRIOR_IMPRESSIONS

_SMALLEST_RATE = 1e-6  # of labels that are never or always positive


@dataclass(frozen=True)
class Counted:
    """Weights of impressions and of the positive ones among them, (n,) float64 each."""

    seen: np.ndarray
    positive: np.ndarray

    @staticmethod
    def nothing(size: int) -> "Counted":
        return Counted(np.zeros(size), np.zeros(size))

    def add(self, place: np.ndarray, weight: np.ndarray, positive: np.ndarray) -> None:
        """Count impressions at their places, in place."""
        size = self.seen.size
        np.add(self.seen, np.bincount(place, weight, size), out=self.seen)
        np.add(self.positive, np.bincount(place, np.where(positive, weight, 0.0), size), out=self.positive)

    def over(self, world: World) -> "Counted":
        """The sum over ranks. Collective."""
        return Counted(_summed(self.seen, world), _summed(self.positive, world))

    @property
    def overall(self) -> float:
        """The rate of all."""
        total = float(self.seen.sum())
        return float(self.positive.sum()) / total if total else 0.5

    def logits(self, place: np.ndarray, overall: float) -> np.ndarray:
        """Of the smoothed rates at the places."""
        smoothed = self.positive[place] + PRIOR_IMPRESSIONS * overall
        return _logit(smoothed / (self.seen[place] + PRIOR_IMPRESSIONS))


@dataclass(frozen=True)
class TrainingRates:
    """Training impressions counted. item_impressions: (num_ids,) int64, by item; items, users: by label, by item and by row.

    Rows are those of the row groups of this rank: row_places says where the first of each group stands.
    """

    item_impressions: np.ndarray
    items: Mapping[str, Counted]
    users: Mapping[str, Counted]
    first_rows: np.ndarray
    row_places: np.ndarray

    def logits(self, label: str, items: np.ndarray, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Of each baseline, (M,) float32. items: (M,) ids; row_ids: (M,) rows that are this rank's."""
        counted = self.items[label]
        overall = counted.overall
        group = np.searchsorted(self.first_rows, row_ids, side="right") - 1
        places = self.row_places[group] + row_ids - self.first_rows[group]
        of_item = counted.logits(items, overall)
        of_user = self.users[label].logits(places, overall)
        both = of_item + of_user - _logit(np.asarray(overall))
        return dict(zip(BASELINES, (x.astype(np.float32) for x in (of_item, of_user, both)), strict=True))


def count_training(reader: RowGroupReader, num_ids: int, rules: LabelRules, world: World) -> TrainingRates:
    """Count the training impressions of a dataset; reader: of impressions. Collective: each rank reads its own row groups."""
    groups = range(world.rank, len(reader.group_rows), world.world_size)
    sizes = np.asarray([reader.group_rows[group] for group in groups], dtype=np.int64)
    row_places = np.zeros(len(reader.group_rows), dtype=np.int64)
    row_places[groups.start :: groups.step] = np.cumsum(sizes) - sizes
    shown = np.zeros(num_ids, dtype=np.int64)
    items = {label: Counted.nothing(num_ids) for label in rules.labels}
    users = {label: Counted.nothing(int(sizes.sum())) for label in rules.labels}
    for group in groups:
        packed = reader.read([group])[group]
        found, row, places = _training_part(packed)
        shown += np.bincount(found.items[places], minlength=num_ids)
        columns = {name: column[places] for name, column in found.labels.items()}
        weight = rules.weights(columns)
        for label in rules.labels:
            defined, positive = rules.defined(label, columns), rules.positive(label, columns)
            items[label].add(found.items[places][defined], weight[defined], positive[defined])
            users[label].add(row_places[group] + row[defined], weight[defined], positive[defined])
    summed = {label: counted.over(world) for label, counted in items.items()}
    return TrainingRates(_summed(shown, world), summed, users, reader.first_rows[:-1], row_places)


def _training_part(packed: PackedHistories) -> tuple[PackedImpressions, np.ndarray, np.ndarray]:
    """The impressions of packed histories, and of those that train the rows and the places."""
    found = packed.impressions
    assert found is not None
    places, _ = stretches(found.starts, found.starts + packed.train_end)
    return found, np.repeat(np.arange(packed.train_end.size), packed.train_end), places


def _summed(values: np.ndarray, world: World) -> np.ndarray:
    summed: np.ndarray = world.sum(torch.from_numpy(values.copy()).to(world.device)).cpu().numpy()
    return summed


def _logit(rate: np.ndarray) -> np.ndarray:
    rate = np.clip(rate, _SMALLEST_RATE, 1.0 - _SMALLEST_RATE)
    logit: np.ndarray = np.log(rate) - np.log1p(-rate)
    return logit
