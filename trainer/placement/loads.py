"""Loads of tables: what a training step asks of each table, from the settings of a run and facts of its dataset.

A batch asks for every id once (models.batches.history_batch), so a table's load is the number of distinct ids in a rank's
histories. Tables that are looked up as bags are the exception: they receive all ids of all owners. Imports no torch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.config import ModelConfig, NextItemConfig
from models.features.config import InputsConfig
from models.ranking.config import RankingConfig
from sharding.config import DynamicIdsConfig, HashIdsConfig, TableConfig
from sharding.planning.load import TableLoad, bag_load, sequence_load
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.inputs import UsedFeatures, features_of, used_specs
from trainer.data.logs.config import LogsConfig, NumericFeatureConfig
from trainer.tasks.demand import DatasetFacts, Demand, StepDemand, expected_distinct
from trainer.tasks.next_item.demand import NextItemDemand
from trainer.tasks.ranking.demand import RankingDemand

ITEM_TABLE = "item"
DEFAULT_INPUTS = InputsConfig()


def demand_of(model: ModelConfig) -> Demand:
    """Return what a training step of this model looks up."""
    match model:
        case RankingConfig():
            return RankingDemand(model)
        case NextItemConfig():
            return NextItemDemand(model)
    raise TypeError(f"no task has models of {type(model).__name__}")


def dataset_facts(manifest: Manifest, inputs: InputsConfig = DEFAULT_INPUTS) -> DatasetFacts:
    """Return the facts of a dataset that determine the loads of a model with these inputs."""
    counts = manifest.counts
    num_users = max(1, counts.num_users)
    return facts_of(
        features_of(manifest, inputs),
        manifest.num_item_rows,
        (counts.history_events if manifest.has_impressions else counts.train_events) / num_users,
        counts.train_events / num_users if manifest.has_impressions else 0.0,
    )


def facts_of(used: UsedFeatures, num_items: int, mean_events: float, mean_candidates: float = 0.0) -> DatasetFacts:
    """Return the facts of a dataset that exists or is assumed.

    Args:
        used: The features that the model receives.
        num_items: Items of the catalogue.
        mean_events: Training events per user.
        mean_candidates: Training impressions per user.
    """

    def by_table(features: Iterable[Feature]) -> Counter[str]:
        return Counter(feature.table for feature in features if feature.table is not None)

    return DatasetFacts(
        num_items=num_items,
        mean_events=mean_events,
        num_features=by_table(used.items),
        num_event_features=by_table(used.events),
        num_user_features=by_table(used.users),
        num_candidate_features=by_table(used.candidates),
        mean_candidates=mean_candidates,
    )


def table_rows(
    tables: Mapping[str, TableConfig], manifest: Manifest, inputs: InputsConfig = DEFAULT_INPUTS
) -> dict[str, int]:
    """Return the number of rows of each table that a model of this dataset has: of items first, then of features."""
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
    """Return the number of rows of each table before there is a dataset. None if only the logs determine it."""
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
    """Return the load of every table on one rank.

    Ids are assumed to be equally popular, which overstates how many are distinct, and features to have one value each. A table's
    pooling_factor (ids per history) replaces all of these assumptions.

    Args:
        tables: Settings by table.
        num_rows: Rows by table. These tables get a load.
        model: Settings of the model.
        train: Settings of training.
        num_workers: The world size.
        facts: Facts of the dataset. If None, every history is as long as the model allows, and every table of features is
            assumed to be looked up by one feature of items.
    """
    num_items = facts.num_items if facts is not None else num_rows[ITEM_TABLE]
    demand = demand_of(model).of_step(train, num_workers, num_items, facts)
    return [
        _load_of(_Lookups(name, tables[name], rows, demand, facts), demand.histories) for name, rows in num_rows.items()
    ]


@dataclass(frozen=True)
class _Lookups:
    """The look-ups of one table in a step."""

    name: str
    config: TableConfig
    num_rows: int
    demand: StepDemand
    facts: DatasetFacts | None

    @property
    def num_item_features(self) -> float:
        """Features of items that look it up, each once per item."""
        if self.facts is None:
            return float(self.name != ITEM_TABLE)
        return self.facts.num_features.get(self.name, 0)

    @property
    def num_other_owners(self) -> float:
        """Events, users and impressions with features that look it up, once per feature."""
        if self.facts is None:
            return 0.0
        owners = self.demand.inputs * self.facts.num_event_features.get(self.name, 0)
        owners += self.demand.histories * self.facts.num_user_features.get(self.name, 0)
        owners += self.demand.candidates * self.facts.num_candidate_features.get(self.name, 0)
        return owners

    @property
    def num_bags(self) -> float:
        """Bags in a table that is looked up as bags."""
        return self.demand.items * self.num_item_features + self.num_other_owners

    @property
    def num_ids(self) -> float:
        """Distinct ids in a table that is looked up by row."""
        items = self.demand.items
        if self.name == ITEM_TABLE and not (self.facts is not None and isinstance(self.config.ids, HashIdsConfig)):
            # The batch's items have rows of their own, and some rows of what else is looked up are among those.
            others = expected_distinct(self.num_rows, items * self.num_item_features + self.num_other_owners)
            return items + others * max(0.0, 1.0 - items / self.num_rows)
        per_item = self.num_item_features + int(self.name == ITEM_TABLE)
        return expected_distinct(self.num_rows, items * per_item + self.num_other_owners)


def _load_of(lookups: _Lookups, histories: float) -> TableLoad:
    config = lookups.config
    given = None if config.pooling_factor is None else config.pooling_factor * histories
    if config.lookup == "bags":
        bags = lookups.num_bags
        return bag_load(lookups.name, config, lookups.num_rows, bags if given is None else given, bags)
    num_ids = lookups.num_ids if given is None else given
    return sequence_load(lookups.name, config, lookups.num_rows, num_ids)
