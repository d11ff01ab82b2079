"""Baselines of next-item models: equal to brute force, on any number of ranks and for any batch size."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.held_out import HeldOut
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.evaluation.next_item.baselines import build, co_occurrence, ease
from trainer.evaluation.next_item.baselines.build import Baselines, build_baselines
from trainer.evaluation.next_item.baselines.listed import Listed, masked_pairs, rank_listed
from trainer.evaluation.next_item.baselines.order import ItemOrder

ALONE = World(0, 1, torch.device("cpu"))
TOP = 7
DAY = 5  # ticks of a day in these tests

Row = dict[str, Any]
Lists = dict[str, dict[int, tuple[list[int], list[int]]]]  # by baseline and row: ranks of targets, top items


def by_score(scores: dict[int, float], popularity: list[int]) -> list[int]:
    """Return all items: scored ones first, then by popularity, ties by id."""
    items = range(1, len(popularity) + 1)
    return sorted(items, key=lambda item: (-scores.get(item, -np.inf), -popularity[item - 1], item))


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_listed_items_come_before_the_common_order(seed: int, mask_seen: bool) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4, 12)
    listed, seen, targets = [], [], []
    for _ in range(9):
        listed.append(
            {int(i): int(random.integers(1, 4)) for i in random.choice(np.arange(1, 13), random.integers(0, 13), False)}
        )
        seen.append(random.integers(0, 13, random.integers(0, 14)).tolist())
        targets.append([0, 13, *random.integers(1, 13, random.integers(0, 5)).tolist()])
    pairs = [(user, item, score) for user, scores in enumerate(listed) for item, score in scores.items()]
    held: Any = SimpleNamespace(
        row_ids=np.arange(9),
        seen=np.asarray([item for own in seen for item in own], np.int64),
        seen_offsets=np.cumsum([0, *map(len, seen)]),
        targets=np.asarray([item for own in targets for item in own], np.int64),
        target_offsets=np.cumsum([0, *map(len, targets)]),
    )
    columns = np.asarray(pairs, np.int64).reshape(-1, 3).T
    masked = masked_pairs(held, 12, mask_seen)
    ranked = rank_listed(ItemOrder.by_counts(counts), Listed(*columns), held, masked, 10)
    for user, own in enumerate(np.split(ranked.target_ranks, held.target_offsets[1:-1])):
        order = [i for i in by_score(listed[user], counts.tolist()) if not mask_seen or i not in seen[user]]
        assert ranked.top_items[user].tolist() == (order[:10] + [0] * 10)[:10]
        assert own.tolist() == [order.index(t) + 1 if t in order else 0 for t in targets[user]]


def dataset_of(folder: Path) -> tuple[Manifest, list[Row]]:
    """Return a dataset, with the range of its training times in the manifest, and its rows."""
    manifest = tiny_dataset(folder) if not folder.exists() else read_manifest(folder)
    rows = [row for part in manifest.parts for row in pq.read_table(folder / part.path).to_pylist()]
    times = [time for row in rows for time in row["time"][: row["train_end"]]]
    return replace(manifest, profile={"time_range": {"train": [min(times), max(times)]}}), rows


def model_of(folder: Path) -> NextItemConfig:
    model = tiny_job(folder / "run", folder, model={"max_history": 8, "inputs": {"time_unit": "seconds"}}).config.model
    assert isinstance(model, NextItemConfig)
    return model


def baselines_of(world: World, folder: Path, config: EvaluateConfig) -> Baselines:
    manifest, _ = dataset_of(folder)
    train_events = read_vocabulary(folder, manifest).train_events
    with (
        mock.patch.object(build, "SECONDS_PER_DAY", DAY),
        mock.patch.object(co_occurrence, "MAX_NEIGHBOURS", 3),
        mock.patch.object(ease, "REGULARISATION", 2.0),
    ):
        return build_baselines(folder, manifest, train_events, model_of(folder), config, False, world)


def lists_of(world: World, folder: Path, config: EvaluateConfig) -> Lists:
    """Return what each baseline lists for this rank's users."""
    manifest, _ = dataset_of(folder)
    baselines = baselines_of(world, folder, config)
    reader = RowGroupReader(folder, manifest, ColumnSelection())
    catalogue = Catalogue(manifest.num_item_rows, manifest.num_item_rows)
    held_out = HeldOut(reader, catalogue, "test", "all", 8, config.batch_size, world.rank, world.world_size)
    lists: Lists = {}
    for held in held_out.batches():
        for name, ranked in baselines.rank_all(held, config.mask_seen, TOP):
            for row, target, top in zip(held.row_ids, ranked.target_ranks, ranked.top_items, strict=True):
                lists.setdefault(name, {})[int(row)] = ([int(target)], top.tolist())
    return lists


