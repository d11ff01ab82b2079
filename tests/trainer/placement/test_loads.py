"""Loads of tables from a job and what is known of its dataset."""

import numpy as np
import pytest

from models.config import ModelConfig, NextItemConfig
from models.features.config import InputsConfig
from models.ranking.config import RankingConfig
from sharding.config import HashIdsConfig, TableConfig
from sharding.planning.load import TableLoad
from tests.support.datasets import manifest_of_items, tiny_dataset
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Feature
from trainer.data.logs.config import LogsConfig
from trainer.placement.loads import declared_rows, facts_of, table_loads, table_rows
from trainer.tasks.demand import DatasetFacts, expected_distinct

SAMPLED = NextItemConfig.model_validate(
    {"max_history": 50, "objective": {"kind": "sampled_softmax", "num_negatives": 512}}
)
FULL = NextItemConfig(max_history=50)
TRAIN = TrainConfig(batch_size=128)


def loads_of(
    tables: dict[str, TableConfig] | None = None,
    num_rows: dict[str, int] | None = None,
    model: ModelConfig = SAMPLED,
    train: TrainConfig = TRAIN,
    num_workers: int = 2,
    facts: DatasetFacts | None = None,
) -> dict[str, TableLoad]:
    tables = tables or {"item": TableConfig()}
    found = table_loads(tables, num_rows or {"item": 10**9}, model, train, num_workers, facts)
    return {load.name: load for load in found}


@pytest.mark.parametrize("num_workers", [1, 2, 64])
def test_a_ranker_looks_up_the_events_that_its_scores_depend_on(num_workers):
    """Two blocks, of which the second computes candidates only; one candidate for each history."""
    model = RankingConfig.model_validate({"kind": "hstu", "max_history": 50})
    histories = 128 / num_workers
    assert loads_of(model=model, num_workers=num_workers)["item"].ids_per_rank == pytest.approx(
        histories * (50 + 49 + 1), rel=1e-4
    )
    facts = DatasetFacts(10**9, 60.0, mean_candidates=3.0)
    found = loads_of(model=model, num_workers=num_workers, facts=facts)["item"].ids_per_rank
    assert found == pytest.approx(histories * (60 + 3), rel=1e-4)


@pytest.mark.parametrize("num_workers", [1, 2, 64])
def test_a_softmax_over_the_catalogue_looks_up_all_of_it_on_every_rank(num_workers):
    (load,) = loads_of(num_rows={"item": 5_001}, model=FULL, num_workers=num_workers).values()
    assert load.ids_per_rank == load.vectors_per_rank == 5_001
    assert not load.pooled


def test_a_sampled_softmax_looks_up_a_share_of_the_histories_and_all_negatives():
    """Of 10^9 items hardly two events have the same."""
    assert loads_of()["item"].ids_per_rank == pytest.approx(64 * 51 + 512, rel=1e-4)
    assert loads_of(num_workers=4)["item"].ids_per_rank == pytest.approx(32 * 51 + 512, rel=1e-4)


@pytest.mark.parametrize(
    ("negatives", "more"), [("uniform", 512), ("popularity", 512), ("in_batch", 0), ("cross_rank", 512), ("mixed", 512)]
)
@pytest.mark.parametrize("kind", ["sampled_softmax", "bce", "gbce"])
def test_negatives_are_looked_up_besides_unless_they_are_targets_of_the_own_share(kind, negatives, more):
    objective = {"kind": kind, "num_negatives": 512, "negatives": {"kind": negatives}}
    model = NextItemConfig.model_validate({"max_history": 50, "objective": objective})
    assert loads_of(model=model)["item"].ids_per_rank == pytest.approx(64 * 51 + more, rel=1e-4)


def test_ids_that_occur_twice_are_looked_up_once():
    """As many as in a simulation, and never more than there are."""
    random = np.random.default_rng(1)
    counted = np.mean([np.unique(random.integers(0, 1_000, 2_000)).size for _ in range(50)])
    assert expected_distinct(1_000, 2_000) == pytest.approx(counted, rel=0.01)
    assert loads_of(num_rows={"item": 100})["item"].ids_per_rank == pytest.approx(100, rel=1e-6)


