"""Features from logs, catalogue and users to what a batch is given, against a plain Python reference."""

import math
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config
from tests.support.prepared import (
    config_at,
    entry,
    item_ids,
    made,
    refusal,
    rejected_rows,
    rows_by_user,
    value_at,
    vocabulary,
    write_table,
)
from trainer.data.dataset.features import MISSING, decoder_of
from trainer.data.dataset.hashing import hash_ids
from trainer.data.dataset.manifest import Feature, Manifest, read_manifest
from trainer.data.logs.config import feature_specs
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

pytestmark = pytest.mark.usefixtures("ray_session")

Log = dict[str, list[Any]]
TIMES = {"kind": "global_time", "validation_time": 60, "test_time": 80}
SPLITS = [{"kind": "leave_one_out"}, TIMES]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# name of the column: how one value is drawn
Draw = Callable[[random.Random], Any]
COLUMNS: dict[str, Draw] = {
    "color": lambda r: r.choice(["red", "green", "blue", "", None, f"rare {r.randint(0, 30)}"]),
    "shade": lambda r: r.choice(["red", "grey", None]),
    "code": lambda r: r.choice([None, 0, -3, 2**40, r.randint(0, 9)]),
    "whole": lambda r: r.choice([None, math.nan, 3.0, -7.0]),
    "flag": lambda r: r.choice([True, False, None]),
    "tags": lambda r: r.choice([None, [], ["a"], ["b", None, "", "c", "a"], [f"t{r.randint(0, 9)}"] * 3]),
    "codes": lambda r: r.choice([None, [], [1], [2, None, 3, 4], [r.randint(0, 9)]]),
    "genres": lambda r: r.choice([None, "", "x", "x|y|z", "y||x", "|"]),
    "price": lambda r: r.choice([None, math.nan, math.inf, -math.inf, round(r.gauss(10, 3), 2), r.randint(0, 5) / 2]),
    "count": lambda r: r.choice([None, 0, r.randint(0, 100_000), -4]),
    "published": lambda r: r.choice([None, EPOCH + timedelta(microseconds=r.randint(-(10**15), 10**15))]),
    "day": lambda r: r.choice([None, date(2020, 1, 1) + timedelta(days=r.randint(0, 999))]),
    "text_day": lambda r: r.choice([None, "", "2020-01-02", "1969-12-31T23:59:59.5"]),
    "clock": lambda r: r.choice([None, r.randint(-5, 5)]),
    "vector": lambda r: r.choice([None, [1.0, 2.0, 3.0], [r.random(), 0.0, 1.0], [math.nan, 0.0, 1.0]]),
    "related": lambda r: r.choice([None, [r.randint(1, 25)], [1, 2, 99]]),
    "nothing": lambda r: None,
}  # fmt: skip
TYPES = {
    "code": pa.int64(), "count": pa.int32(), "tags": pa.list_(pa.string()), "codes": pa.list_(pa.int16()),
    "published": pa.timestamp("us", "UTC"), "related": pa.list_(pa.int64()), "vector": pa.list_(pa.float32(), 3),
    "nothing": pa.null(),
}  # fmt: skip
FEATURES: dict[str, dict[str, Any]] = {
    "color": {"kind": "categorical"},
    "shade": {"kind": "categorical", "table": "color"},
    "code": {"kind": "categorical"},
    "hashed": {"kind": "categorical", "column": "code"},
    "hashed_text": {"kind": "categorical", "column": "color"},
    "raw": {"kind": "categorical", "column": "code"},
    "raw_text": {"kind": "categorical", "column": "tags"},
    "whole": {"kind": "categorical"},
    "flag": {"kind": "categorical"},
    "tags": {"kind": "categorical", "max_values": 2},
    "codes": {"kind": "categorical"},
    "genres": {"kind": "categorical", "separator": "|", "max_values": 2},
    "related": {"kind": "categorical", "table": "item"},
    "price": {"kind": "numeric"},
    "plain_price": {"kind": "numeric", "column": "price", "scale": "none"},
    "count": {"kind": "numeric", "transform": "log1p"},
    "price_bucket": {"kind": "numeric", "column": "price", "buckets": 4},
    "count_bucket": {"kind": "numeric", "column": "count", "buckets": 3, "transform": "log1p"},
    "published": {"kind": "timestamp"},
    "day": {"kind": "timestamp"},
    "text_day": {"kind": "timestamp"},
    "clock": {"kind": "timestamp"},
    "vector": {"kind": "vector", "dim": 3},
    "nothing": {"kind": "categorical"},
    "no_number": {"kind": "numeric", "column": "nothing"},
    "no_bucket": {"kind": "numeric", "column": "nothing", "buckets": 3},
    "no_time": {"kind": "timestamp", "column": "nothing"},
    "no_vector": {"kind": "vector", "column": "nothing", "dim": 2},
}
TABLES: dict[str, Any] = {
    "color": {"ids": {"kind": "vocabulary", "min_count": 3}},
    "hashed": {"ids": {"kind": "hash", "num_rows": 6}},
    "hashed_text": {"ids": {"kind": "hash", "num_rows": 50}},
    "raw": {"ids": {"kind": "dynamic", "num_rows": 10}},
    "raw_text": {"ids": {"kind": "dynamic", "num_rows": 10}},
}


