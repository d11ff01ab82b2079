"""metrics.json, per_impression.parquet, per_user.parquet and the page: right numbers, from whatever ranks wrote the parts."""

import itertools
import json
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.ranking.config import LabelConfig
from sharding.world import World
from tests.support.html_page import Page, assert_loads_nothing
from tests.support.jobs import tiny_job, with_sections
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.scored import HeldRows, plain_metrics, random_judged, table_of
from tests.trainer.evaluation.ranking.worlds import (
    LABELS,
    MAX_HISTORY,
    KnowsItems,
    evaluator_of,
    random_shown,
    write_world,
)
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.evaluation.confidence import mean_interval
from trainer.evaluation.ranking import tables
from trainer.evaluation.ranking.day_results import day_results
from trainer.evaluation.ranking.evaluate import write_scores
from trainer.evaluation.ranking.example_users import examples_of
from trainer.evaluation.ranking.judged import Judged, auc_of, count_scores, probabilities
from trainer.evaluation.ranking.metrics import METRICS
from trainer.evaluation.ranking.names import BASELINES
from trainer.evaluation.ranking.reliability import reliability, roc
from trainer.evaluation.ranking.report import render
from trainer.evaluation.ranking.results import RankingResults, summarize
from trainer.evaluation.ranking.scored import Impressions, merge_parts
from trainer.evaluation.ranking.tables import read_scored
from trainer.tasks.metrics import range_of

ALONE = World(0, 1, torch.device("cpu"))
NAMES = [metric.name for metric in METRICS]
BUY_AFTER_CLICK = LabelConfig(defined_when="click")
ITEMS = pa.array([f"film {letter}" for letter in "ABCDEFGHIJKLMNO"])


