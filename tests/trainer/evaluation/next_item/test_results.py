"""metrics.json and per_user.parquet: right numbers, the logs' own ids, and nothing that depends on how ranks shared the work."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch
from models.features.catalogue import Catalogue
from models.features.request import ItemRequest
from sharding.world import World
from tests.support.datasets import tiny_dataset
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError
from trainer.evaluation.confidence import SHARE, mean_interval
from trainer.evaluation.next_item import results as results_module
from trainer.evaluation.next_item.baselines.build import Baselines
from trainer.evaluation.next_item.baselines.order import ItemOrder
from trainer.evaluation.next_item.baselines.popularity import ListBaseline
from trainer.evaluation.next_item.evaluate import make_evaluator, write_user_rows
from trainer.evaluation.next_item.merged_rows import MergedRows, merge_parts
from trainer.evaluation.next_item.results import (
    Evaluated,
    Results,
    examples_of,
    read_target_ranks,
    summarize,
)
from trainer.evaluation.next_item.similarity import similarity_of_categories
from trainer.evaluation.next_item.user_values import UserValues
from trainer.global_batch.dynamic_ids import DynamicTables

NUM_ITEMS = 10
CONFIG = EvaluateConfig(ks=[1, 3], batch_size=7)
ITEMS = pa.array([f"film {letter}" for letter in "ABCDEFGHIJ"])  # film A is id 1
TRAIN_EVENTS = np.asarray([40, 30, 10, 8, 5, 3, 2, 1, 1, 0])
# Items of odd and even numbers have a category each, and item 1 has both.
SIMILARITY = similarity_of_categories([(np.asarray([1, *range(1, 11)]), np.asarray([0, *np.arange(1, 11) % 2]))], 11)


@dataclass(frozen=True)
class User:
    row: int
    history_length: int
    targets: list[int]
    ranks: list[int]
    popularity_ranks: list[int]
    top: list[int]
    popularity_top: list[int]


USERS = [
    User(0, 1, [1], [1], [1], [1, 2, 3], [1, 2, 3]),
    User(2, 2, [2], [3], [2], [1, 3, 2], [1, 2, 3]),
    User(3, 3, [3, 10], [2, 9], [3, 10], [4, 3, 1], [1, 2, 3]),
    User(5, 4, [0], [0], [0], [1, 2, 0], [1, 2, 0]),
    User(6, 5, [4], [4], [4], [1, 2, 3], [1, 2, 3]),
    User(8, 6, [5, 0, 6], [1, 0, 3], [5, 0, 6], [5, 1, 6], [1, 2, 3]),
    User(9, 7, [1], [2], [1], [2, 1, 3], [1, 2, 3]),
    User(11, 8, [9], [7], [9], [1, 2, 3], [1, 2, 3]),
]


def manifest_of(num_items: int) -> Manifest:
    counts = Counts(100, 100, {}, 12, num_items, 80, 10, 10, 0, 0, 0, 0)
    return Manifest("f", {}, {"kind": "leave_one_out", "min_events": 3}, counts, {}, ())


def write_part(folder: Path, rank: int, users: list[User]) -> None:
    """As trainer.evaluation.next_item.evaluate does; the user column of a rank without users has the type null."""
    lists = pa.list_(pa.int64())
    places = pa.list_(pa.int64(), 3)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "row_id": pa.array([u.row for u in users], pa.int64()),
            "user": pa.array([f"user {u.row}" for u in users]) if users else pa.nulls(0),
            "history_length": pa.array([u.history_length for u in users], pa.int64()),
            "targets": pa.array([u.targets for u in users], lists),
            "ranks": pa.array([u.ranks for u in users], lists),
            "popularity_ranks": pa.array([u.popularity_ranks for u in users], lists),
            "top_items": pa.array([u.top for u in users], places),
            "popularity_top_items": pa.array([u.popularity_top for u in users], places),
        }
    )
    pq.write_table(table, folder / f"rank-{rank}.parquet")


def summary(folder: Path, shares: list[list[User]]) -> tuple[Results, dict[str, UserValues], MergedRows]:
    for rank, users in enumerate(shares):
        write_part(folder / "parts", rank, users)
    merged = merge_parts(folder / "parts")
    manifest = manifest_of(NUM_ITEMS)
    evaluated = Evaluated("test", "step_000000007", CONFIG, manifest, TRAIN_EVENTS, "all", similarity=SIMILARITY)
    results, columns = summarize(merged, evaluated)
    return results, columns, merged


def slices_of(results: Results, name: str) -> dict[str, dict[str, Any]]:
    return {entry["value"]: entry for entry in results.slices if entry["name"] == name}


# metrics.json


def test_the_numbers_by_hand(tmp_path):
    results, columns, _ = summary(tmp_path, [USERS])
    assert (results.task, results.split, results.checkpoint) == ("next_item", "test", "step_000000007")
    assert (results.num_users, results.num_targets, results.num_targets_not_rankable) == (8, 11, 2)
    assert columns["hr@1"].values.tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert results.metrics["hr@1"] == 2 / 8
    assert results.metrics["hr@3"] == 5 / 8
    assert results.metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2 + 0 + 1 / 4 + 1 + 1 / 2 + 1 / 7) / 8)
    assert results.baselines["popularity"]["hr@3"] == 4 / 8
    assert results.baselines["popularity"]["mrr"] == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 0 + 1 / 4 + 1 / 5 + 1 + 1 / 9) / 8
    )


def test_coverage_is_the_share_of_the_catalogue_in_somebodys_list(tmp_path):
    results, _, _ = summary(tmp_path, [USERS])
    assert results.metrics["coverage@1"] == 4 / NUM_ITEMS  # 1, 2, 4, 5
    assert results.metrics["coverage@3"] == 6 / NUM_ITEMS  # and 3, 6; an empty place (0) is no item
    assert results.baselines["popularity"]["coverage@1"] == 1 / NUM_ITEMS
    assert results.baselines["popularity"]["coverage@3"] == 3 / NUM_ITEMS


def test_intervals_belong_to_metrics_over_users(tmp_path):
    results, columns, _ = summary(tmp_path, [USERS])
    assert results.ci95.keys() == results.metrics.keys() == columns.keys() | {"coverage@1", "coverage@3"}
    assert results.baselines_ci95["popularity"].keys() == results.ci95.keys()
    assert results.ci95["mrr"] == pytest.approx(mean_interval(columns["mrr"].values, SHARE))
    for name, (low, high) in results.ci95.items():
        assert low <= results.metrics[name] <= high, name


def test_metrics_of_lists_are_those_of_the_lists(tmp_path):
    results, columns, _ = summary(tmp_path, [USERS])
    events = [TRAIN_EVENTS[np.asarray(user.top)[np.asarray(user.top) > 0] - 1] for user in USERS]
    assert columns["arp@3"].values.tolist() == pytest.approx([own.mean() for own in events])
    assert results.metrics["novelty@3"] == pytest.approx(np.mean([-np.log2(own / 100).mean() for own in events]))
    assert results.baselines["popularity"]["arp@1"] == 40.0
    # Item 1 shares one of its two categories with each other item; odd and even items share none.
    near = 1 - 1 / np.sqrt(2)
    both = (2 * near + 1) / 3
    assert columns["ild@3"].values[:6].tolist() == pytest.approx([both, both, both, near, both, both])
    assert "ild@1" not in results.metrics
    assert results.protocol["item_similarity"] == "categories of the items"


def test_slices_by_history_length_are_quartiles(tmp_path):
    results, columns, _ = summary(tmp_path, [USERS])
    slices = slices_of(results, "history_length")
    assert {value: entry["num_users"] for value, entry in slices.items()} == {"1-2": 2, "3-4": 2, "5-6": 2, "7-8": 2}
    assert slices["5-6"]["metrics"]["mrr"] == pytest.approx(columns["mrr"].values[4:6].mean())
    assert slices["5-6"]["ci95"].keys() == columns.keys()


def test_slices_by_popularity_go_by_the_first_target(tmp_path):
    """40 of 100 training events are of item 1 alone, 70 of items 1 and 2."""
    results, columns, _ = summary(tmp_path, [USERS])
    slices = slices_of(results, "target_popularity")
    assert {value: entry["num_users"] for value, entry in slices.items()} == {"head": 2, "middle": 1, "tail": 5}
    assert slices["head"]["metrics"]["mrr"] == pytest.approx(columns["mrr"].values[[0, 6]].mean())
    assert slices["middle"]["metrics"]["mrr"] == pytest.approx(columns["mrr"].values[1])


@pytest.mark.parametrize("seed", range(5))
def test_every_user_is_in_one_slice_of_each_kind(tmp_path, seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, random.choice([2, 4, 50]), size=20).tolist()
    users = [
        User(n, length, [int(random.integers(0, 11))], [1], [1], [1, 2, 3], [1, 2, 3])
        for n, length in enumerate(lengths)
    ]
    results, _, _ = summary(tmp_path, [users])
    for name in ("history_length", "target_popularity"):
        assert sum(entry["num_users"] for entry in slices_of(results, name).values()) == 20


def test_the_protocol_describes_the_evaluation(tmp_path):
    results, _, merged = summary(tmp_path, [USERS])
    assert results.protocol["catalogue"] == NUM_ITEMS
    assert results.protocol["seen_items"] == "masked"
    assert results.protocol["split"] == {"kind": "leave_one_out", "min_events": 3}
    assert results.protocol["targets"] == "all"
    config = EvaluateConfig(ks=[1], mask_seen=False, targets="first")
    other, _ = summarize(merged, Evaluated("test", "c", config, manifest_of(NUM_ITEMS), TRAIN_EVENTS, "all"))
    assert (other.protocol["seen_items"], other.protocol["targets"]) == ("ranked", "first")


# Merging


@pytest.mark.parametrize(
    "shares",
    [
        [USERS[1::2], USERS[::2]],
        [USERS[4:], [], USERS[:4]],
        [[], USERS],
        [[user] for user in reversed(USERS)] + [[], [], []],  # more than ten: rank-10 sorts before rank-2
    ],
    ids=["two ranks", "one without users", "the first without users", "eleven ranks"],
)
def test_how_ranks_shared_the_users_changes_no_bit(tmp_path, shares):
    alone, columns, table = summary(tmp_path / "alone", [USERS])
    shared, shared_columns, shared_table = summary(tmp_path / "shared", shares)
    assert shared == alone
    assert shared_table.to_table().to_pylist() == table.to_table().to_pylist()
    assert all((shared_columns[name].values == values.values).all() for name, values in columns.items())


@pytest.mark.parametrize("shares", [[], [[]], [[], []]])
def test_nobody_to_evaluate_is_an_error_that_names_the_remedy(tmp_path, shares):
    for rank, users in enumerate(shares):
        write_part(tmp_path / "parts", rank, users)
    with pytest.raises(UserError, match=r"no user has held-out events.*split\.test_time"):
        merge_parts(tmp_path / "parts")


# Files


def test_the_files_hold_the_results_and_the_logs_own_ids(tmp_path):
    results, columns, merged = summary(tmp_path, [USERS[:3], USERS[3:]])
    results_module.write(tmp_path, results, merged, columns, ITEMS)
    values = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert values.keys() == {field.name for field in fields(Results)}
    assert Results(**values) == results
    table = pq.read_table(tmp_path / "per_user.parquet").to_pylist()
    assert [row["user"] for row in table] == [f"user {user.row}" for user in USERS]
    assert table[5]["targets"] == ["film E", None, "film F"]
    assert table[5]["ranks"] == [1, 0, 3]
    assert table[5]["popularity_ranks"] == [5, 0, 6]
    assert table[5]["top_items"] == ["film E", "film A", "film F"]
    assert table[3]["top_items"] == ["film A", "film B", None]
    assert [row["history_length"] for row in table] == [user.history_length for user in USERS]
    for name, expected in columns.items():
        assert [row[name] for row in table] == expected.shares.tolist()
    assert not (tmp_path / "parts").exists()


def test_integer_ids_stay_integers(tmp_path):
    results, columns, merged = summary(tmp_path, [USERS])
    results_module.write(tmp_path, results, merged, columns, pa.array(range(100, 110)))
    assert pq.read_table(tmp_path / "per_user.parquet").column("targets").to_pylist()[2] == [102, 109]


def test_ranks_are_counted_from_the_file(tmp_path):
    results, columns, merged = summary(tmp_path, [USERS])
    results_module.write(tmp_path, results, merged, columns, ITEMS)
    ranks = read_target_ranks(tmp_path)
    assert ranks["model"].tolist() == np.bincount([1, 3, 2, 9, 0, 4, 1, 0, 3, 2, 7]).tolist()
    assert ranks["popularity"].tolist() == np.bincount([1, 2, 3, 10, 0, 4, 5, 0, 6, 1, 9]).tolist()


# From the evaluation itself


class LastItemNext:
    """A model without weights: the vector of an item is its one-hot, and the next item is the one after the last."""

    training = False

    def __init__(self, num_item_rows: int) -> None:
        self.num_item_rows = num_item_rows

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        return {"item": torch.nn.functional.one_hot(request.rows["item"], self.num_item_rows).float()}

    def item_vectors(self, rows: dict[str, Tensor], request: ItemRequest) -> Tensor:
        return rows["item"]

    def user_vectors(self, by_table: dict[str, Tensor], batch: HistoryBatch) -> Tensor:
        rows = by_table["item"]
        last = (batch.layout.offsets[1:] - 1).tolist()
        return torch.stack([rows[batch.history_index[n]].roll(1) for n in last]) if last else rows[:0]


def test_an_evaluation_from_files_to_files(tmp_path):
    manifest = tiny_dataset(tmp_path / "dataset")
    vocabulary = read_vocabulary(tmp_path / "dataset", manifest)
    alone = World(0, 1, torch.device("cpu"))
    evaluator = make_evaluator(
        tmp_path / "dataset",
        manifest,
        Catalogue(manifest.num_item_rows, manifest.num_item_rows),
        "test",
        CONFIG,
        5,
        alone,
        DynamicTables({}, (), seed=0),
    )
    seen: list[tuple[int, int]] = []
    model: Any = LastItemNext(manifest.num_item_rows)
    popularity = ListBaseline("popularity", "popular items", ItemOrder.by_counts(vocabulary.train_events))
    baselines = Baselines([popularity], vocabulary.num_items, left_out={})
    write_user_rows(evaluator, model, baselines, tmp_path / "parts", lambda done, total: seen.append((done, total)))
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]
    merged = merge_parts(tmp_path / "parts")
    results, columns = summarize(merged, Evaluated("test", "step_1", CONFIG, manifest, vocabulary.train_events, "all"))
    validated = examples_of(merged, "validation", tmp_path / "dataset", manifest, None, vocabulary.values)
    users = examples_of(merged, "test", tmp_path / "dataset", manifest, None, vocabulary.values)
    results_module.write(tmp_path, results, merged, columns, vocabulary.values)

    histories = {
        row["user"]: [vocabulary.values[item - 1].as_py() for item in row["item"]]
        for part in manifest.parts
        for row in pq.read_table(tmp_path / "dataset" / part.path).to_pylist()
    }
    table = pq.read_table(tmp_path / "per_user.parquet").to_pylist()
    assert len(table) == results.num_users == manifest.counts.test_targets
    hits = 0
    for row in table:
        *history, target = histories[row["user"]]
        assert row["targets"] == [target]
        assert row["history_length"] == len(history)
        assert not set(row["top_items"]) & set(history)
        expected = f"item-{int(history[-1][5:]) + 1:04d}"
        if expected in vocabulary.values.to_pylist() and expected not in history:
            assert row["top_items"][0] == expected
            hits += target == expected
    assert results.metrics["hr@1"] * len(table) >= hits > 10
    while_training = evaluator.mean_metrics(model)
    assert while_training == pytest.approx({name: results.metrics[name] for name in while_training})
    assert columns.keys() - while_training.keys() == {f"{name}@{k}" for name in ("novelty", "arp") for k in (1, 3)}

    by_user = {str(row["user"]): row for row in table}
    assert len({user["user"] for user in users}) == 5
    for user in users:
        *history, target = histories[next(name for name in histories if str(name) == user["user"])]
        assert user["history"] == history[-8:]
        assert user["num_events"] == len(history)
        assert user["targets"] == [{"item": target, "rank": by_user[user["user"]]["ranks"][0]}]
        top = by_user[user["user"]]["top_items"]
        assert user["recommended"] == [{"item": item, "is_target": item == target} for item in top if item is not None]
    assert [user["num_events"] for user in validated] == [user["num_events"] - 1 for user in users]