def drawn(seed: int, count: int, names: list[str]) -> Log:
    choose = random.Random(seed)
    return {name: [COLUMNS[name](choose) for _ in range(count)] for name in names}


def random_log(seed: int, names: list[str], count: int = 500) -> Log:
    """Events without duplicates, in a random order; items above 25 occur after the training period only."""
    choose = random.Random(seed)
    events = list({(choose.randint(1, 40), choose.randint(1, 25), choose.randint(0, 99)) for _ in range(count)})
    events += [(user, 30 + user % 3, 85) for user in range(1, 20)]
    choose.shuffle(events)
    users, items, times = (list(column) for column in zip(*events, strict=True))
    return {"user_id": users, "item_id": items, "time": times, **drawn(seed + 1, len(events), names)}


def write(path: Path, log: Log, **options: Any) -> None:
    write_table(path, {n: pa.array(v, TYPES.get(n), from_pandas=False) for n, v in log.items()}, **options)


# The reference


def missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def entries(feature: dict[str, Any], value: Any) -> list[Any] | None:
    """The values of a categorical feature that has several; None of one that has a single value."""
    if feature.get("separator"):
        value = [] if missing(value) else value.split(feature["separator"])
    elif not isinstance(value, list) and feature.get("column", "") != "tags":
        return None
    return [v for v in value or [] if not missing(v)]


def values_of(feature: dict[str, Any], value: Any) -> list[Any]:
    several = entries(feature, value)
    return several if several is not None else [] if missing(value) else [value]


def microseconds(value: Any) -> int:
    if isinstance(value, str):
        value = datetime.fromisoformat(value).replace(tzinfo=UTC)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value if isinstance(value, int) else (value - EPOCH) // timedelta(microseconds=1)


