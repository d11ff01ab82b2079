"""Costs of a study's points by the cost models (models/costs.py, models/ranking/costs.py), on the dataset of their training.

Nothing is run. Models of the next item have costs of an input event, rankers of an impression.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.config.run_config import Config
from cluster.study.config import AssumedConfig
from cluster.study.ranking_costing import assumed_counts, count_training, ranking_workload
from cluster.study.trials import Plan
from models.config import NextItemConfig
from models.costs import Costs, Histories, Projected, Workload, costs_of
from models.ranking.config import RankingConfig
from models.ranking.costs import ranking_costs_of
from models.ranking.reach import reach_of
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.inputs import UsedFeatures, declared_features, features_of
from trainer.data.stream.impression_counts import ImpressionCounts
from trainer.errors import UserError
from trainer.placement.loads import ITEM_TABLE, declared_rows, table_rows

Unit = Literal["event", "impression"]


@dataclass(frozen=True)
class Costing:
    """Costs of one point, on average over the training examples: FLOPs and bytes of one event or one impression."""

    forward_flops: float
    training_flops: float
    matmul_flops: float  # of the training FLOPs, those of matrix products, which are exact
    activation_bytes: float
    moved_bytes: float
    dense_parameters: int
    table_parameters: int  # without tables of unknown size
    parts: dict[str, float]  # training FLOPs by part, which add up to the whole
    events_per_history: float
    assumed: bool  # whether the dataset was not there, so that its histories and items were assumed
    unit: Unit = "event"

    def values(self) -> dict[str, Any]:
        """Return plain values; their names say to what FLOPs and bytes refer."""
        return {
            f"forward_flops_per_{self.unit}": self.forward_flops,
            f"training_flops_per_{self.unit}": self.training_flops,
            f"matmul_flops_per_{self.unit}": self.matmul_flops,
            f"activation_bytes_per_{self.unit}": self.activation_bytes,
            f"moved_bytes_per_{self.unit}": self.moved_bytes,
            "dense_parameters": self.dense_parameters,
            "table_parameters": self.table_parameters,
            "parts": self.parts,
            "events_per_history": self.events_per_history,
            "assumed": self.assumed,
        }


@dataclass(frozen=True)
class _Facts:
    """Properties of a dataset, or assumptions in its place, on which costs depend."""

    examples: np.ndarray | ImpressionCounts  # of the next item: the training events of every user
    num_items: int
    table_rows: dict[str, int]
    features: UsedFeatures
    assumed: bool


def unit_of(config: Config) -> Unit:
    """Return what the costs of a model are counted by."""
    return "impression" if isinstance(config.model, RankingConfig) else "event"


def costs_of_points(plan: Plan) -> list[Costing]:
    """Return the costs of every point; without a dataset, of what study.assumed says."""
    facts: dict[object, _Facts] = {}
    costs = []
    for number in range(len(plan.points)):
        config = plan.of_point(number)[0].config
        key = _key(config)
        if key not in facts:
            facts[key] = _facts_of(config, plan.study.assumed)
        costs.append(costing_of(config, facts[key]))
    return costs


def _key(config: Config) -> object:
    """Return what the facts of a config depend on."""
    model = config.model
    examples = (reach_of(model), str(config.train.days)) if isinstance(model, RankingConfig) else model.max_history
    return config.dataset_dir, str(model.inputs), str(config.ids_of_tables), examples


def _facts_of(config: Config, assumed: AssumedConfig) -> _Facts:
    model = config.model
    try:
        manifest = read_manifest(config.dataset_dir)
    except UserError:
        longest = assumed.history or model.max_history
        rows = declared_rows(config.tables, config.logs, model.inputs) | {ITEM_TABLE: assumed.items + 1}
        return _Facts(
            assumed_counts(longest, assumed.impressions, reach_of(model))
            if isinstance(model, RankingConfig)
            else np.asarray([longest + 1]),
            assumed.items,
            {name: number for name, number in rows.items() if number is not None},
            declared_features(config.logs, model.inputs),
            assumed=True,
        )
    return _Facts(
        count_training(config, model, manifest) if isinstance(model, RankingConfig) else _train_ends(config, manifest),
        manifest.counts.num_items,
        table_rows(config.tables, manifest, model.inputs),
        features_of(manifest, model.inputs),
        assumed=False,
    )


def _train_ends(config: Config, manifest: Manifest) -> np.ndarray:
    from trainer.data.stream.row_groups import RowGroupReader  # not where a study is only refused

    return RowGroupReader(config.dataset_dir, manifest).train_ends()


def costing_of(config: Config, facts: _Facts) -> Costing:
    """Return the costs of one config on one dataset."""
    width, examples = config.tables[ITEM_TABLE].dim, facts.examples
    costs: Costs
    if isinstance(config.model, RankingConfig):
        assert isinstance(examples, ImpressionCounts)
        of_impressions = ranking_workload(config, config.model, examples, facts.num_items, facts.features)
        histories, costs = of_impressions.histories, ranking_costs_of(config.model, width, of_impressions)
    else:
        assert isinstance(config.model, NextItemConfig)
        assert isinstance(examples, np.ndarray)
        histories = training_histories(examples, config, config.model)
        events = _events_per_step(histories, examples, config, config.model)
        workload = Workload(histories, events, facts.num_items, projected=_projected(config, facts.features))
        costs = costs_of(config.model, width, workload)
    return Costing(
        forward_flops=costs.forward,
        training_flops=costs.training,
        matmul_flops=costs.total.matmul,
        activation_bytes=costs.activation_bytes,
        moved_bytes=costs.moved_bytes,
        dense_parameters=costs.dense_parameters,
        table_parameters=sum(rows * config.tables[name].dim for name, rows in facts.table_rows.items()),
        parts={name: work.training for name, work in costs.parts.items()},
        events_per_history=histories.mean,
        assumed=facts.assumed,
        unit=unit_of(config),
    )


def training_histories(train_ends: np.ndarray, config: Config, model: NextItemConfig) -> Histories:
    """Count the input events of every training example: the last event of a history is only a target, unless events are masked."""
    longest = model.max_history
    inputs = np.maximum(train_ends.astype(np.int64) - (not model.masks_items), 0)
    if config.train.long_histories == "recent":
        return Histories.of(np.minimum(inputs, longest))
    whole = np.full(int((inputs // longest).sum()), longest)
    return Histories.of(np.concatenate((whole, inputs % longest)))


def _events_per_step(histories: Histories, train_ends: np.ndarray, config: Config, model: NextItemConfig) -> float:
    """Return the input events of a global batch. Examples without events are counted too: they fill places of a batch."""
    if config.train.batch_tokens is not None:
        return float(config.train.batch_tokens)
    empty = int((train_ends < (1 if model.masks_items else 2)).sum())
    return config.train.batch_size * histories.num_events / (float(histories.counts.sum()) + empty)


def _projected(config: Config, used: UsedFeatures) -> tuple[Projected, ...]:
    """Return the features that are not as wide as the model."""
    width = config.tables[ITEM_TABLE].dim
    found = []
    for features in (used.items, used.events, used.users):
        for feature in features:
            of_table = feature.table is not None
            own = config.tables[feature.table].dim if feature.table is not None else feature.dim or 1
            if not of_table or own != width:
                found.append(Projected(feature.owner, own, of_table))
    return tuple(found)
