"""Groups of the events of a dataset, by which attention is added up: recency, age, hour, and features with few values."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.data.dataset.manifest import Feature
from trainer.data.inputs import clock_ticks
from trainer.data.stream.columns import Column, Lists, take
from trainer.evaluation.slice_features import item_values, labels_of
from trainer.explanation.aggregates.groups import (
    GroupCodes,
    Grouping,
    age_codes,
    age_grouping,
    feature_codes,
    feature_grouping,
    hour_codes,
    hour_grouping,
    recency_codes,
    recency_grouping,
)
from trainer.explanation.questions import Questions
from trainer.inference.trained_model import TrainedModel

MOST_VALUES = 1_000  # of a feature by which attention is added up
KINDS = ("categorical", "categorical_list", "bucketized")


def grouped_features(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """Return the features of events and items by which attention is added up."""
    return tuple(
        feature
        for feature in features
        if feature.owner in ("event", "item")
        and feature.kind in KINDS
        and feature.num_rows is not None
        and feature.num_rows <= MOST_VALUES
    )


@dataclass(frozen=True)
class EventGroups:
    """The groupings of a dataset, and the values of the items by feature."""

    trained: TrainedModel
    """The model and its dataset."""
    ticks_per_second: int | None
    """Unit of the times; None if they are not those of a clock."""
    features: tuple[Feature, ...]
    """Features of events and items."""
    of_items: dict[str, Column]
    """Columns of the features of items, an entry per id from 0 on."""

    @classmethod
    def of(cls, trained: TrainedModel) -> "EventGroups":
        """Read the groupings of a model's dataset."""
        features = grouped_features(tuple(trained.manifest.features))
        of_items = {f.column: _item_column(trained, f) for f in features if f.owner == "item"}
        return cls(trained, clock_ticks(trained.manifest, trained.job.config.model), features, of_items)

    def groupings(self) -> list[Grouping]:
        """Return the groupings, those of times only for times of a clock."""
        clock = [age_grouping(), hour_grouping()] if self.ticks_per_second is not None else []
        return [recency_grouping(), *clock, *(self._feature_grouping(feature) for feature in self.features)]

    def codes(self, asked: Questions) -> dict[str, tuple[GroupCodes, int]]:
        """Return the groups of the events of questions, and the number of groups, by name of the grouping."""
        codes = {"recency": recency_codes(asked.offsets)}
        if self.ticks_per_second is not None:
            assert asked.times is not None
            assert asked.requested_at is not None
            codes["age"] = age_codes(asked.times, asked.requested_at, asked.offsets, self.ticks_per_second)
            codes["hour"] = hour_codes(asked.times, self.ticks_per_second)
        for feature in self.features:
            values = (
                take(self.of_items[feature.column], asked.items)
                if feature.owner == "item"
                else asked.features[feature.name]
            )
            assert feature.num_rows is not None
            codes[feature.column] = feature_codes(values, feature.num_rows)
        return {grouping.name: (codes[grouping.name], len(grouping.labels)) for grouping in self.groupings()}

    def _feature_grouping(self, feature: Feature) -> Grouping:
        assert feature.num_rows is not None
        trained = self.trained
        labels = labels_of(feature, np.arange(feature.num_rows), trained.job.dataset_dir, trained.manifest)
        owner = "item" if feature.owner == "item" else "event"
        return feature_grouping(feature.column, f"{feature.name} of the {owner}", labels, feature.kind == "bucketized")


def _item_column(trained: TrainedModel, feature: Feature) -> Column:
    """Return the values of a feature of all items, an entry per id from 0 on."""
    unknown = trained.catalogue.scores_unknown
    ids = np.arange(trained.num_items + 1)
    values = item_values(feature, ids, trained.job.dataset_dir, trained.manifest, unknown)
    if pa.types.is_list(values.type):
        return Lists(values.flatten().to_numpy(), values.offsets.to_numpy().astype(np.int64))
    return np.asarray(values.fill_null(0).to_numpy())