def transformed(feature: dict[str, Any], value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    number = float(np.float32(value))
    return math.copysign(math.log1p(abs(number)), number) if feature.get("transform") == "log1p" else number


class Reference:
    """What every feature should be, from its column, the rows whose values have rows in tables, and those to fit on."""

    def __init__(
        self, columns: dict[str, tuple[dict[str, Any], list[Any]]], counted: list[bool], fitted: list[bool]
    ) -> None:
        self.columns, self.fitted = columns, fitted
        counts: dict[str, Counter[Any]] = {}
        for name, (feature, values) in columns.items():
            if feature["kind"] == "categorical":
                chosen = [value for value, wanted in zip(values, counted, strict=True) if wanted]
                counter = counts.setdefault(feature.get("table", name), Counter())
                counter.update(v for value in chosen for v in values_of(feature, value))
        self.counts = counts

    def vocabulary(self, table: str) -> list[Any]:
        least = TABLES.get(table, {}).get("ids", {}).get("min_count", 1)
        return sorted(value for value, count in self.counts[table].items() if count >= least)

    def id_of(self, table: str, value: Any, items: dict[Any, int]) -> int:
        if table == "item":
            return items.get(value, 0)
        match TABLES.get(table, {}).get("ids", {}).get("kind", "vocabulary"):
            case "hash":
                return int(hash_ids(pa.array([value]))[0] % np.uint64(TABLES[table]["ids"]["num_rows"] - 1)) + 1
            case "dynamic":
                return value if isinstance(value, int) else int(hash_ids(pa.array([value])).view(np.int64)[0])
        known = self.vocabulary(table)
        return known.index(value) + 1 if value in known else 0

    def check(self, name: str, found: list[Any], items: dict[Any, int], stored: Feature) -> None:
        feature, values = self.columns[name]
        match feature["kind"]:
            case "categorical":
                self._check_ids(name, found, items, stored)
            case "numeric":
                self._check_numbers(feature, values, found, stored)
            case "timestamp":
                assert found == [0 if missing(value) else microseconds(value) for value in values]
            case "vector":
                whole = [value is not None and all(map(math.isfinite, value)) for value in values]
                expected = [v if good else [0.0] * feature["dim"] for v, good in zip(values, whole, strict=True)]
                np.testing.assert_allclose(found, expected, rtol=1e-6)
                assert (stored.dim, stored.num_missing) == (feature["dim"], len(values) - sum(whole))

    def _check_ids(self, name: str, found: list[Any], items: dict[Any, int], stored: Feature) -> None:
        feature, values = self.columns[name]
        table, most = feature.get("table", name), feature.get("max_values", 32)
        nothing = MISSING if TABLES.get(table, {}).get("ids", {}).get("kind") == "dynamic" else 0
        cut = 0
        for value, ids in zip(values, found, strict=True):
            wanted = [self.id_of(table, v, items) for v in values_of(feature, value)]
            cut += max(0, len(wanted) - most)
            single = entries(feature, value) is None and not isinstance(ids, list)
            assert ids == ((wanted or [nothing])[0] if single else wanted[:most]), (name, value)
        assert stored.num_cut == cut

    def _check_numbers(self, feature: dict[str, Any], values: list[Any], found: list[Any], stored: Feature) -> None:
        numbers = [transformed(feature, value) for value in values]
        training = [n for n, fits in zip(numbers, self.fitted, strict=True) if fits and n is not None]
        assert stored.num_missing == numbers.count(None)
        assert stored.fitted is not None
        if "buckets" in feature:
            quantiles = np.linspace(0, 1, feature["buckets"] + 1)[1:-1]
            bounds = sorted({float(np.float32(b)) for b in np.quantile(training, quantiles)}) if training else []
            assert stored.fitted["bounds"] == pytest.approx(bounds)
            assert stored.num_rows == len(bounds) + 2
            bounds = stored.fitted["bounds"]
            assert found == [0 if n is None else 1 + sum(np.float32(n) >= b for b in bounds) for n in numbers]
            return
        mean, std = (float(np.mean(training)), float(np.std(training))) if training else (0.0, 1.0)
        if feature.get("scale") == "none":
            mean, std = 0.0, 1.0
        assert (stored.fitted["mean"], stored.fitted["std"]) == (pytest.approx(mean), pytest.approx(std))
        expected = [0.0 if n is None else (n - mean) / std for n in numbers]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def stored_features(manifest: Manifest, owner: str) -> dict[str, Feature]:
    return {feature.name: feature for feature in manifest.features if feature.owner == owner}


def as_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def training_events(log: Log, split: dict[str, Any]) -> list[bool]:
    if split["kind"] == "global_time":
        return [time < split["validation_time"] for time in log["time"]]
    lasts: dict[Any, list[int]] = {}
    for place in sorted(range(len(log["time"])), key=lambda k: log["time"][k]):
        lasts.setdefault(log["user_id"][place], []).append(place)
    held_out = {place for places in lasts.values() if len(places) >= 3 for place in places[-2:]}
    return [place not in held_out for place in range(len(log["time"]))]


# Features of events


@pytest.mark.parametrize("split", SPLITS, ids=["leave_one_out", "global_time"])
@pytest.mark.parametrize("seed", [1, 2])
def test_features_of_events_equal_a_plain_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, split: dict[str, Any]
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 150)
    log = random_log(seed, list(COLUMNS))
    half = len(log["time"]) // 2
    write(tmp_path / "logs/a.parquet", {n: v[:half] for n, v in log.items()}, row_group_size=70)
    write(tmp_path / "logs/b.parquet", {n: v[half:] for n, v in log.items()})
    config = config_at(tmp_path, logs={"features": FEATURES}, tables=TABLES, split=split)
    manifest = made(config)
    assert len(manifest.parts) > 2

    training = training_events(log, split)
    counted = training if split is TIMES else [True] * len(training)
    columns = {name: (f, log[f.get("column", name)]) for name, f in FEATURES.items()}
    reference = Reference(columns, counted, training)
    check_features_of_events(config, log, reference)

    stored = stored_features(manifest, "event")
    for table in ("color", "code", "whole", "flag", "tags", "codes", "genres"):
        assert vocabulary(config, table)[1:] == reference.vocabulary(table)
        assert stored[table].num_rows == len(reference.vocabulary(table)) + 1
    assert stored["related"].num_rows == manifest.counts.num_items + 1
    assert set(manifest.vocabularies) == {  # those of values: neither buckets nor hashes have any
        "item", "color", "code", "whole", "flag", "tags", "codes", "genres", "nothing",
    }  # fmt: skip
    everything = Reference(columns, [True] * len(training), training)  # of hashes, held-out values count as well
    for name in ("hashed", "hashed_text"):
        values = set(everything.counts[name])
        used = {reference.id_of(name, value, {}) for value in values}
        assert stored[name].collisions == {"values": len(values), "rate": pytest.approx(1 - len(used) / len(values))}
        assert stored[name].num_rows == TABLES[name]["ids"]["num_rows"]
    assert stored["raw"].collisions == {"values": len(set(everything.counts["raw"]))}


