"""What a training step asks of the tables: from a job's settings and what is known of its dataset to loads for the plan.

A batch asks for every id once (models.batches.history_batch), so a table's load is the number of distinct ids in a rank's
histories. Tables that are looked up as bags are the exception: they receive all ids of all owners. Imports no torch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import expm1

from models.config import ModelConfig, NextItemConfig
from models.features.config import InputsConfig
from models.objectives.config import InBatchNegatives, SampledObjectiveConfig
from models.ranking.config import RankingConfig
from models.ranking.reach import reach_of
from sharding.config import DynamicIdsConfig, HashIdsConfig, TableConfig
from sharding.planning.load import TableLoad, bag_load, sequence_load
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.inputs import features_of, used_specs
from trainer.data.logs.config import LogsConfig, NumericFeatureConfig

ITEM_TABLE = "item"
DEFAULT_INPUTS = InputsConfig()


@dataclass(frozen=True)
class DatasetFacts:
    """num_items: ids that the training part knows; mean_events: training events of a user, in ranking events of the history.

    mean_candidates: in ranking, training impressions of a user. num_features, num_event_features, num_user_features,
    num_candidate_features: by table, how many features of items, events, users and impressions look it up.
    """

    num_items: int
    mean_events: float
    num_features: Mapping[str, int] = field(default_factory=dict)
    num_event_features: Mapping[str, int] = field(default_factory=dict)
    num_user_features: Mapping[str, int] = field(default_factory=dict)
    num_candidate_features: Mapping[str, int] = field(default_factory=dict)
    mean_candidates: float = 0.0


def facts_of(manifest: Manifest, inputs: InputsConfig = DEFAULT_INPUTS) -> DatasetFacts:
    """What a dataset says about the loads of the tables of a model with these inputs."""
    used, counts = features_of(manifest, inputs), manifest.counts

    def by_table(features: Iterable[Feature]) -> Counter[str]:
        return Counter(feature.table for feature in features if feature.table is not None)

    ranking, users = manifest.task == "ranking", max(1, counts.num_users)
    return DatasetFacts(
        num_items=manifest.num_item_rows,
        mean_events=(counts.history_events if ranking else counts.train_events) / users,
        num_features=by_table(used.items),
        num_event_features=by_table(used.events),
        num_user_features=by_table(used.users),
        num_candidate_features=by_table(used.candidates),
        mean_candidates=counts.train_events / users if ranking else 0.0,
    )


def table_rows(
    tables: Mapping[str, TableConfig], manifest: Manifest, inputs: InputsConfig = DEFAULT_INPUTS
) -> dict[str, int]:
    """The tables that a model of this dataset has, and their rows: of items first, then of features."""
    ids = tables[ITEM_TABLE].ids
    num_rows = {ITEM_TABLE: ids.num_rows if isinstance(ids, HashIdsConfig) else manifest.num_item_rows}
    used = features_of(manifest, inputs)
    for feature in (*used.items, *used.events, *used.users, *used.candidates):
        if feature.table is not None and feature.table != ITEM_TABLE:
            assert feature.num_rows is not None
            ids = tables[feature.table].ids
            of_feature = ids.num_rows if isinstance(ids, DynamicIdsConfig) else feature.num_rows
            num_rows[feature.table] = max(of_feature, num_rows.get(feature.table, 0))
    return num_rows


def declared_rows(
    tables: Mapping[str, TableConfig], logs: LogsConfig, inputs: InputsConfig = DEFAULT_INPUTS
) -> dict[str, int | None]:
    """The same before there is a dataset: None where only the logs can tell how many rows a table gets."""
    num_rows: dict[str, int | None] = {}
    used = used_specs(logs, inputs)
    for name in (ITEM_TABLE, *(spec.table for spec in used)):
        if name is not None:
            ids = tables[name].ids
            num_rows[name] = ids.num_rows if isinstance(ids, HashIdsConfig | DynamicIdsConfig) else None
    for spec in used:
        if spec.table and isinstance(spec.config, NumericFeatureConfig) and spec.config.buckets:
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

    Without facts every history is as long as the model allows, and every table of features is taken for one of items. Ids are
    taken to be equally popular, which overstates how many are distinct, and features to have one value each. A table's
    pooling_factor, ids per history, stands in for all of this.
    """
    num_items = facts.num_items if facts is not None else num_rows[ITEM_TABLE]
    ranking = not isinstance(model, NextItemConfig)
    ahead = 0 if ranking else 1  # the last event of a history is a target only
    # Of a ranker's histories more is gathered than one layer attends to.
    longest = float(reach_of(model).receptive if isinstance(model, RankingConfig) else model.max_history + ahead)
    mean_events = min(longest, facts.mean_events) if facts is not None else longest
    histories = train.batch_size / num_workers
    if train.batch_tokens is not None:
        histories = train.batch_tokens / num_workers / max(1.0, mean_events - ahead)
    items = float(num_items)
    candidates = histories * (facts.mean_candidates if facts is not None else 1.0) if ranking else 0.0
    if not isinstance(model, NextItemConfig):
        items = expected_distinct(num_items, histories * mean_events + candidates)
    elif isinstance(model.objective, SampledObjectiveConfig):
        # Negatives that are targets of the rank's own share are looked up anyway.
        own = isinstance(model.objective.negatives, InBatchNegatives)
        items = expected_distinct(num_items, histories * mean_events + (0 if own else model.objective.num_negatives))

    def owners_of(name: str) -> tuple[float, float]:
        """By how many features of items is it asked, for each of them, and by how many owners besides."""
        if facts is None:
            return float(name != ITEM_TABLE), 0.0
        inputs = histories * max(0.0, mean_events - ahead)
        besides = inputs * facts.num_event_features.get(name, 0)
        besides += histories * facts.num_user_features.get(name, 0)
        besides += candidates * facts.num_candidate_features.get(name, 0)
        return facts.num_features.get(name, 0), besides

    def ids_of(name: str) -> float:
        num_features, besides = owners_of(name)
        if name == ITEM_TABLE and not (facts is not None and isinstance(tables[name].ids, HashIdsConfig)):
            # The batch's items have rows of their own, and of what else is asked for some rows are among those.
            others = expected_distinct(num_rows[name], items * num_features + besides)
            return items + others * max(0.0, 1.0 - items / num_rows[name])
        return expected_distinct(num_rows[name], items * (num_features + int(name == ITEM_TABLE)) + besides)

    def load_of(name: str, rows: int) -> TableLoad:
        config, (num_features, besides) = tables[name], owners_of(name)
        given = None if config.pooling_factor is None else config.pooling_factor * histories
        if config.lookup == "bags":
            bags = items * num_features + besides
            return bag_load(name, config, rows, bags if given is None else given, bags)
        return sequence_load(name, config, rows, ids_of(name) if given is None else given)

    return [load_of(name, rows) for name, rows in num_rows.items()]


def expected_distinct(num_values: int, num_draws: float) -> float:
    """How many different values num_draws equally likely ones have on average, nearly: n (1 - e^(-draws / n))."""
    return -num_values * expm1(-num_draws / num_values)
