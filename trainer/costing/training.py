"""Costs of a config on the facts of a dataset, of both tasks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.config import NextItemConfig
from models.costs import Costs, Workload, costs_of
from models.histories import Histories
from models.ranking.config import RankingConfig
from models.ranking.costs import ranking_costs_of
from trainer.config.run_config import RunConfig
from trainer.costing.next_item import events_per_step, projected_features, training_histories
from trainer.costing.ranking import count_training, ranking_workload
from trainer.data.dataset.manifest import Manifest
from trainer.data.inputs import UsedFeatures, features_of
from trainer.data.stream.impression_counts import ImpressionCounts
from trainer.placement.loads import ITEM_TABLE


@dataclass(frozen=True)
class TrainingFacts:
    """Properties of a dataset, or assumptions in its place, on which costs depend."""

    examples: np.ndarray | ImpressionCounts
    """Training events of every user, (U,), for a next-item model."""
    num_items: int
    """Items of the training part."""
    features: UsedFeatures
    """The features that the model receives."""


@dataclass(frozen=True)
class TrainingCosts:
    """Costs of one event (next item) or one impression (ranking), averaged over the training examples."""

    costs: Costs
    """The costs."""
    histories: Histories
    """The histories of the examples."""
    per_step: float
    """Events or impressions of a global batch, on average."""


def read_facts(config: RunConfig, folder: Path, manifest: Manifest) -> TrainingFacts:
    """Return the facts of a dataset.

    Args:
        config: the config.
        folder: the dataset.
        manifest: its manifest.

    Raises:
        UserError: a file cannot be read, or a ranker has no training impressions.
    """
    examples: np.ndarray | ImpressionCounts
    if isinstance(config.model, RankingConfig):
        examples = count_training(config, config.model, folder, manifest)
    else:
        from trainer.data.stream.row_groups import RowGroupReader  # not where a study is only refused

        examples = RowGroupReader(folder, manifest).train_ends()
    return TrainingFacts(examples, manifest.counts.num_items, features_of(manifest, config.model.inputs))


def costs_of_training(config: RunConfig, facts: TrainingFacts) -> TrainingCosts:
    """Return the costs of a config on a dataset."""
    width, examples = config.tables[ITEM_TABLE].dim, facts.examples
    if isinstance(config.model, RankingConfig):
        assert isinstance(examples, ImpressionCounts)
        given = ranking_workload(config, config.model, examples, facts.num_items, facts.features)
        costs = ranking_costs_of(config.model, width, given)
        return TrainingCosts(costs, given.histories, given.impressions_per_step)
    assert isinstance(config.model, NextItemConfig)
    assert isinstance(examples, np.ndarray)
    histories = training_histories(examples, config, config.model)
    events = events_per_step(histories, examples, config, config.model)
    workload = Workload(histories, events, facts.num_items, projected=projected_features(config, facts.features))
    return TrainingCosts(costs_of(config.model, width, workload), histories, events)