def check_features_of_events(config: Config, log: Log, reference: Reference) -> None:
    """Every feature of every event, and the counts of what is missing."""
    places = {key: k for k, key in enumerate(zip(log["user_id"], log["item_id"], log["time"], strict=True))}
    found: list[dict[str, Any]] = [{} for _ in places]
    for user, row in rows_by_user(config).items():
        for item, time, features in row.events:
            found[places[user, item, time]] = features
    ids, stored = item_ids(config), stored_features(read_manifest(config.dataset_dir), "event")
    for name in reference.columns:
        reference.check(name, [features[name] for features in found], ids, stored[name])
    for name in {"color", "code", "published", "flag"} & reference.columns.keys():
        assert stored[name].num_missing == sum(missing(value) for value in log[name])


@pytest.mark.parametrize("split", SPLITS, ids=["leave_one_out", "global_time"])
def test_text_files_give_the_same_features(tmp_path: Path, split: dict[str, Any]) -> None:
    names = ["color", "code", "flag", "genres", "price", "count", "text_day", "clock", "nothing"]
    log = random_log(5, names)
    log["price"] = [None if value is None or not math.isfinite(value) else value for value in log["price"]]
    lines = [[as_text(value) for value in row] for row in zip(*log.values(), strict=True)]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.csv").write_text("\n".join(",".join(line) for line in [list(log), *lines]) + "\n")
    features = {n: f for n, f in FEATURES.items() if f.get("column", n) in names}
    tables = {n: t for n, t in TABLES.items() if n in features}
    config = config_at(tmp_path, logs={"features": features}, tables=tables, split=split)
    made(config)
    training = training_events(log, split)
    counted = training if split is TIMES else [True] * len(training)
    columns = {name: (f, log[f.get("column", name)]) for name, f in features.items()}
    check_features_of_events(config, log, Reference(columns, counted, training))


