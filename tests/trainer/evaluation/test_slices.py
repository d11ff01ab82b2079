"""Slices: who is in which, and which of them are named as worse than the others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.dataset.manifest import Counts, Feature, Manifest, StoredFile, VocabularyFile
from trainer.errors import UserError
from trainer.evaluation.next_item.slices import BUILT_IN, SINCE_LAST, TRAIN_LENGTH, built_in_slices
from trainer.evaluation.slice_features import feature_slices, item_values, slice_features
from trainer.evaluation.slices import MIN_USERS, Slice, holm, quarters, worst_slices

COUNTS = Counts(9, 9, {}, 3, 3, 9, 0, 0, 0, 0, 0, 0)
GENRES = Feature("item", "genres", "categorical_list", "genre", 4)
AGE = Feature("user", "age", "bucketized", fitted={"transform": "none", "bounds": [18.0, 40.0]}, num_rows=4)
CITY = Feature("user", "city", "categorical", "city", 3)
HEIGHT = Feature("user", "height", "numeric", fitted={"transform": "log1p", "mean": 5.0, "std": 0.5})


def manifest_in(folder: Path) -> Manifest:
    """Return a manifest of three items, of which the second is unknown, with genres; and of features of users."""

    def stored(name: str, table: pa.Table) -> VocabularyFile:
        pq.write_table(table, folder / name)
        return VocabularyFile(name, 1, "hash", num_rows=table.num_rows)

    items = pa.table({"value": ["a", "b", "c"], "id": pa.array([1, 0, 2], pa.int32()), "num_train_events": [3, 0, 2]})
    vocabularies = {
        "item": stored("items.parquet", items),
        "genre": stored("genre.parquet", pa.table({"value": ["crime", "drama", "war"]})),
        "city": stored("city.parquet", pa.table({"value": ["Bern", "Rome"]})),
    }
    genres = pa.array([[], [2], [1, 2, 2], [3]], pa.list_(pa.int32()))  # row 0 is no item
    stored("features.parquet", pa.table({"item.genres": genres}))
    return Manifest(
        "f",
        {},
        {},
        COUNTS,
        vocabularies,
        (),
        features=(GENRES, AGE, CITY, HEIGHT),
        items=StoredFile("features.parquet", 1, "hash"),
        ids_are_numbers=False,
    )


def members(slices: list[Slice]) -> dict[str, list[int]]:
    return {part.value: np.flatnonzero(part.inside).tolist() for part in slices}


def test_values_of_users_are_named_as_in_the_logs(tmp_path: Path) -> None:
    manifest = manifest_in(tmp_path)
    cities = members(list(feature_slices(CITY, [pa.array([2, 1, 0, 2], pa.int32())].__iter__, tmp_path, manifest)))
    assert cities == {"missing or unknown": [2], "Bern": [1], "Rome": [0, 3]}
    ages = members(list(feature_slices(AGE, [pa.array([0, 1, 2, 3], pa.int32())].__iter__, tmp_path, manifest)))
    assert ages == {"missing or unknown": [0], "below 18": [1], "18 to below 40": [2], "40 or more": [3]}
    heights = (np.log1p([100.0, 200.0]) - 5.0) / 0.5
    assert members(list(feature_slices(HEIGHT, [pa.array(heights)].__iter__, tmp_path, manifest))) == {
        "100 to 100": [0],
        "200 to 200": [1],
    }


def test_items_with_several_values_are_in_several_slices(tmp_path: Path) -> None:
    """Ids 1, 2 and 3 are the first, the third and the second number of the catalogue; number 3 repeats a genre."""
    manifest = manifest_in(tmp_path)
    values = item_values(GENRES, np.asarray([1, 2, 3, 0]), tmp_path, manifest, unknown=True)
    assert values.to_pylist() == [[2], [3], [1, 2, 2], []]
    slices = list(feature_slices(GENRES, [values].__iter__, tmp_path, manifest))
    assert members(slices) == {"crime": [2], "drama": [0, 2], "war": [1]}


def test_features_of_users_with_few_values_are_sliced_by_default(tmp_path: Path) -> None:
    manifest = manifest_in(tmp_path)
    assert slice_features(manifest, None, BUILT_IN) == (AGE, CITY)
    assert slice_features(manifest, ["item.genres", "history_length"], BUILT_IN) == (GENRES,)
    with pytest.raises(UserError, match=r"evaluate\.slices.*'user\.town'.*did you mean 'user\.city'"):
        slice_features(manifest, ["user.town"], BUILT_IN)


def test_built_in_slices_go_by_training_events_and_time() -> None:
    rows = pa.table(
        {"history_length": [1, 2, 3, 4], TRAIN_LENGTH: [0, 2, 6, 300], SINCE_LAST: [10, 3_600_000, 90_000_000, 10**10]}
    )
    slices = built_in_slices(rows, np.asarray([0, 1, 2, 3]), np.asarray([200, 5, 7]), 1000, None)
    by_name = {name: members([part for part in slices if part.name == name]) for name in BUILT_IN}
    assert by_name["target_training_events"] == {"none": [0], "1-5": [2], "6-20": [3], "more than 100": [1]}
    assert by_name["user_training_events"] == {"none": [0], "1-5": [1], "6-20": [2], "more than 100": [3]}
    assert by_name["time_since_last_event"] == {
        "less than an hour": [0],
        "an hour to a day": [1],
        "1 to 7 days": [2],
        "30 days or more": [3],
    }
    assert by_name["history_length"].keys() == {"1-1", "2-2", "3-3", "4-4"}
    chosen = built_in_slices(rows, np.asarray([0, 1, 2, 3]), np.asarray([200, 5, 7]), None, ["user_training_events"])
    assert {part.name for part in chosen} == {"user_training_events"}


def test_quarters_leave_out_what_is_not_a_number() -> None:
    values = np.asarray([1.0, np.nan, 2.0, 3.0, 4.0])
    slices = list(quarters("x", values, lambda low, high: f"{low:g}-{high:g}"))
    assert members(slices) == {
        "1-1": [0],
        "2-2": [2],
        "3-3": [3],
        "4-4": [4],
    }
    assert list(quarters("x", np.asarray([np.nan]), str)) == []


def test_worse_slices_are_named_and_chance_is_not() -> None:
    """One of twenty slices is worse by half a standard deviation. A slice below the minimum is not tested."""
    random = np.random.default_rng(0)
    values = random.normal(size=4000)
    number = np.arange(4000) % 20
    values[number == 3] -= 0.5

    slices = [Slice("part", str(part), number == part) for part in range(20)]
    small = Slice("small", "ten", np.arange(4000) < 10)
    worst = worst_slices([*slices, small], np.where(np.arange(4000) < 10, 0.0, values), "ndcg@10")
    assert [entry["value"] for entry in worst["slices"]] == ["3"]
    assert (worst["num_tested"], worst["min_users"]) == (20, MIN_USERS)
    assert worst["slices"][0]["mean"] < worst["slices"][0]["mean_of_others"] - 0.3
    assert worst_slices(slices, -values, "logloss", larger_is_better=False)["slices"][0]["value"] == "3"
    assert worst_slices(slices, np.ones(4000), "hr@10")["slices"] == []


def test_a_small_slice_without_hits_is_not_certain() -> None:
    """In 9 of 100 samples of 60 users with a chance of 4 % each, no user is a hit."""
    hits = (np.arange(2000) % 25 == 24).astype(np.float64)
    small = np.arange(2000) >= 1940
    hits[small] = 0.0
    assert worst_slices([Slice("x", "y", small)], hits, "hr@10")["slices"] == []


def test_p_values_are_adjusted_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
