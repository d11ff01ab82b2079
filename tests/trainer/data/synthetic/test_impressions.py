"""Synthetic impressions: their probabilities are what the module says of what was clicked before, and clicks follow them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from benchmarks.oracle import best_metrics, compare
from cluster.cli.synth import make
from cluster.data.synth import synthesize
from trainer.data.synthetic.impression_world import ImpressionConfig, ImpressionWorld, build_impression_world
from trainer.data.synthetic.impressions import ImpressionBlock, generate_impression_block, generate_impressions
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.errors import UserError

SMALL = ImpressionConfig(
    num_users=130, num_items=60, mean_impressions_per_user=40.0, users_per_file=50, window=6, num_categories=5
)
LARGE = ImpressionConfig(num_users=1500, users_per_file=1000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "log"
    generate_impressions(SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "log"
    generate_impressions(LARGE, folder)
    return folder


def read(folder: Path, pattern: str) -> dict[str, NDArray]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(pattern))])
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- determinism and the folder


def backwards(config: ImpressionConfig, world: ImpressionWorld, folder: Path) -> Iterator[ImpressionBlock]:
    return (generate_impression_block(config, world, index, folder) for index in reversed(range(config.num_blocks)))


def test_the_bytes_depend_on_the_config_alone(small: Path, tmp_path: Path) -> None:
    generate_impressions(SMALL, tmp_path / "b", make_blocks=backwards)
    assert content(small) == content(tmp_path / "b")
    generate_impressions(SMALL.model_copy(update={"seed": 2}), tmp_path / "c")
    other = content(tmp_path / "c")
    assert all(other[name] != data for name, data in content(small).items())


@pytest.mark.usefixtures("ray_session")
def test_ray_tasks_make_the_same_bytes(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"users_per_file": 25})
    assert synthesize(config, tmp_path / "ray") == generate_impressions(config, tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_a_finished_log_is_left_alone_and_another_refused(tmp_path: Path) -> None:
    first = generate_impressions(SMALL, tmp_path / "log")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")}
    assert generate_impressions(SMALL, tmp_path / "log") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "log").rglob("*")} == before
    with pytest.raises(UserError, match="other settings"):
        generate(SyntheticConfig(num_users=100, num_items=200), tmp_path / "log")
    (tmp_path / "log" / "users-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"users-00001\.parquet is missing"):
        generate_impressions(SMALL, tmp_path / "log")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_items": 20, "num_categories": 11}, "2 x num_categories"),
        ({"num_items": 30, "slate_size": 20}, "slate_size"),
        ({"time_span_seconds": 100}, "time_span_seconds must be at least"),
        ({"num_user": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImpressionConfig.model_validate(setting)


def test_the_command_takes_settings_and_counts(tmp_path: Path) -> None:
    summary = make(str(tmp_path / "log"), 50, 60, 30.0, 3, ["window=4"], None, impressions=True)
    shown = read(tmp_path / "log", "impressions-*.parquet")
    assert summary["num_impressions"] == shown["user_id"].size
    assert summary["num_clicks"] == shown["click"].sum()
    assert summary["num_conversions"] == shown["conversion"].sum()
    with pytest.raises(UserError, match=r"windows: no such setting; did you mean window\?"):
        make(str(tmp_path / "other"), 50, 60, 30.0, 3, ["windows=4"], None, impressions=True)


# ---- the log


def test_the_log_is_a_log(large: Path) -> None:
    schema = pq.read_schema(large / "impressions-00000.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("user_id", "int64"),
        ("item_id", "int64"),
        ("time", "int64"),
        ("position", "int32"),
        ("device", "int32"),
        ("click", "int8"),
        ("conversion", "int8"),
        ("click_probability", "double"),
        ("conversion_probability", "double"),
    ]
    shown = read(large, "impressions-*.parquet")
    of_first = pq.read_table(large / "impressions-00000.parquet")["time"].to_numpy()
    assert (np.diff(of_first) >= 0).all()
    users, counts = np.unique(shown["user_id"], return_counts=True)
    assert users.tolist() == list(range(LARGE.num_users)) == read(large, "users-*.parquet")["user_id"].tolist()
    assert counts.mean() == pytest.approx(LARGE.mean_impressions_per_user, rel=0.05)
    assert shown["time"].min() >= LARGE.start_time
    assert shown["time"].max() < LARGE.start_time + LARGE.time_span_seconds
    assert (shown["conversion"] <= shown["click"]).all(), "nobody buys without a click"
    days = np.bincount((shown["time"] - LARGE.start_time) // 86400, minlength=30)
    assert days[15:].min() > 0.8 * days[15:].mean(), "after everybody has joined, days are similar"


def test_a_slate_is_of_one_time_and_distinct_items(small: Path) -> None:
    shown = read(small, "impressions-*.parquet")
    slates = np.unique(np.stack((shown["user_id"], shown["time"])), axis=1, return_counts=True)[1]
    assert set(slates.tolist()) == {SMALL.slate_size}
    items = np.stack((shown["user_id"], shown["time"], shown["item_id"]))
    assert np.unique(items, axis=1).shape[1] == shown["user_id"].size


def test_probabilities_depend_on_earlier_clicks(small: Path) -> None:
    """By brute force from the files, and the weights that truth/ names."""
    shown, items = read(small, "impressions-*.parquet"), read(small, "truth/items.parquet")
    categories, devices = pq.read_table(small / "truth/categories.parquet"), read(small, "truth/devices.parquet")
    leads_to, liking = categories["leads_to"].to_pylist(), categories["segment_liking"].to_pylist()
    segment = read(small, "users-*.parquet")["segment"]
    order = np.lexsort((shown["position"], shown["time"], shown["user_id"]))
    clicks: dict[int, list[tuple[int, int]]] = {}
    checked = 0
    for row in order:
        user, item, time = (int(shown[name][row]) for name in ("user_id", "item_id", "time"))
        category = int(items["category"][item])
        recent = [c for t, c in clicks.get(user, []) if t < time][-SMALL.window :]
        same = sum(c == category for c in recent) / SMALL.window
        leading = sum(leads_to[c] == category for c in recent) / SMALL.window
        logit = SMALL.click_offset + items["quality"][item] + liking[category][segment[user]]
        logit += devices["weight"][shown["device"][row]] + SMALL.position_weight * shown["position"][row]
        logit += SMALL.same_weight * same + SMALL.leading_weight * leading
        assert shown["click_probability"][row] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)
        bought = SMALL.conversion_offset + SMALL.price_weight * items["price"][item]
        bought += SMALL.conversion_same_weight * same
        assert shown["conversion_probability"][row] == pytest.approx(1 / (1 + np.exp(-bought)), rel=1e-9)
        if shown["click"][row]:
            clicks.setdefault(user, []).append((time, category))
        checked += len(recent) == SMALL.window
    assert checked > 500, "many impressions have a full window before them"


@pytest.mark.parametrize(("label", "given"), [("click", None), ("conversion", "click")])
def test_labels_follow_their_probabilities(large: Path, label: str, given: str | None) -> None:
    shown = read(large, "impressions-*.parquet")
    known = shown[given] > 0 if given else np.ones(shown["click"].size, bool)
    chance, happened = shown[f"{label}_probability"][known], shown[label][known]
    groups = np.array_split(np.argsort(chance), 15)
    for group in groups:
        error = np.sqrt((chance[group] * (1 - chance[group])).sum()) / group.size
        assert abs(happened[group].mean() - chance[group].mean()) < 4 * error
    assert chance[groups[-1]].mean() > 3 * chance[groups[0]].mean(), "there is something to learn"


def test_histories_matter(large: Path) -> None:
    """Who knows only items is far from the optimum."""
    shown = read(large, "impressions-*.parquet")
    counts = np.bincount(shown["item_id"]), np.bincount(shown["item_id"], shown["click"])
    rate = (counts[1] / counts[0])[shown["item_id"]]
    lost = -np.log(np.where(shown["click"] > 0, rate, 1 - rate)).mean()
    chance = shown["click_probability"]
    least = -np.log(np.where(shown["click"] > 0, chance, 1 - chance)).mean()
    assert least < 0.95 * lost


def test_categories_lead_to_others() -> None:
    world = build_impression_world(LARGE)
    numbers = np.arange(LARGE.num_categories)
    assert sorted(world.leads_to.tolist()) == numbers.tolist()
    assert (world.leads_to != numbers).all()


# ---- the optimum


def evaluated(folder: Path, entire_space: bool = False) -> pa.Table:
    """Return a per_impression.parquet of all impressions, in another order."""
    shown = read(folder, "impressions-*.parquet")
    order = np.random.default_rng(1).permutation(shown["user_id"].size)
    nowhere = np.zeros(order.size, bool) if entire_space else shown["click"][order] == 0
    return pa.table(
        {
            "user": shown["user_id"][order],
            "item": shown["item_id"][order],
            "time": shown["time"][order],
            "label/click": shown["click"][order].astype(np.float32),
            "label/conversion": pa.array(shown["conversion"][order].astype(np.float32), mask=nowhere),
        }
    )


def test_nothing_beats_the_probabilities_that_the_log_was_drawn_from(large: Path) -> None:
    best = best_metrics(large, evaluated(large))
    shown = read(large, "impressions-*.parquet")
    chance = shown["click_probability"]
    lost = -np.log(np.where(shown["click"] > 0, chance, 1 - chance))
    assert best["logloss/click"] == pytest.approx(lost.mean())
    assert best["calibration/click"] == pytest.approx(1.0, abs=0.02)
    assert best["calibration/conversion"] == pytest.approx(1.0, abs=0.03)
    assert 0.75 < best["auc/click"] < 0.85
    whole = best_metrics(large, evaluated(large, entire_space=True))
    both = chance * shown["conversion_probability"]
    lost = -np.log(np.where(shown["conversion"] > 0, both, 1 - both))
    assert whole["logloss/conversion"] == pytest.approx(lost.mean())
    assert whole["auc/click"] == best["auc/click"]


def test_an_evaluation_is_compared_with_the_optimum(small: Path, tmp_path: Path) -> None:
    table = evaluated(small).drop_columns("label/conversion").rename_columns(["user", "item", "time", "label"])
    pq.write_table(table, tmp_path / "per_impression.parquet")
    metrics = {"auc": 0.7, "pr_auc": 0.4, "gauc": None, "logloss": 0.5, "ne": 1, "calibration": 1}
    values = json.dumps({"labels": {"click": {}}, "metrics": metrics})
    (tmp_path / "metrics.json").write_text(values)
    actual = compare(small, tmp_path)
    assert list(actual) == ["auc", "pr_auc", "gauc", "logloss", "ne", "calibration"]
    assert actual["auc"]["difference"] == pytest.approx(0.7 - actual["auc"]["best"])
    assert actual["gauc"]["difference"] is None


def test_impressions_of_another_log_are_refused(small: Path, large: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not in"):
        best_metrics(small, evaluated(large))
    with pytest.raises(UserError, match="shoal synth FOLDER --impressions"):
        best_metrics(tmp_path, evaluated(small))