@pytest.mark.parametrize("split", SPLITS, ids=["leave_one_out", "global_time"])
def test_what_is_fitted_does_not_know_held_out_events(tmp_path: Path, split: dict[str, Any]) -> None:
    log = random_log(3, ["price"])
    training = training_events(log, split)
    features = {name: FEATURES[name] for name in ("price", "price_bucket")}
    fitted = []
    for name, disturb in (("one", 0.0), ("two", 1e6)):
        log["price"] = [1.0 * k if trains else disturb for k, trains in enumerate(training)]
        write(tmp_path / name / "a.parquet", log)
        config = config_at(
            tmp_path, f"{name}-dataset", logs={"path": str(tmp_path / name), "features": features}, split=split
        )
        fitted.append([feature.fitted for feature in made(config).features])
    assert fitted[0] == fitted[1]


def test_counts_of_features_are_those_of_the_events_kept(tmp_path: Path) -> None:
    log = {
        "user_id": [1, 1, 1, 1, 1, 2, 2, 2],
        "item_id": [1, 1, 2, 3, 4, 1, 2, 3],
        "time": [1, 1, 2, 3, 4, 1, 2, 3],
        "c": ["x", None, None, "y", "x", None, "x", ""],
        "t": [["a", None], ["b"], None, [], ["a"], ["a", "b", "c"], ["a"], [""]],
    }
    write(tmp_path / "logs/a.parquet", log)
    features = {"c": {"kind": "categorical"}, "t": {"kind": "categorical", "max_values": 2}}
    c, t = made(config_at(tmp_path, logs={"features": features})).features
    assert (c.num_missing, c.num_unknown, c.num_cut) == (3, 0, 0)  # the null of the duplicate does not count
    assert (t.num_missing, t.num_unknown, t.num_cut) == (3, 0, 1)  # a list and two entries are null, one is cut off


# Features of items


def catalogue_log(tmp_path: Path) -> None:
    events = [(user, item, 10 * item + user) for user in range(1, 8) for item in range(1, 9)]
    users, items, times = (list(column) for column in zip(*events, strict=True))
    write(tmp_path / "logs/a.parquet", {"user_id": users, "item_id": items, "time": times})


def test_features_of_items_lie_at_their_numbers(tmp_path: Path) -> None:
    catalogue_log(tmp_path)
    names = ["color", "code", "tags", "genres", "price", "count", "published", "vector", "nothing"]
    features = {n: f for n, f in FEATURES.items() if f.get("column", n) in names}
    ids = [100, 3, 1, 200, 8, 7, 6, 5, 2, 101]  # 4 is missing; 100, 101 and 200 are in no log
    catalogue = {"item_id": ids, **drawn(9, len(ids), names)}
    again = {"item_id": [3, None, 100, -5], **drawn(10, 4, names)}
    write(tmp_path / "items/a.parquet", catalogue, row_group_size=3)
    write(tmp_path / "items/b.parquet", again)
    items = {"path": str(tmp_path / "items"), "features": features}
    tables = {n: t for n, t in TABLES.items() if n in features}
    split = {"kind": "global_time", "validation_time": 55, "test_time": 75}
    config = config_at(tmp_path, logs={"items": items, "max_rejected_fraction": 0.2}, tables=tables, split=split)
    manifest = made(config)

    assert (manifest.counts.rows_read, manifest.counts.rows_kept, manifest.counts.rejected) == (56, 56, {})
    assert manifest.counts.catalogue_rejected == {"duplicate item": 2, "negative item": 1, "null item": 1}
    assert sorted(rejected_rows(config)) == [
        ("b.parquet", 0, "duplicate item"), ("b.parquet", 1, "null item"),
        ("b.parquet", 2, "duplicate item"), ("b.parquet", 3, "negative item"),
    ]  # fmt: skip
    numbers = vocabulary(config)
    assert numbers == [None, *range(1, 6), 6, 7, 8, 100, 101, 200]
    model_ids = item_ids(config)
    assert {item for item, id in model_ids.items() if id} == {1, 2, 3, 4, 5}
    assert manifest.items is not None
    table = pq.read_table(config.dataset_dir / manifest.items.path)
    assert table.num_rows == len(numbers)

    place = {item: k for k, item in reversed(list(enumerate(ids)))}
    of_number = [place.get(item) for item in numbers]
    columns = {
        name: (f, [None if k is None else catalogue[f.get("column", name)][k] for k in of_number])
        for name, f in features.items()
    }
    reference = Reference(columns, [True] * len(numbers), [model_ids.get(item, 0) > 0 for item in numbers])
    # Values are counted in the files of items, their repeated rows included; an item in no file counts for none.
    for name, f in features.items():
        if f["kind"] == "categorical":
            column = f.get("column", name)
            values = catalogue[column] + [again[column][0], again[column][2]]
            reference.counts[f.get("table", name)] = Counter(v for value in values for v in values_of(f, value))
    stored = stored_features(manifest, "item")
    decode = decoder_of(manifest.features, None)
    for name in features:
        column = table.column(f"item.{name}").combine_chunks()
        found = column.to_pylist()
        if features[name]["kind"] == "numeric":
            found = decode[f"item.{name}"](column.to_numpy()).tolist()
        shown = stored[name]
        if shown.kind in ("numeric", "bucketized", "vector"):  # number 0 is no item, and counts as no missing value
            shown = Feature(**vars(shown) | {"num_missing": shown.num_missing + 1})
        reference.check(name, found, model_ids, shown)


