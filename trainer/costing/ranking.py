"""Training impressions for the cost model of rankers, counted in a dataset or assumed."""

from pathlib import Path

import numpy as np

from models.histories import Histories
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.costs import RankingFeature, RankingOwner, RankingWorkload, candidate_pairs
from models.ranking.reach import Reach, reach_of
from trainer.config.run_config import RunConfig
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.inputs import UsedFeatures
from trainer.data.stream.impression_counts import ImpressionCounts, count_impressions
from trainer.errors import UserError


def count_training(config: RunConfig, model: RankingConfig, folder: Path, manifest: Manifest) -> ImpressionCounts:
    """Count the examples that a ranker trains on, by days where it trains by days.

    Args:
        config: the config.
        model: its model.
        folder: the dataset.
        manifest: its manifest.

    Raises:
        UserError: the dataset has no training impressions.
    """
    from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader  # not where a study is only refused

    calendar = None
    if config.train.days is not None:
        from trainer.data.stream.days import calendar_of  # loads torch

        calendar = calendar_of(config.train.days, manifest, model)
    reader = RowGroupReader(folder, manifest, ColumnSelection(impressions=True))
    counts = count_impressions(reader, reach_of(model), calendar)
    if counts.impressions == 0:
        raise UserError(
            f"dataset {folder}: has no training impressions, so its training costs nothing; use more logs, "
            "or move split.validation_time"
        )
    return counts


def assumed_counts(num_events: int, num_impressions: int, reach: Reach) -> ImpressionCounts:
    """Return the counts of one user, who was shown all impressions after the events of the history."""
    history_end = np.full(num_impressions, num_events)
    pairs = candidate_pairs(np.asarray([num_impressions]), history_end, reach.attended)
    return ImpressionCounts(1, num_impressions, np.asarray([min(num_events, reach.receptive)]), pairs)


def ranking_workload(
    config: RunConfig, model: RankingConfig, counts: ImpressionCounts, num_items: int, used: UsedFeatures
) -> RankingWorkload:
    """Return what a training step is given, on average over all training examples."""
    return RankingWorkload(
        histories=Histories.of(counts.lengths),
        impressions=float(counts.impressions),
        pairs=counts.pairs,
        # An example without impressions takes a place of a batch, too.
        impressions_per_step=min(config.train.batch_size, counts.num_examples)
        * counts.impressions
        / counts.num_examples,
        num_items=num_items,
        num_labels=len(learned_labels(model, config.logs.labels)),
        reach=reach_of(model).attended,
        features=_features(config, used),
    )


def _features(config: RunConfig, used: UsedFeatures) -> tuple[RankingFeature, ...]:
    """Return all features that the model receives. Those of events and of candidates have the same owner in the logs."""

    def width_of(feature: Feature) -> int:
        return feature.dim or 1 if feature.table is None else config.tables[feature.table].dim

    owned: tuple[tuple[RankingOwner, tuple[Feature, ...]], ...]
    owned = (("item", used.items), ("event", used.events), ("user", used.users), ("candidate", used.candidates))
    return tuple(
        RankingFeature(feature.name, owner, width_of(feature), feature.table is not None)
        for owner, features in owned
        for feature in features
    )