def test_the_dataset_gives_the_lengths_of_histories():
    def ids(mean_events: float) -> float:
        return loads_of(facts=DatasetFacts(10**9, mean_events))["item"].ids_per_rank

    assert ids(10.5) == pytest.approx(64 * 10.5 + 512, rel=1e-4)
    assert ids(400.0) == pytest.approx(64 * 51 + 512, rel=1e-4)  # the model sees the most recent 50, and one target


def test_a_budget_of_events_replaces_a_number_of_histories():
    budget = TrainConfig(batch_tokens=8_000)
    load = loads_of(train=budget, facts=DatasetFacts(10**9, 21.0))["item"]
    assert load.ids_per_rank == pytest.approx(4_000 / 20 * 21 + 512, rel=1e-4)


def test_a_pooling_factor_replaces_the_statistics_of_the_data():
    tables = {"item": TableConfig(pooling_factor=7.0)}
    assert loads_of(tables, model=FULL)["item"].ids_per_rank == 64 * 7.0


def test_tables_of_item_features_are_asked_for_the_values_of_distinct_items():
    tables = {"item": TableConfig(), "brand": TableConfig(), "genre": TableConfig()}
    num_rows = {"item": 1_000, "brand": 10**8, "genre": 20}
    facts = DatasetFacts(1_000, 10.0, {"brand": 2, "genre": 1})
    loads = loads_of(tables, num_rows, FULL, facts=facts)
    assert loads["brand"].ids_per_rank == pytest.approx(2_000, rel=1e-3)
    assert loads["genre"].ids_per_rank == pytest.approx(20, rel=1e-3)


def test_items_that_share_a_hashed_row_are_looked_up_once():
    tables = {"item": TableConfig(ids=HashIdsConfig(kind="hash", num_rows=100))}
    load = loads_of(tables, {"item": 100}, FULL, facts=DatasetFacts(10_000, 10.0))["item"]
    assert load.ids_per_rank == pytest.approx(100, rel=1e-6)


def test_items_that_events_name_too_are_looked_up_once():
    facts = DatasetFacts(10_000, 11.0, {}, {"item": 1})
    assert loads_of(num_rows={"item": 10_000}, model=FULL, facts=facts)["item"].ids_per_rank == pytest.approx(10_000)
    many = loads_of(num_rows={"item": 10**9}, facts=DatasetFacts(10**9, 11.0, {}, {"item": 1}))["item"]
    assert many.ids_per_rank == pytest.approx(64 * 11 + 512 + 64 * 10, rel=1e-4)


def test_constraints_of_the_config_reach_the_plan():
    table = TableConfig(sharding=["table_wise", "row_wise"], ranks=[1, 3], optimizer="adagrad", dim=32)
    load = loads_of({"item": table})["item"]
    assert (load.shardings, load.ranks, load.optimizer, load.dim) == (("table_wise", "row_wise"), (1, 3), "adagrad", 32)


def test_a_dataset_knows_its_tables_and_their_lengths(tmp_path):
    manifest = tiny_dataset(tmp_path, num_users=60, num_items=40)
    assert table_rows({"item": TableConfig()}, manifest) == {"item": 41}
    facts = facts_of(manifest)
    assert facts.num_items == 41
    assert facts.mean_events == manifest.counts.train_events / 60
    hashed = {"item": TableConfig(ids=HashIdsConfig(kind="hash", num_rows=16))}
    assert table_rows(hashed, manifest) == {"item": 16}