def orders_by_brute_force(folder: Path) -> dict[str, dict[int, list[int]]]:
    """Return all items in the order of each baseline, by row of the dataset, without masks."""
    manifest, rows = dataset_of(folder)
    num_items = manifest.counts.num_items
    training = [(row["item"][: row["train_end"]], row["time"][: row["train_end"]]) for row in rows]
    end = max(times[-1] for _, times in training if times)

    def events_since(first: float) -> list[int]:
        counts = Counter(
            item for items, times in training for item, at in zip(items, times, strict=True) if at >= first
        )
        return [counts[item] for item in range(1, num_items + 1)]

    popularity = events_since(-np.inf)
    pairs: dict[int, Counter[int]] = {item: Counter() for item in range(1, num_items + 1)}
    users = np.zeros((len(rows), num_items))
    for number, (items, _) in enumerate(training):
        users[number, np.asarray(items, np.int64) - 1] = 1
        for place, item in enumerate(items):
            for distance, other in enumerate(items[place + 1 : place + 6], start=1):
                if other != item:
                    pairs[item][other] += 6 - distance
    inverse = np.linalg.inv(users.T @ users + 2.0 * np.eye(num_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    orders: dict[str, dict[int, list[int]]] = {
        name: {} for name in ("popularity", "popularity_7d", "repeat_last", "co_occurrence", "ease")
    }
    for row_id, row in enumerate(rows):
        history = row["item"][:-1]
        recent = events_since(end + 1 - 7 * DAY)
        orders["popularity"][row_id] = by_score({}, popularity)
        orders["popularity_7d"][row_id] = by_score({i: recent[i - 1] for i in range(1, num_items + 1)}, popularity)
        orders["repeat_last"][row_id] = by_score({item: place for place, item in enumerate(history)}, popularity)
        followers: Counter[int] = Counter()
        for item in history[-3:]:
            best = sorted(pairs[item], key=lambda other: (-pairs[item][other], -popularity[other - 1], other))[:3]
            followers.update({other: pairs[item][other] for other in best})
        orders["co_occurrence"][row_id] = by_score(followers, popularity)
        scores = np.round(weights * 2**20)[np.asarray(sorted(set(history)), np.int64) - 1].sum(axis=0)
        orders["ease"][row_id] = by_score(dict(enumerate(scores.tolist(), start=1)), popularity)
    return orders


@pytest.mark.parametrize("mask_seen", [True, False])
def test_baselines_are_those_of_brute_force(tmp_path: Path, mask_seen: bool) -> None:
    folder = tmp_path / "dataset"
    manifest, rows = dataset_of(folder)
    lists = lists_of(ALONE, folder, EvaluateConfig(batch_size=16, mask_seen=mask_seen))
    expected = orders_by_brute_force(folder)
    assert lists.keys() == expected.keys() - ({"repeat_last"} if mask_seen else set())
    for name, of_rows in lists.items():
        assert len(of_rows) == manifest.counts.test_targets
        for row_id, (ranks, top) in of_rows.items():
            *history, target = rows[row_id]["item"]
            order = [item for item in expected[name][row_id] if not mask_seen or item not in history]
            assert top == order[:TOP], (name, row_id)
            assert ranks == [order.index(target) + 1 if target in order else 0]
    assert len({str(of_rows) for of_rows in lists.values()}) == len(lists)  # no two of them are the same


def test_ranks_and_batches_do_not_matter(tmp_path: Path, rank_pool: RankPool) -> None:
    folder = tmp_path / "dataset"
    dataset_of(folder)
    alone = lists_of(ALONE, folder, EvaluateConfig(batch_size=100, mask_seen=False))
    shared = rank_pool.run(2, lists_of, folder, EvaluateConfig(batch_size=6, mask_seen=False))
    for name, of_rows in alone.items():
        assert shared[0][name] | shared[1][name] == of_rows
        assert shared[0][name].keys() & shared[1][name].keys() == set()


def test_baselines_that_do_not_fit_are_named_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    dataset_of(folder)
    with mock.patch.object(ease, "MAX_ITEMS", 39):
        baselines = baselines_of(ALONE, folder, EvaluateConfig())
    assert "40 items" in baselines.left_out["ease"]
    assert "seen items are masked" in baselines.left_out["repeat_last"]
    assert "spans no more than 30 days" in baselines.left_out["popularity_30d"]
    assert [baseline.name for baseline in baselines.used] == ["popularity", "popularity_7d", "co_occurrence"]
    chosen = baselines_of(ALONE, folder, EvaluateConfig(baselines=["ease"]))
    assert [baseline.name for baseline in chosen.used] == ["ease"]
    assert chosen.left_out == {}


def test_bounded_work_counts_users_at_even_distances(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    dataset_of(folder)
    with mock.patch.object(co_occurrence, "MAX_EVENTS", 200), mock.patch.object(ease, "MAX_WORK", 40 * 1600):
        used = {baseline.name: baseline.description for baseline in baselines_of(ALONE, folder, EvaluateConfig()).used}
    assert "(1 of 2 users counted)" in used["ease"]
    assert "users counted" in used["co_occurrence"]