def test_items_of_a_catalogue_without_features_have_numbers_too(tmp_path: Path) -> None:
    catalogue_log(tmp_path)
    write(tmp_path / "items.parquet", {"item_id": [50, 1, 50]})
    config = config_at(tmp_path, logs={"items": {"path": str(tmp_path / "items.parquet")}})
    manifest = made(config)
    assert vocabulary(config) == [None, *range(1, 9), 50]
    assert manifest.items is None
    assert manifest.counts.catalogue_rejected == {"duplicate item": 1}
    assert rejected_rows(config) == [("items.parquet", 2, "duplicate item")]
    assert manifest.counts.num_items == 8
    assert manifest.ids_are_numbers is False


def test_what_is_fitted_to_items_knows_items_of_the_training_part_only(tmp_path: Path) -> None:
    events = [(user, item, time) for user in range(1, 4) for time, item in enumerate([1, 2, 3, 10 + user])]
    users, items, times = (list(column) for column in zip(*events, strict=True))
    write(tmp_path / "logs/a.parquet", {"user_id": users, "item_id": items, "time": times})
    write(
        tmp_path / "items.parquet",
        {"item_id": [1, 2, 3, 11, 12, 13, 99], "price": [1.0, 3.0, 500.0, 9.0, 9.0, 9.0, 9.0]},
    )
    catalogue = {"path": str(tmp_path / "items.parquet"), "features": {"price": {"kind": "numeric"}}}
    [feature] = made(config_at(tmp_path, logs={"items": catalogue})).features
    # Under leave-one-out 3 is held out for validation by every user, and 11 to 13 for the test.
    assert feature.fitted == {"transform": "none", "mean": 2.0, "std": 1.0}


# Features of users


@pytest.mark.parametrize("as_text", [False, True])
def test_features_of_users_are_joined_in_every_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 60)
    log = random_log(11, [])
    names = ["color", "shade", "codes", "genres", "price", "count", "day", "vector"]
    features = {n: f for n, f in FEATURES.items() if f.get("column", n) in names}
    ids = [*range(10, 60), *range(9, 3, -1)]  # 1 to 3 have no row, those above 40 no events
    users = {"user_id": ids, **drawn(12, len(ids), names)}
    again = {"user_id": [20, 20, 21], **drawn(13, 3, names)}
    if as_text:
        for columns in (log, users, again):
            columns["user_id"] = [f"ü{user}" for user in columns["user_id"]]
    write(tmp_path / "logs/a.parquet", log)
    write(tmp_path / "users/a.parquet", users)
    write(tmp_path / "users/b.parquet", again)
    tables = {n: t for n, t in TABLES.items() if n in features}
    config = config_at(tmp_path, logs={"users": {"path": str(tmp_path / "users"), "features": features}}, tables=tables)
    manifest = made(config)
    assert len(manifest.parts) > 4
    assert manifest.counts.catalogue_rejected == {"duplicate user": 3}
    assert sorted(rejected_rows(config)) == [("b.parquet", row, "duplicate user") for row in range(3)]

    place = {user: k for k, user in enumerate(users["user_id"])}
    rows = rows_by_user(config)
    of_row = [place.get(user) for user in rows]
    columns = {
        name: (f, [None if k is None else users[f.get("column", name)][k] for k in of_row])
        for name, f in features.items()
    }
    trains = [row.train_end > 0 for row in rows.values()]
    reference = Reference(columns, [True] * len(rows), trains)
    for name, f in features.items():
        if f["kind"] == "categorical":
            counts = reference.counts[f.get("table", name)] = Counter()
            for other, g in features.items():
                if g["kind"] == "categorical" and g.get("table", other) == f.get("table", name):
                    for part in (users, again):
                        counts.update(v for value in part[g.get("column", other)] for v in values_of(g, value))
    stored = stored_features(manifest, "user")
    for name in features:
        reference.check(name, [row.features[name] for row in rows.values()], {}, stored[name])


