"""What a training step asks of the tables: from a job's settings and what is known of its dataset to loads for the plan.

A batch asks for every id once (models.batch), so what counts is how many distinct ids a rank's histories have. Imports no torch.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import expm1

from models.config import ModelConfig
from models.objectives.config import InBatchNegatives, SampledObjectiveConfig
from sharding.config import DynamicIdsConfig, HashIdsConfig, TableConfig
from sharding.planning.load import TableLoad, sequence_load
from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest, used_features
from trainer.logs.config import LogsConfig, NumericFeatureConfig, feature_specs

ITEM_TABLE = "item"


@dataclass(frozen=True)
class DatasetFacts:
    """num_items: ids that the training part knows; mean_events: training events of a user; num_features: of items, by table."""

    num_items: int
    mean_events: float
    num_features: Mapping[str, int] = field(default_factory=dict)


def facts_of(manifest: Manifest) -> DatasetFacts:
    """What a dataset says about the loads of its tables."""
    features = Counter(feature.table for feature in used_features(manifest) if feature.table is not None)
    counts = manifest.counts
    return DatasetFacts(manifest.num_item_rows, counts.train_events / max(1, counts.num_users), features)


def table_rows(tables: Mapping[str, TableConfig], manifest: Manifest) -> dict[str, int]:
    """The tables that a model of this dataset has, and their rows: of items first, then of their features."""
    ids = tables[ITEM_TABLE].ids
    num_rows = {ITEM_TABLE: ids.num_rows if isinstance(ids, HashIdsConfig) else manifest.num_item_rows}
    for feature in used_features(manifest):
        if feature.table is not None and feature.table != ITEM_TABLE:
            assert feature.num_rows is not None
            ids = tables[feature.table].ids
            of_feature = ids.num_rows if isinstance(ids, DynamicIdsConfig) else feature.num_rows
            num_rows[feature.table] = max(of_feature, num_rows.get(feature.table, 0))
    return num_rows


def declared_rows(tables: Mapping[str, TableConfig], logs: LogsConfig) -> dict[str, int | None]:
    """The same before there is a dataset: None where only the logs can tell how many rows a table gets."""
    num_rows: dict[str, int | None] = {}
    for name in (ITEM_TABLE, *(spec.table for spec in feature_specs(logs) if spec.owner == "item")):
        if name is not None:
            ids = tables[name].ids
            num_rows[name] = ids.num_rows if isinstance(ids, HashIdsConfig | DynamicIdsConfig) else None
    for spec in feature_specs(logs):
        if (
            spec.owner == "item"
            and spec.table
            and isinstance(spec.config, NumericFeatureConfig)
            and spec.config.buckets
        ):
            num_rows[spec.table] = max(spec.config.buckets + 1, num_rows[spec.table] or 0)
    return num_rows


def table_loads(
    tables: Mapping[str, TableConfig],
    num_rows: Mapping[str, int],
    model: ModelConfig,
    train: TrainConfig,
    num_workers: int,
    facts: DatasetFacts | None = None,
) -> list[TableLoad]:
    """The load of every table in num_rows, for a rank of num_workers.

    Without facts every history is as long as the model allows. Ids are taken to be equally popular, which overstates how many
    are distinct. A table's pooling_factor, ids per history, stands in for all of this.
    """
    num_items = facts.num_items if facts is not None else num_rows[ITEM_TABLE]
    longest = model.max_history + 1.0  # the last event of a history is a target only
    mean_events = min(longest, facts.mean_events) if facts is not None else longest
    histories = train.batch_size / num_workers
    if train.batch_tokens is not None:
        histories = train.batch_tokens / num_workers / max(1.0, mean_events - 1)
    items = float(num_items)
    if isinstance(model.objective, SampledObjectiveConfig):
        # Negatives that are targets of the rank's own share are looked up anyway.
        own = isinstance(model.objective.negatives, InBatchNegatives)
        items = expected_distinct(num_items, histories * mean_events + (0 if own else model.objective.num_negatives))

    def ids_of(name: str) -> float:
        given = tables[name].pooling_factor
        if given is not None:
            return given * histories
        num_features = facts.num_features.get(name, 0) if facts is not None else int(name != ITEM_TABLE)
        shared = num_features > 0 or (facts is not None and isinstance(tables[name].ids, HashIdsConfig))
        if name == ITEM_TABLE and not shared:
            return items
        return expected_distinct(num_rows[name], items * (num_features + int(name == ITEM_TABLE)))

    return [sequence_load(name, tables[name], rows, ids_of(name)) for name, rows in num_rows.items()]


def expected_distinct(num_values: int, num_draws: float) -> float:
    """How many different values num_draws equally likely ones have on average, nearly: n (1 - e^(-draws / n))."""
    return -num_values * expm1(-num_draws / num_values)
