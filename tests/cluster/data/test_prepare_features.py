"""Features from logs, catalogue and users to what a batch is given, against a plain Python reference."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config
from tests.cluster.data.feature_reference import (
    COLUMNS,
    FEATURES,
    SPLITS,
    TABLES,
    TIMES,
    Log,
    Reference,
    as_text,
    drawn,
    missing,
    random_log,
    stored_features,
    training_events,
    values_of,
    write,
)
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
)
from trainer.data.dataset.features import decoder_of
from trainer.data.dataset.manifest import Feature, read_manifest
from trainer.data.logs.config import feature_specs
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

pytestmark = pytest.mark.usefixtures("ray_session")


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
    """Check every feature of every event, and the counts of missing values."""
    places = {key: k for k, key in enumerate(zip(log["user_id"], log["item_id"], log["time"], strict=True))}
    actual: list[dict[str, Any]] = [{} for _ in places]
    for user, row in rows_by_user(config).items():
        for item, time, features in row.events:
            actual[places[user, item, time]] = features
    ids, stored = item_ids(config), stored_features(read_manifest(config.dataset_dir), "event")
    for name in reference.columns:
        reference.check(name, [features[name] for features in actual], ids, stored[name])
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
def test_fitted_values_do_not_use_held_out_events(tmp_path: Path, split: dict[str, Any]) -> None:
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


def test_features_of_items_are_at_their_numbers(tmp_path: Path) -> None:
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
        actual = column.to_pylist()
        if features[name]["kind"] == "numeric":
            actual = decode[f"item.{name}"](column.to_numpy()).tolist()
        shown = stored[name]
        if shown.kind in ("numeric", "bucketized", "vector"):  # number 0 is no item, and counts as no missing value
            shown = Feature(**vars(shown) | {"num_missing": shown.num_missing + 1})
        reference.check(name, actual, model_ids, shown)


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


def test_fitted_values_of_items_use_training_items_only(tmp_path: Path) -> None:
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