# Tables that are shared


def test_features_of_different_owners_share_a_table(tmp_path: Path) -> None:
    catalogue_log(tmp_path)
    log = pq.read_table(tmp_path / "logs/a.parquet")
    pq.write_table(log.append_column("seen", pa.array(["a", "b"] * 28)), tmp_path / "logs/a.parquet")
    write(tmp_path / "items.parquet", {"item_id": [1, 2], "made": [["c", "a"], ["d"]]})
    write(tmp_path / "users.parquet", {"user_id": [1, 2], "likes": ["e", "a"]})
    shared = {"kind": "categorical", "table": "brand"}
    logs = {
        "features": {"seen": shared},
        "items": {"path": str(tmp_path / "items.parquet"), "features": {"made": shared}},
        "users": {"path": str(tmp_path / "users.parquet"), "features": {"likes": shared}},
    }
    config = config_at(tmp_path, logs=logs)
    manifest = made(config)
    assert vocabulary(config, "brand") == [None, "a", "b", "c", "d", "e"]
    assert [(feature.table, feature.num_rows) for feature in manifest.features] == [("brand", 6)] * 3
    assert rows_by_user(config)[2].features == {"likes": 1}
    assert [spec.key for spec in feature_specs(config.logs)] == [feature.column for feature in manifest.features]


def test_items_known_to_a_feature_keep_their_ids_where_numbers_are_not_ids(tmp_path: Path) -> None:
    events = [(user, item, 10 * item) for user in range(1, 4) for item in (9, 5, 2, 7)]
    users, items, times = (list(column) for column in zip(*events, strict=True))
    bought = [[5], [1], [2, 9], [7]] * 3
    write(tmp_path / "logs/a.parquet", {"user_id": users, "item_id": items, "time": times, "bought": bought})
    tables = {"item": {"ids": {"kind": "vocabulary", "min_count": 4}}}
    features = {"bought": {"kind": "categorical", "table": "item"}}
    write(tmp_path / "logs/b.parquet", {"user_id": [4], "item_id": [7], "time": [5], "bought": [[7]]})
    config = config_at(tmp_path, logs={"features": features}, tables=tables)
    made(config)
    assert item_ids(config) == {2: 0, 5: 0, 7: 1, 9: 0}
    held = RowGroupReader(config.dataset_dir, read_manifest(config.dataset_dir), ColumnSelection(features=True)).read(
        [0]
    )[0]
    assert entry(held.features, 0) == {"bought": [0, 0]}  # of item 2, as the others in the order of time
    assert [value_at(held.features["bought"], k) for k in range(1, 4)] == [[0], [1], [0]]


def test_a_feature_of_another_type_than_its_shared_table_is_refused(tmp_path: Path) -> None:
    catalogue_log(tmp_path)
    write(tmp_path / "items.parquet", {"item_id": [1, 2], "made": ["c", "d"], "code": [1, 2]})
    shared = {"kind": "categorical", "table": "brand"}
    items = {"path": str(tmp_path / "items.parquet"), "features": {"made": shared, "code": shared}}
    message = refusal(config_at(tmp_path, logs={"items": items}))
    for part in ("logs.items.features.code", "tables.brand", "logs.items.features.made", "string"):
        assert part in message