def _write(world: World, folder: Path, manifest: Manifest, parts: Path) -> None:
    evaluator = evaluator_of(folder, manifest, world, buy=BUY_AFTER_CLICK)
    write_scores(evaluator, KnowsItems(), parts, lambda done, total: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("world")
    return folder, write_world(folder, random_shown())


@pytest.fixture(scope="module")
def parts(tmp_path_factory, world) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "parts"
    _write(ALONE, *world, folder)
    return folder


def summary(parts: Path, manifest: Manifest, ticks: int | None = 1) -> tuple[RankingResults, Impressions]:
    found = merge_parts(parts, LABELS)
    return summarize(found, "test", "step_000000007", manifest, MAX_HISTORY, ticks), found


def test_metrics_of_the_stage_are_bit_for_bit_those_of_training(world, parts):
    results, _ = summary(parts, world[1])
    training = evaluator_of(*world, ALONE, buy=BUY_AFTER_CLICK).mean_metrics(KnowsItems())
    assert results.metrics == training
    assert set(results.baselines) == set(BASELINES)
    assert all(low < results.metrics[name] < high for name, (low, high) in results.ci95.items())
    assert set(results.ci95) == set(results.metrics)


def test_how_ranks_shared_the_impressions_changes_no_bit(world, parts, rank_pool: RankPool, tmp_path):
    rank_pool.run(3, _write, *world, tmp_path)
    alone, _ = summary(parts, world[1])
    shared, _ = summary(tmp_path, world[1])
    assert shared == alone


def test_counts(world, parts):
    results, found = summary(parts, world[1])
    rows = table_of(found).to_pylist()
    assert results.num_targets == len(rows)
    assert results.num_users == len({row["user"] for row in rows})
    clicked = [row for row in rows if row["label.click"] > 0]
    assert results.labels["click"]["impressions"] == len(rows)
    assert results.labels["click"]["positives"] == results.labels["buy"]["impressions"] == len(clicked)
    of_user = defaultdict(set)
    for row in rows:
        of_user[row["user"]].add(row["label.click"])
    assert results.labels["click"]["users_with_both"] == sum(len(seen) == 2 for seen in of_user.values())


def test_baselines_are_judged_like_the_model(world, parts):
    results, found = summary(parts, world[1])
    for name in BASELINES:
        for metric, value in plain_metrics(found.judged("click", name)).items():
            assert results.baselines[name][f"{metric}/click"] == pytest.approx(value, rel=1e-8)


def test_slices_hold_every_impression_once_by_each_name(world, parts):
    results, found = summary(parts, world[1])
    by_name = defaultdict(list)
    for entry in results.slices:
        by_name[entry["name"]].append(entry)
    assert set(by_name) == {"history_length", "item_impressions", "user_impressions", "time_since_last_event", "hour"}
    for entries in by_name.values():
        assert sum(entry["num_targets"] for entry in entries) == results.num_targets
    lengths = found.column("history_length")
    for entry in by_name["history_length"]:
        low, _, high = entry["value"].partition("-")
        inside = (lengths >= int(low)) & (lengths <= int(high or low))
        assert entry["num_targets"] == inside.sum()
        auc = auc_of(count_scores(found.judged("click", inside=inside)))
        assert entry["metrics"]["auc/click"] == (None if np.isnan(auc) else auc)
    assert by_name["history_length"][0]["value"] == "0", "those without any history are apart"


def test_without_a_clock_there_are_no_hours(world, parts):
    results, _ = summary(parts, world[1], ticks=None)
    assert {entry["name"] for entry in results.slices} == {"history_length", "item_impressions", "user_impressions"}


def test_hours_are_those_of_the_day_in_utc():
    times = np.asarray([0, 3 * 3600 + 3599, 4 * 3600, 23 * 3600, 24 * 3600, 47 * 3600]) * 1000
    size = times.size
    table = {
        "row_id": np.arange(size),
        "time": times,
        "history_length": np.ones(size, np.int64),
        "item_impressions": np.ones(size, np.int64),
        "weight": np.ones(size),
        "label.click": np.ones(size, np.float32),
        "logit.click": np.zeros(size, np.float32),
        **{f"logit.{name}.click": np.zeros(size, np.float32) for name in BASELINES},
    }
    results = summarize(Impressions(HeldRows(pa.table(table)), ("click",)), "test", "c", manifest_like(), 4, 1000)
    hours = {entry["value"]: entry["num_targets"] for entry in results.slices if entry["name"] == "hour"}
    assert hours == {"00-03": 3, "04-07": 1, "20-23": 2}
    assert results.metrics["auc"] is None, "there are positives only"
    assert results.metrics["calibration"] == 0.5


def manifest_like() -> Manifest:
    return Manifest(
        "f", {}, {"kind": "global_time", "validation_time": 1, "test_time": 2}, None, {}, (), task="ranking"
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_no_impressions_is_an_error_that_names_the_remedy(tmp_path, num_ranks):
    for rank in range(num_ranks):
        pq.write_table(pa.table({"row_id": pa.array([], pa.int64())}), tmp_path / f"rank-{rank}.parquet")
    with pytest.raises(UserError, match=r"no impressions.*split\.test_time"):
        merge_parts(tmp_path, LABELS)


# Files


@pytest.fixture(scope="module")
def written(world, tmp_path_factory) -> tuple[Path, RankingResults, Impressions]:
    folder = tmp_path_factory.mktemp("written")
    _write(ALONE, *world, folder / "parts")
    results, merged = summary(folder / "parts", world[1])
    found = Impressions(HeldRows(table_of(merged)), LABELS)  # the parts are removed
    tables.write(folder, results, found, ITEMS)
    return folder, results, found


def test_the_files_hold_the_results_and_the_logs_own_ids(written):
    folder, results, found = written
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert values.keys() == {field.name for field in fields(RankingResults)}
    assert RankingResults(**values) == results
    assert not (folder / "parts").exists()
    rows = pq.read_table(folder / "per_impression.parquet").to_pylist()
    assert len(rows) == table_of(found).num_rows
    for row, source in zip(rows, table_of(found).to_pylist(), strict=True):
        assert row["item"] == ITEMS[source["item"] - 1].as_py()
        assert (row["user"], row["time"], row["label/click"]) == (source["user"], source["time"], source["label.click"])
        assert row["label/buy"] == source["label.buy"] if row["label/click"] else row["label/buy"] is None
        assert row["probability/buy"] == pytest.approx(1 / (1 + np.exp(-source["logit.buy"])))
        assert row["popularity/click"] == pytest.approx(1 / (1 + np.exp(-source["logit.popularity.click"])))


def test_metrics_can_be_recomputed_from_the_file(written):
    folder, results, _ = written
    for label in LABELS:
        assert auc_of(count_scores(read_scored(folder, label, LABELS))) == results.metrics[f"auc/{label}"]
        popular = read_scored(folder, label, LABELS, "popularity")
        assert auc_of(count_scores(popular)) == results.baselines["popularity"][f"auc/{label}"]


def test_users_have_their_own_metrics(written):
    folder, results, found = written
    rows = pq.read_table(folder / "per_user.parquet").to_pylist()
    assert len(rows) == results.num_users
    names = found.column("row_id")
    both = [row for row in rows if row["user_auc/click"] is not None]
    assert len(both) == results.labels["click"]["users_with_both"]
    weighted = sum(row["user_auc/click"] * row["impressions"] for row in both) / sum(row["impressions"] for row in both)
    assert weighted == pytest.approx(results.metrics["gauc/click"])
    lost = sum(row["user_logloss/click"] * row["impressions"] for row in rows) / names.size
    assert lost == pytest.approx(results.metrics["logloss/click"])
    assert all(row["positives/buy"] <= row["positives/click"] for row in rows)
    assert all((row["user_logloss/buy"] is None) == (row["positives/click"] == 0) for row in rows)


def test_the_mean_of_the_users_shares_is_the_metric_and_their_error_that_of_its_interval(written):
    folder, results, _ = written
    table = pq.read_table(folder / "per_user.parquet")
    columns = {name: table.column(name).to_numpy() for name in results.metrics}
    for name, column in columns.items():
        assert column.mean() == pytest.approx(results.metrics[name], rel=1e-8), name
        assert mean_interval(column, range_of(name)) == pytest.approx(results.ci95[name], rel=0.02), name


def test_an_unknown_item_is_null(world, tmp_path):
    _write(ALONE, *world, tmp_path)
    found = merge_parts(tmp_path, LABELS)
    place = table_of(found).schema.get_field_index("item")
    unknown = table_of(found).set_column(place, "item", pa.array(np.zeros(table_of(found).num_rows, np.int64)))
    table = tables.impression_table(Impressions(HeldRows(unknown), LABELS), ITEMS)
    assert table.column("item").null_count == table.num_rows


# Reliability and curves


def test_groups_are_of_like_predictions_and_hold_all_impressions():
    judged = random_judged(1, count=2000, levels=None)
    groups = reliability(judged)
    chance = probabilities(judged.scores)
    assert len(groups) == 20
    assert sum(group.impressions for group in groups) == 2000
    assert all(before.high < after.low for before, after in itertools.pairwise(groups))
    for group in groups:
        inside = (chance >= group.low) & (chance <= group.high)
        assert group.impressions == inside.sum()
        assert group.predicted == pytest.approx(chance[inside].mean())
        assert group.observed == pytest.approx(judged.positive[inside].mean())
        assert group.interval[0] < group.observed < group.interval[1] or group.observed in (0, 1)


def test_equal_predictions_are_one_group_however_many():
    judged = random_judged(2, levels=4)
    groups = reliability(judged)
    assert len(groups) == len({round(g.low, 12) for g in groups}) <= np.unique(judged.scores).size
    alike = reliability(Judged(judged.user, np.zeros(300), judged.positive, judged.weight))
    assert [(group.impressions, group.predicted) for group in alike] == [(300, 0.5)]
    assert reliability(judged.take(np.zeros(0, np.int64))) == []


@pytest.mark.parametrize("levels", [3, None])
def test_the_area_below_the_curve_is_auc(levels):
    counts = count_scores(random_judged(3, count=5000, levels=levels))
    false, true = roc(counts)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert false.size <= 301
    assert np.trapezoid(true, false) == pytest.approx(auc_of(counts), abs=1e-3)


# The page

HISTORY = [
    {"step": 10, "kind": "train", "loss": 0.6, "epoch": 0},
    {"step": 10, "kind": "validation", "auc/click": 0.7, "gauc/click": 0.6, "auc/buy": float("nan"), "gauc/buy": 0.5},
]

EXAMPLES = [
    {
        "user": "u07",
        "num_events": 12,
        "history": ["Alien", "Heat"],
        "impressions": [
            {
                "item": "Fargo",
                "labels": {
                    "click": {"probability": 0.25, "outcome": 0.0},
                    "buy": {"probability": 0.5, "outcome": None},
                },
            }
        ],
    }
]


def page_of(written, world, history=HISTORY, log_path=None, by_day=None) -> str:
    folder, results, _ = written
    job = tiny_job(Path("runs/shown"), Path("runs/shown/dataset"))
    logs = job.config.logs.model_copy(update={"path": log_path})
    job = job if log_path is None else with_sections(job, logs=logs)
    return render(results, job, world[1], folder, history, by_day, EXAMPLES)


def test_the_page_is_whole_loads_nothing_and_holds_the_numbers(written, world):
    page = page_of(written, world)
    assert_loads_nothing(page)
    assert Page(page).open == []
    text = Page(page).text
    _, results, _ = written
    for label in LABELS:
        for metric in NAMES:
            name = f"{metric}/{label}"
            assert name in text
            assert f"{results.metrics[name]:.4f}" in text
            assert f"{results.baselines['item_and_user'][name]:.4f}" in text
    assert Page(page).names.count("svg") == 2 * 4 + 2
    assert Page(page_of(written, world, history=[])).names.count("svg") == 2 * 4


def day_line(day: int, clicks: int, buys: int, auc: float, of_buy: float) -> dict[str, Any]:
    metrics = {f"{metric}/{label}": 0.9 for metric in NAMES for label in LABELS}
    metrics |= {"auc/click": auc, "auc/buy": of_buy}
    return {
        "step": day, "kind": "progressive", "day": day, "begins": f"2024-05-0{day}",
        "impressions": {"click": clicks, "buy": buys}, **metrics,
        "popularity": {name: value / 2 for name, value in metrics.items()},
    }  # fmt: skip


def test_days_are_a_table_and_their_means_are_weighted_by_the_impressions_of_each_label():
    nothing = float("nan")
    lines = [*HISTORY, day_line(1, 100, 30, 0.5, nothing), day_line(2, 300, 10, 0.7, 0.6), day_line(3, 0, 30, 0.1, 0.8)]
    found = day_results(lines, LABELS)
    assert found is not None
    assert found.mean["model"]["auc/click"] == pytest.approx((100 * 0.5 + 300 * 0.7) / 400)
    assert found.mean["model"]["auc/buy"] == pytest.approx((10 * 0.6 + 30 * 0.8) / 40)
    assert found.mean["popularity"]["auc/click"] == pytest.approx((100 * 0.25 + 300 * 0.35) / 400)
    assert [day["model"]["auc/buy"] for day in found.days] == [None, 0.6, 0.8]
    assert day_results(HISTORY, LABELS) is None


def test_the_page_has_a_row_for_every_day(written, world):
    by_day = day_results([day_line(1, 1000, 300, 0.5123, 0.6), day_line(2, 3000, 100, 0.7, 0.6789)], LABELS)
    page = page_of(written, world, by_day=by_day)
    assert_loads_nothing(page)
    assert Page(page).open == []
    for text in (
        "Daily training",
        "2024-05-01",
        "2024-05-02",
        "3,000",
        "0.5123",
        "0.6789",
        "mean, weighted by impressions",
    ):
        assert text in Page(page).text
    assert Page(page).names.count("svg") == 2 * 4 + 2 + 2
    assert "Daily training" not in Page(page_of(written, world)).text


def test_names_given_by_users_are_escaped(written, world):
    nasty = '<script>alert("x")</script>'
    page = page_of(written, world, log_path=nasty)
    assert "<script" not in page
    assert nasty in Page(page).text


def test_example_users_show_what_was_predicted_of_their_impressions(written, world):
    text = " ".join(Page(page_of(written, world)).text.split())
    assert "User u07 Last 2 of 12 events Alien Heat" in text
    assert "Fargo click 0.2500: no buy 0.5000: not defined" in text


def test_examples_are_read_from_the_impressions_and_the_histories(world, parts):
    merged = merge_parts(parts, LABELS)
    users = examples_of(merged, *world, None, ITEMS)
    assert len(users) == 5
    by_user = {str(name): rows for name, rows in _impressions_by_user(merged).items()}
    assert {user["user"] for user in users} <= by_user.keys()
    for user in users:
        rows = by_user[user["user"]][:5]
        assert [shown["item"] for shown in user["impressions"]] == [
            f"film {'ABCDEFGHIJKLMNO'[r['item'] - 1]}" for r in rows
        ]
        for shown, row in zip(user["impressions"], rows, strict=True):
            assert shown["labels"]["click"]["outcome"] == row["label.click"]
            assert shown["labels"]["click"]["probability"] == pytest.approx(1 / (1 + np.exp(-row["logit.click"])))
        assert len(user["history"]) == min(8, user["num_events"])


def _impressions_by_user(merged: Impressions) -> dict[Any, list[dict[str, Any]]]:
    users: dict[Any, list[dict[str, Any]]] = {}
    for row in table_of(merged).to_pylist():
        users.setdefault(row["user"], []).append(row)
    return users
