"""The data card: its numbers equal counting by hand, its verdicts can fail, and names of others do no harm on its page."""

import json
import random
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from tests.support.html_page import Page
from trainer.data.dataset.card import popularity_of
from trainer.data.dataset.checks import Check
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.profile import SPLITS

pytestmark = pytest.mark.usefixtures("ray_session")

Row = dict[str, Any]
DAY = 86_400_000_000  # microseconds


def write_log(path: Path, rows: list[Row], time: pa.DataType | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if time is not None:
        table = table.set_column(2, "time", table.column("time").cast(time))
    pq.write_table(table, path)


def config_at(folder: Path, logs: dict[str, Any] | None = None, **sections: Any) -> Config:
    logs = {"path": str(folder / "logs"), "max_rejected_fraction": 0.5, **(logs or {})}
    return check_config({"run": {"dataset": str(folder / "dataset")}, "logs": logs, **sections}, "test")


def made(config: Config) -> tuple[Manifest, dict[str, Any], str]:
    """Return the manifest, card.json and card.html."""
    manifest = prepare(config, lambda _: None)
    values = json.loads((config.dataset_dir / "card.json").read_text())
    return manifest, values, (config.dataset_dir / "card.html").read_text()


def checks_in(values: dict[str, Any]) -> dict[str, Check]:
    return {check["name"]: Check(**check) for check in values["checks"]}


def random_rows(count: int, seed: int = 1) -> list[Row]:
    choose = random.Random(seed)
    return [
        {
            "user_id": choose.randint(1, 30),
            "item_id": int(choose.paretovariate(0.7)) % 40,
            "time": choose.randint(0, 300),
        }
        for _ in range(count)
    ]


def histories_of(rows: list[Row]) -> dict[int, list[tuple[int, int]]]:
    """Return (item, time) of every user, in order, without repeated events."""
    events: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        event = (row["item_id"], row["time"])
        if event not in events[row["user_id"]]:
            events[row["user_id"]].append(event)
    return {user: sorted(history, key=lambda event: event[1]) for user, history in events.items()}


def split_of(rows: list[Row], cut: Any) -> dict[str, list[tuple[int, int, int]]]:
    """Return (user, item, time) of every split. cut: of a history, where validation and test begin."""
    result: dict[str, list[tuple[int, int, int]]] = {split: [] for split in SPLITS}
    for user, history in histories_of(rows).items():
        validation, test = cut(history)
        for place, (item, time) in enumerate(history):
            result[SPLITS[(place >= validation) + (place >= test)]].append((user, item, time))
    return result


def leave_one_out(history: list[Any]) -> tuple[int, int]:
    held = len(history) >= 3
    return len(history) - 2 * held, len(history) - held


def by_time(history: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(time < 200 for _, time in history), sum(time < 250 for _, time in history)


GLOBAL_TIME = {"kind": "global_time", "validation_time": 200, "test_time": 250}


def assert_counted(values: dict[str, Any], splits: dict[str, list[tuple[int, int, int]]]) -> None:
    for split, events in splits.items():
        row = values["by_split"][split]
        assert row["events"] == len(events)
        assert row["users"] == len({user for user, _, _ in events})
        assert row["items"] == len({item for _, item, _ in events})
        times = [time for _, _, time in events]
        assert (row["first"], row["last"]) == ((str(min(times)), str(max(times))) if times else (None, None))


def assert_overlap(values: dict[str, Any], splits: dict[str, list[tuple[int, int, int]]]) -> None:
    checks = checks_in(values)
    before = {(user, item) for split in ("train", "validation") for user, item, _ in splits[split]}
    train_users, train_items = ({event[k] for event in splits["train"]} for k in (0, 1))
    test = splits["test"]
    users, items = ({event[k] for event in test} for k in (0, 1))
    expected = {
        "repeated_test_targets": sum((user, item) in before for user, item, _ in test) / len(test),
        "test_users_without_training": len(users - train_users) / len(users),
        "test_items_with_training": len(items & train_items) / len(items),
    }
    for name, value in expected.items():
        assert checks[name].value == pytest.approx(value, abs=1e-12), name


def test_leave_one_out_equals_counting_by_hand(tmp_path: Path) -> None:
    rows = random_rows(700)
    write_log(tmp_path / "logs/a.parquet", rows)
    manifest, values, page = made(config_at(tmp_path))
    splits = split_of(rows, leave_one_out)
    assert_counted(values, splits)
    assert_overlap(values, splits)
    checks = checks_in(values)
    kept = sum(map(len, splits.values()))
    ties = sum(one[1] == other[1] for history in histories_of(rows).values() for one, other in pairwise(history))
    assert checks["tied_times"].value == pytest.approx(ties / kept)
    assert checks["duplicates"].value == pytest.approx((700 - kept) / 700)
    assert values["rejected"] == {"duplicate": {"rows": 700 - kept, "share": (700 - kept) / 700}}

    bins = [[min(59, int((time - 0) / 300 * 60)) for _, _, time in splits[split]] for split in SPLITS]
    later = sum(place > min(bins[2]) for place in bins[0]) / len(bins[0])
    assert min(time for events in splits.values() for _, _, time in events) == 0
    assert max(time for events in splits.values() for _, _, time in events) == 300
    assert checks["training_after_test"].value == pytest.approx(later)
    pairs = [(one > other) + 0.5 * (one == other) for one in bins[0] for other in bins[2]]
    assert f"{np.mean(pairs):.1%} after an average one" in checks["training_after_test"].found
    assert checks["training_after_test"].verdict == "look"
    assert "time_order" not in checks

    assert values["digest"] == manifest.digest
    assert (values["task"], values["generation"]) == ("next_item", 0)
    text = Page(page).text
    for row in values["by_split"].values():
        assert f"{row['events']:,}" in text
    assert all(check.title in text and check.found in text and check.why in text for check in checks.values())


def test_a_global_time_split_equals_counting_by_hand(tmp_path: Path) -> None:
    rows = [
        *random_rows(400, seed=2),
        {"user_id": 99, "item_id": 777, "time": 299},
        {"user_id": 98, "item_id": 1, "time": 298},
    ]
    write_log(tmp_path / "logs/a.parquet", rows)
    _, values, _ = made(config_at(tmp_path, split=GLOBAL_TIME))
    splits = split_of(rows, by_time)
    assert_counted(values, splits)
    assert_overlap(values, splits)
    checks = checks_in(values)
    train_items = {item for _, item, _ in splits["train"]}
    unknown = sum(item not in train_items for _, item, _ in splits["test"])
    assert unknown > 0
    assert checks["unknown_test_targets"].value == pytest.approx(unknown / len(splits["test"]))
    assert checks["time_order"].verdict == "ok"
    assert "train ends 199, validation begins 200" in checks["time_order"].found
    assert "training_after_test" not in checks
    every = {item for events in splits.values() for _, item, _ in events}
    assert values["catalogue"] == {
        "items": len(every),
        "known": len(train_items),
        "unknown": len(every - train_items),
        "rare": 0,
        "held_out_only": len(every - train_items),
        "without_events": 0,
    }


def test_popularity_equals_its_definition(tmp_path: Path) -> None:
    rows = random_rows(600, seed=3)
    write_log(tmp_path / "logs/a.parquet", rows)
    _, values, _ = made(config_at(tmp_path))
    counts = sorted(
        Counter(item for history in histories_of(rows).values() for item, _ in history).values(), reverse=True
    )
    differences = sum(abs(one - other) for one in counts for other in counts)
    gini = differences / (2 * len(counts) * sum(counts))  # half the relative mean absolute difference
    actual = values["popularity"]
    assert actual["items"] == len(counts)
    assert actual["gini"] == pytest.approx(gini)
    assert actual["top_1_percent_share"] == pytest.approx(counts[0] / sum(counts))
    assert actual["top_10_percent_share"] == pytest.approx(sum(counts[: -(-len(counts) // 10)]) / sum(counts))
    assert popularity_of(np.array([4, 4, 4]))["gini"] == pytest.approx(0.0)
    assert popularity_of(np.zeros(3, np.int64))["items"] == 0


def ranking_rows(count: int, seed: int = 1) -> list[Row]:
    """Return impressions of which `watched` tells the click, `place` does not, and clicks become twice as frequent at time 250."""
    choose = random.Random(seed)
    rows = []
    for number in range(count):
        time = number * 300 // count
        click = int(choose.random() < (0.2 if time < 250 else 0.4))
        rows.append(
            {
                "user_id": choose.randint(1, 40),
                "item_id": choose.randint(1, 60),
                "time": time,
                "click": click,
                "share": int(choose.random() < 0.3),
                "watched": click * choose.uniform(3.0, 9.0) + choose.uniform(0.0, 2.0),
                "place": choose.randint(1, 5),
            }
        )
    return rows


RANKING = {
    "labels": ["click", "share"],
    "outcomes": ["seconds"],
    "history_label": "click",
    "duplicates": "keep",
    "features": {
        "watched": {"kind": "numeric"},
        "place": {"kind": "categorical"},
        "decile": {"kind": "numeric", "column": "watched", "buckets": 10},
    },
}


def test_a_ranking_dataset_shows_drift_and_leaky_features(tmp_path: Path) -> None:
    rows = ranking_rows(6_000)
    write_log(tmp_path / "logs/a.parquet", rows)
    manifest, values, page = made(config_at(tmp_path, RANKING, split=GLOBAL_TIME))
    of_split = {
        "train": [row for row in rows if row["time"] < 200],
        "validation": [row for row in rows if 200 <= row["time"] < 250],
        "test": [row for row in rows if row["time"] >= 250],
    }
    for split, some in of_split.items():
        assert values["by_split"][split]["events"] == len(some)
        for label in ("click", "share"):
            rate = sum(row[label] for row in some) / len(some)
            assert values["positive_rates"][label][split] == pytest.approx(rate)
    checks = checks_in(values)
    rates = values["positive_rates"]["click"]
    assert checks["drift.click"].value == pytest.approx(rates["test"] - rates["train"])
    assert checks["drift.click"].verdict in ("look", "problem")
    assert checks["drift.share"].verdict == "ok"

    actual = checks["features_give_label_away"]
    assert actual.verdict == "problem"
    assert "watched reveals click" in actual.found
    assert "decile reveals click" in actual.found
    assert "place" not in actual.found
    assert "share" not in actual.found
    assert len(values["giveaways"]) == 6
    outcomes = checks["outcomes_apart"]
    assert (outcomes.verdict, outcomes.found) == ("ok", "no feature reads click, share, seconds")

    features = {feature["name"]: feature for feature in values["features"]}
    assert features["place"]["num_rows"] == 6
    assert features["decile"]["fitted_text"].startswith("9 bounds from ")
    assert features["watched"]["fitted_text"].startswith("mean ")
    text = Page(page).text
    assert "impressions" in text
    for feature in manifest.features:
        assert feature.column in text
    assert Page(page).names.count("svg") == 4


def test_users_without_impressions_change_no_split(tmp_path: Path) -> None:
    rows = [row for row in ranking_rows(400) if row["user_id"] % 3]
    write_log(tmp_path / "logs/a.parquet", rows)
    events = [{"user_id": user, "item_id": user, "time": user} for user in range(60)]
    write_log(tmp_path / "history.parquet", events)
    logs = {"labels": ["click"], "history": {"path": str(tmp_path / "history.parquet")}, "duplicates": "keep"}
    manifest, values, _ = made(config_at(tmp_path, logs, split=GLOBAL_TIME))
    assert values["by_split"]["train"]["events"] == sum(row["time"] < 200 for row in rows)
    assert values["by_split"]["test"]["events"] == sum(row["time"] >= 250 for row in rows)
    assert manifest.counts.test_targets == values["by_split"]["test"]["events"]
    assert values["by_split"]["train"]["users"] == len({row["user_id"] for row in rows if row["time"] < 200})


def test_features_and_catalogue_are_counted(tmp_path: Path) -> None:
    rows = [row | {"device": random.Random(n).choice(["a", None])} for n, row in enumerate(random_rows(300))]
    write_log(tmp_path / "logs/a.parquet", rows)
    known = sorted({row["item_id"] for row in rows})
    items = [{"item_id": item, "brand": "x" if item % 2 else None} for item in [*known, 5000, 5001, 5002]]
    tags = [["a", "b", "c"][: n % 4] for n in range(len(items))]
    table = pa.Table.from_pylist(items).append_column("tags", pa.array(tags))
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]), tmp_path / "items.parquet")  # two items twice
    of_items = {"brand": {"kind": "categorical"}, "tags": {"kind": "categorical", "max_values": 2}}
    logs = {
        "duplicates": "keep",
        "features": {"device": {"kind": "categorical"}},
        "items": {"path": str(tmp_path / "items.parquet"), "features": of_items},
    }
    tables = {"brand": {"ids": {"kind": "hash", "num_rows": 8}}}
    _, values, page = made(config_at(tmp_path, logs, tables=tables))
    features = {feature["name"]: feature for feature in values["features"]}
    assert features["device"]["missing_share"] == pytest.approx(sum(row["device"] is None for row in rows) / 300)
    assert features["brand"]["missing_share"] == pytest.approx(
        sum(item["brand"] is None for item in items) / len(items)
    )
    assert features["brand"]["collisions"] == {"values": 1, "rate": 0.0}
    assert features["tags"]["num_cut"] == sum(len(one) == 3 for one in tags)
    text = " ".join(Page(page).text.split())
    assert f"{features['tags']['num_cut']} cut" in text
    assert "rejected of items and users: duplicate item 2" in text
    assert values["catalogue"]["without_events"] == 3
    assert values["catalogue"]["items"] == len(known) + 3
    assert checks_in(values)["duplicates"].value is None
    assert not re.search(r"(?<![\w.])5002(?![\w.])", page)  # digests and numbers of plots may contain these digits


def test_times_are_shown_as_dates_of_timestamps_and_as_they_are_of_integers(tmp_path: Path) -> None:
    rows = [row | {"time": row["time"] * DAY + 1} for row in random_rows(200)]
    write_log(tmp_path / "moments/logs/a.parquet", rows, pa.timestamp("us"))
    _, values, page = made(config_at(tmp_path / "moments"))
    assert values["time"]["kind"] == "timestamp"
    assert re.fullmatch(r"1970-\d\d-\d\d 00:00:00", values["time"]["last_text"])
    assert values["by_split"]["train"]["first"].startswith("1970-01-")
    assert "UTC" in Page(page).text
    write_log(tmp_path / "numbers/logs/a.parquet", rows)
    _, values, page = made(config_at(tmp_path / "numbers"))
    assert values["time"]["last_text"] == str(max(row["time"] for row in rows))
    assert "(UTC)" not in Page(page).text
    assert f"{values['time']['last_text']} UTC" not in Page(page).text


def test_integer_times_of_a_clock_are_shown_as_dates(tmp_path: Path) -> None:
    rows = [row | {"time": 1_700_000_000 + 3600 * row["time"]} for row in random_rows(200)]
    write_log(tmp_path / "logs/a.parquet", rows)
    _, values, page = made(config_at(tmp_path))
    assert (values["time"]["kind"], values["time"]["unit"]) == ("integer", "seconds")
    last = datetime.fromtimestamp(max(row["time"] for row in rows), UTC).strftime("%Y-%m-%d %H:%M:%S")
    assert values["time"]["last_text"] == last
    assert f"to {last} UTC" in Page(page).text
    assert "first (UTC)" in Page(page).text


def test_the_card_names_settings_that_differ_from_their_defaults(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/a.parquet", random_rows(200))
    _, _, page = made(config_at(tmp_path))
    text = " ".join(Page(page).text.split())
    settings = text[text.index("Settings that decide the content") :]
    assert "split.kind leave_one_out" in settings
    assert "logs.duplicates" not in settings


def test_places_in_a_history_are_no_clock(tmp_path: Path) -> None:
    rows = [{"user_id": user, "item_id": place + user, "time": place} for user in range(9) for place in range(5 + user)]
    write_log(tmp_path / "logs/a.parquet", rows)
    check = checks_in(made(config_at(tmp_path))[1])["training_after_test"]
    assert (check.verdict, check.value) == ("look", None)
    assert "not like a clock" in check.found