def test_only_features_that_the_model_uses_have_tables_that_are_looked_up():
    from dataclasses import replace

    features = (
        Feature("item", "brand", "categorical", table="brand", num_rows=7),
        Feature("item", "age", "bucketized", table="age", num_rows=11),
        Feature("item", "published", "timestamp"),
        Feature("event", "shop", "categorical", table="shop", num_rows=5),
        Feature("event", "maker", "categorical", table="brand", num_rows=7),
        Feature("event", "rating", "numeric"),
        Feature("user", "city", "categorical", table="city", num_rows=6),
    )
    manifest = replace(manifest_of_items(3), features=features)
    tables = {name: TableConfig() for name in ("item", "brand", "age", "shop", "city")}
    assert table_rows(tables, manifest) == {"item": 4, "brand": 7, "age": 11, "shop": 5, "city": 6}
    facts = facts_of(manifest)
    assert facts.num_features == {"brand": 1, "age": 1}
    assert facts.num_event_features == {"shop": 1, "brand": 1}
    assert facts.num_user_features == {"city": 1}
    fewer = InputsConfig(event_features=["maker"], user_features=[])
    assert table_rows(tables, manifest, fewer) == {"item": 4, "brand": 7, "age": 11}
    assert facts_of(manifest, fewer).num_event_features == {"brand": 1}
    assert facts_of(manifest, fewer).num_user_features == {}


def test_features_of_events_and_users_are_looked_up_once_per_event_and_history():
    tables = {name: TableConfig() for name in ("item", "brand", "shop", "city")}
    num_rows = {"item": 1_000, "brand": 10**9, "shop": 10**9, "city": 10**9}
    facts = DatasetFacts(1_000, 11.0, {"brand": 1}, {"brand": 1, "shop": 2}, {"city": 1})
    loads = loads_of(tables, num_rows, FULL, facts=facts)
    histories = 64  # of each of two ranks
    assert loads["item"].ids_per_rank == 1_000
    assert loads["brand"].ids_per_rank == pytest.approx(1_000 + histories * 10, rel=1e-4)
    assert loads["shop"].ids_per_rank == pytest.approx(2 * histories * 10, rel=1e-4)
    assert loads["city"].ids_per_rank == pytest.approx(histories, rel=1e-4)


def test_without_a_dataset_the_plan_uses_the_config():
    logs = LogsConfig.model_validate(
        {
            "path": "events",
            "features": {"shop": {"kind": "categorical"}},
            "items": {
                "path": "items",
                "features": {
                    "brand": {"kind": "categorical"},
                    "maker": {"kind": "categorical"},
                    "price": {"kind": "numeric", "buckets": 10},
                    "weight": {"kind": "numeric"},
                },
            },
        }
    )
    tables = {name: TableConfig() for name in ("item", "maker", "price", "shop")}
    tables["brand"] = TableConfig(ids=HashIdsConfig(kind="hash", num_rows=50))
    assert declared_rows(tables, logs) == {"item": None, "brand": 50, "maker": None, "price": 11, "shop": None}
    without = declared_rows(tables, logs, InputsConfig(event_features=[]))
    assert without == {"item": None, "brand": 50, "maker": None, "price": 11}


def test_bags_get_all_ids_of_all_owners_and_give_a_vector_for_each():
    facts = DatasetFacts(10**9, 41.0, {"tags": 2}, {"tags": 1}, {"tags": 3})
    tables = {"item": TableConfig(), "tags": TableConfig(lookup="bags", sharding="grid_shard", optimizer="adagrad")}
    rows = {"item": 10**9, "tags": 50}
    load = loads_of(tables, rows, facts=facts)["tags"]
    items, inputs, histories = 64 * 41 + 512, 64 * 40, 64
    assert load.vectors_per_rank == pytest.approx(2 * items + inputs + 3 * histories, rel=1e-4)
    assert load.ids_per_rank == load.vectors_per_rank
    assert load.pooled
    assert load.weighted
    assert not load.mean_pooling
    assert load.shardings == ("grid_shard",)
    tables["tags"] = TableConfig(lookup="bags", pooling="sum", pooling_factor=500.0)
    several = loads_of(tables, rows, facts=facts)["tags"]
    assert several.ids_per_rank == 64 * 500
    assert several.vectors_per_rank == load.vectors_per_rank
    assert not several.weighted
