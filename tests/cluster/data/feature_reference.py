"""Random columns of every kind, and a plain Python reference of the features that are made of them."""

import math
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.prepared import write_table
from trainer.data.dataset.features import MISSING
from trainer.data.dataset.hashing import hash_ids
from trainer.data.dataset.manifest import Feature, Manifest

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
    """Return events without duplicates, in a random order; items above 25 occur after the training period only."""
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
    """Return the values of a categorical feature that has several; None of one that has a single value."""
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
    """Expected features, from their columns, the rows with values that have rows in tables, and the rows to fit on."""

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

    def check(self, name: str, actual: list[Any], items: dict[Any, int], stored: Feature) -> None:
        feature, values = self.columns[name]
        match feature["kind"]:
            case "categorical":
                self._check_ids(name, actual, items, stored)
            case "numeric":
                self._check_numbers(feature, values, actual, stored)
            case "timestamp":
                assert actual == [0 if missing(value) else microseconds(value) for value in values]
            case "vector":
                whole = [value is not None and all(map(math.isfinite, value)) for value in values]
                expected = [v if good else [0.0] * feature["dim"] for v, good in zip(values, whole, strict=True)]
                np.testing.assert_allclose(actual, expected, rtol=1e-6)
                assert (stored.dim, stored.num_missing) == (feature["dim"], len(values) - sum(whole))

    def _check_ids(self, name: str, actual: list[Any], items: dict[Any, int], stored: Feature) -> None:
        feature, values = self.columns[name]
        table, most = feature.get("table", name), feature.get("max_values", 32)
        nothing = MISSING if TABLES.get(table, {}).get("ids", {}).get("kind") == "dynamic" else 0
        cut = 0
        for value, ids in zip(values, actual, strict=True):
            wanted = [self.id_of(table, v, items) for v in values_of(feature, value)]
            cut += max(0, len(wanted) - most)
            single = entries(feature, value) is None and not isinstance(ids, list)
            assert ids == ((wanted or [nothing])[0] if single else wanted[:most]), (name, value)
        assert stored.num_cut == cut

    def _check_numbers(self, feature: dict[str, Any], values: list[Any], actual: list[Any], stored: Feature) -> None:
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
            assert actual == [0 if n is None else 1 + sum(np.float32(n) >= b for b in bounds) for n in numbers]
            return
        mean, std = (float(np.mean(training)), float(np.std(training))) if training else (0.0, 1.0)
        if feature.get("scale") == "none":
            mean, std = 0.0, 1.0
        assert (stored.fitted["mean"], stored.fitted["std"]) == (pytest.approx(mean), pytest.approx(std))
        expected = [0.0 if n is None else (n - mean) / std for n in numbers]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


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
