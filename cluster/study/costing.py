"""Costs of a study's points by the cost models (models/costs.py, models/ranking/costs.py), on the dataset of their training.

Nothing is run. Models of the next item have costs of an input event, rankers of an impression.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.config.run_config import Config
from cluster.study.config import AssumedConfig
from cluster.study.trials import Plan
from models.ranking.config import RankingConfig
from models.ranking.reach import reach_of
from trainer.costing.ranking import assumed_counts
from trainer.costing.training import TrainingFacts, costs_of_training, read_facts
from trainer.data.dataset.manifest import read_manifest
from trainer.data.inputs import declared_features
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

    of_training: TrainingFacts
    table_rows: dict[str, int]
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
        examples = (
            assumed_counts(longest, assumed.impressions, reach_of(model))
            if isinstance(model, RankingConfig)
            else np.asarray([longest + 1])
        )
        return _Facts(
            TrainingFacts(examples, assumed.items, declared_features(config.logs, model.inputs)),
            {name: number for name, number in rows.items() if number is not None},
            assumed=True,
        )
    return _Facts(
        read_facts(config, config.dataset_dir, manifest),
        table_rows(config.tables, manifest, model.inputs),
        assumed=False,
    )


def costing_of(config: Config, facts: _Facts) -> Costing:
    """Return the costs of one config on one dataset."""
    of_training = costs_of_training(config, facts.of_training)
    costs = of_training.costs
    return Costing(
        forward_flops=costs.forward,
        training_flops=costs.training,
        matmul_flops=costs.total.matmul,
        activation_bytes=costs.activation_bytes,
        moved_bytes=costs.moved_bytes,
        dense_parameters=costs.dense_parameters,
        table_parameters=sum(rows * config.tables[name].dim for name, rows in facts.table_rows.items()),
        parts={name: work.training for name, work in costs.parts.items()},
        events_per_history=of_training.histories.mean,
        assumed=facts.assumed,
        unit=unit_of(config),
    )
