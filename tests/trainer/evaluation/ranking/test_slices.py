"""Slices of impressions: who is in which, on any number of ranks, and which of them are named as worse than the others."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranking.config import LabelConfig
from sharding.world import World
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.scored import HeldRows, table_of
from tests.trainer.evaluation.ranking.worlds import (
    LABELS,
    MAX_HISTORY,
    KnowsItems,
    evaluator_of,
    random_shown,
    write_world,
)
from tests.trainer.evaluation.test_slices import AGE, CITY, GENRES, manifest_in, members
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.evaluation.ranking.evaluate import write_scores
from trainer.evaluation.ranking.judged import auc_of, count_scores
from trainer.evaluation.ranking.results import summarize
from trainer.evaluation.ranking.scored import Impressions, merge_parts
from trainer.evaluation.ranking.slices import (
    BUILT_IN,
    NO_EVENTS,
    SINCE_LAST,
    USER_IMPRESSIONS,
    built_in_slices,
    slices_by_features,
    worst_impressions,
)
from trainer.evaluation.ranking.tables import impression_table
from trainer.evaluation.slices import MIN_USERS, Slice

HOUR, DAY = 3600, 86400
TRAIN_END, TEST_BEGIN = 60, 80  # of write_world


def scored(count: int, **columns: np.ndarray | pa.Array) -> Impressions:
    """Return impressions of one label, each of a user of its own if nothing else is given."""
    table = {
        "row_id": np.arange(count),
        "time": np.zeros(count, np.int64),
        "item": np.ones(count, np.int64),
        "history_length": np.ones(count, np.int64),
        "item_impressions": np.ones(count, np.int64),
        "weight": np.ones(count),
        "label.click": np.zeros(count, np.float32),
        "logit.click": np.zeros(count, np.float32),
        **columns,
    }
    return Impressions(HeldRows(pa.table(table)), ("click",))


def _write(world: World, folder: Path, manifest: Manifest, parts: Path) -> None:
    write_scores(
        evaluator_of(folder, manifest, world, buy=LabelConfig()), KnowsItems(), parts, lambda done, total: None
    )


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_columns_of_slices_equal_brute_force(rank_pool: RankPool, tmp_path: Path, num_ranks: int) -> None:
    """Training impressions of each user, and the time since the last click strictly before each impression."""
    shown = random_shown()
    manifest = write_world(tmp_path / "data", shown)
    if num_ranks == 1:
        _write(World(0, 1, torch.device("cpu")), tmp_path / "data", manifest, tmp_path / "parts")
    else:
        rank_pool.run(num_ranks, _write, tmp_path / "data", manifest, tmp_path / "parts")
    merged = merge_parts(tmp_path / "parts", LABELS)
    trained = Counter(user for user, _, time, _, _ in shown if time < TRAIN_END)
    clicks = [(user, time) for user, _, time, click, _ in shown if click]
    for row in table_of(merged).to_pylist():
        before = [time for user, time in clicks if user == row["user"] and time < row["time"]]
        assert row[USER_IMPRESSIONS] == trained[row["user"]]
        assert row[SINCE_LAST] == (row["time"] - max(before) if before else -1)
    assert table_of(merged).num_rows == sum(time >= TEST_BEGIN for _, _, time, _, _ in shown)
    assert 0 in merged.column(USER_IMPRESSIONS)
    assert -1 in merged.column(SINCE_LAST)

    results = summarize(merged, "test", "step_000000007", manifest, MAX_HISTORY, 1)
    new = next(of for of in results.slices if (of["name"], of["value"]) == ("user_impressions", "none"))
    inside = merged.column(USER_IMPRESSIONS) == 0
    auc = auc_of(count_scores(merged.judged("click", inside=inside)))
    assert (new["num_targets"], new["metrics"]["auc/click"]) == (inside.sum(), auc)
    items = pa.array([f"film {number}" for number in range(15)])
    kept = impression_table(merged, items).column("user_impressions")
    assert kept.to_pylist() == merged.column(USER_IMPRESSIONS).tolist()


def test_users_and_times_are_put_into_their_slices() -> None:
    since = np.asarray([-1, 0, HOUR - 1, HOUR, 3 * DAY, 30 * DAY]) * np.where(np.arange(6) > 0, 1000, 1)
    shown = np.asarray([0, 1, 5, 6, 100, 101])
    impressions = scored(6, **{USER_IMPRESSIONS: shown, SINCE_LAST: since})
    slices = built_in_slices(impressions, 1000, None)
    assert list(dict.fromkeys(part.name for part in slices)) == list(BUILT_IN)
    by_name = {name: members([part for part in slices if part.name == name]) for name in BUILT_IN}
    assert by_name["user_impressions"] == {
        "none": [0],
        "1-5": [1, 2],
        "6-20": [3],
        "21-100": [4],
        "more than 100": [5],
    }
    assert by_name["time_since_last_event"] == {
        NO_EVENTS: [0],
        "less than an hour": [1, 2],
        "an hour to a day": [3],
        "1 to 7 days": [4],
        "30 days or more": [5],
    }
    chosen = built_in_slices(impressions, 1000, ["hour", "user_impressions"])
    assert {part.name for part in chosen} == {"hour", "user_impressions"}
    without_clock = {part.name for part in built_in_slices(impressions, None, None)}
    assert without_clock == set(BUILT_IN) - {"hour", "time_since_last_event"}


def test_features_of_users_items_and_impressions_are_slices(tmp_path: Path) -> None:
    place = Feature("event", "city", "categorical", "city", 3)
    impressions = scored(
        4,
        item=np.asarray([1, 2, 0, 1]),
        **{
            "slice.impression.city": pa.array([1, 0, 2, 2], pa.int32()),
            "slice.user.age": pa.array([3, 3, 1, 0], pa.int32()),
            "slice.user.city": pa.array([1, 1, 1, 2], pa.int32()),
        },
    )
    slices = list(slices_by_features(impressions, (place, AGE, CITY, GENRES), tmp_path, manifest_in(tmp_path), False))
    by_name = {part.name: members([p for p in slices if p.name == part.name]) for part in slices}
    assert by_name == {
        "impression.city": {"missing or unknown": [1], "Bern": [0], "Rome": [2, 3]},
        "user.age": {"missing or unknown": [3], "below 18": [2], "40 or more": [0, 1]},
        "user.city": {"Bern": [0, 1, 2], "Rome": [3]},
        "item.genres": {"drama": [0, 3], "war": [1]},
    }


def simulated(seed: int, num_users: int, num_each: int, worse: float) -> tuple[Impressions, Slice]:
    """Return impressions with scores that say less of the label inside a slice; users have a rate and a level of their own.

    Args:
        seed: of the draws.
        num_users: users. Their impressions are inside and outside by turns.
        num_each: impressions of a user.
        worse: how much less a positive gains inside.
    """
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), num_each)
    inside = np.arange(user.size) % 2 == 0
    click = random.random(user.size) < random.uniform(0.2, 0.6, num_users)[user]
    gain = np.where(inside, 1.0 - worse, 1.0)
    score = gain * click + random.normal(size=user.size) + random.normal(size=num_users)[user]
    values = {"label.click": click.astype(np.float32), "logit.click": score.astype(np.float32)}
    return scored(user.size, row_id=user, **values), Slice("half", "even", inside)


def test_worse_slices_are_named_with_their_auc() -> None:
    impressions, half = simulated(1, 300, 10, worse=0.5)
    other = Slice("half", "odd", ~half.inside)
    few = Slice("few", "users", impressions.column("row_id") < MIN_USERS - 1)
    worst = worst_impressions(impressions, [half, other, few])
    assert (worst["metric"], worst["num_tested"]) == ("auc", 2)
    (named,) = worst["slices"]
    assert (named["name"], named["value"], named["num_users"]) == ("half", "even", 300)
    for name, inside in (("mean", half.inside), ("mean_of_others", ~half.inside)):
        assert named[name] == auc_of(count_scores(impressions.judged("click", inside=inside)))
    assert named["mean"] < named["mean_of_others"]
    assert "metric" not in named, "one label needs no name"


def test_a_slice_that_is_not_worse_is_named_in_five_per_cent_of_draws() -> None:
    draws = [simulated(seed, 120, 6, worse=0.0) for seed in range(400)]
    named = sum(bool(worst_impressions(impressions, [half])["slices"]) for impressions, half in draws)
    assert 8 <= named <= 33  # 99.9 % of the binomial distribution of 400 draws at 5 %


def test_users_on_both_sides_are_compared_with_themselves() -> None:
    """Every impression occurs on both sides, with a slightly worse score inside: a difference that single users hardly share."""
    whole, half = simulated(3, 120, 6, worse=0.0)
    columns = {name: whole.column(name)[half.inside].repeat(2) for name in ("row_id", "label.click", "logit.click")}
    columns["logit.click"] = columns["logit.click"] - np.where(half.inside, 0.1, 0.0) * columns["label.click"]
    row_id = columns.pop("row_id")
    (named,) = worst_impressions(scored(row_id.size, row_id=row_id, **columns), [half])["slices"]
    assert 0.0 < named["mean_of_others"] - named["mean"] < 0.03


def test_all_labels_are_tested_together() -> None:
    impressions, half = simulated(2, 300, 10, worse=0.5)
    columns = {name: table_of(impressions).column(name) for name in table_of(impressions).column_names}
    for name in ("label", "logit"):
        columns[f"{name}.buy"] = columns[f"{name}.click"]
    worst = worst_impressions(Impressions(HeldRows(pa.table(columns)), ("click", "buy")), [half])
    assert worst["num_tested"] == 2
    assert [entry["metric"] for entry in worst["slices"]] == ["auc/click", "auc/buy"]
    alone = worst_impressions(impressions, [half])["slices"][0]
    assert worst["slices"][0]["p_value"] == pytest.approx(2 * alone["p_value"])
