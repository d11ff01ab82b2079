"""The logs of the settings' tests: a few users with every kind of feature, twice as events and once as impressions.

Every column has a second one next to it with other values, so that a setting that names a column shows which was read.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sharding.planning.topology import CostConstants

NUM_USERS, NUM_ITEMS, EVENTS_PER_USER = 24, 16, 9
DAY = 86_400
START = 20_004 * DAY  # 2024-10-08
CALIBRATED = 7.0  # every constant of calibration.json
COLOURS = ("red", "green", "blue")


def write_logs(folder: Path) -> None:
    """Write events, impressions, items, users and their variants below `folder`, and a calibration of plans."""
    folder.mkdir(parents=True)
    events = _events()
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(events.slice(0, events.num_rows // 2), folder / "half.parquet")
    pq.write_table(events, folder / "events.table")  # an ending that says no format
    pacsv.write_csv(events.select(["user_id", "item_id", "time"]), folder / "events.csv")
    (folder / "few.txt").write_text("i00\ni01\ni02\n", encoding="utf-8")
    (folder / "broken").mkdir()
    pq.write_table(events, folder / "broken" / "good.parquet")
    (folder / "broken" / "bad.parquet").write_bytes(b"not parquet")
    pq.write_table(_impressions(), folder / "impressions.parquet")
    _write_both(_owners("item_id", "i", NUM_ITEMS, 1), folder / "items")
    _write_both(_owners("user_id", "u", NUM_USERS, 2), folder / "users")
    past = events.append_column("other_item_id", pa.array(events.column("item_id").to_pylist()[::-1]))
    _write_both(past, folder / "past")
    for name, table in (
        ("events", events),
        ("shown", _impressions()),
        ("past", past),
        ("items", _owners("item_id", "i", NUM_ITEMS, 1)),
        ("users", _owners("user_id", "u", NUM_USERS, 2)),
    ):
        _write_texts(table, folder / "text", name)
    constants = {entry.name: CALIBRATED for entry in fields(CostConstants)}
    (folder / "calibration.json").write_text(json.dumps({"constants": constants}), encoding="utf-8")


def _write_both(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path.with_suffix(".parquet"))
    pq.write_table(table.slice(0, table.num_rows // 2), path.with_name(f"half_{path.name}.parquet"))
    pq.write_table(table, path.with_suffix(".table"))


def _write_texts(table: pa.Table, folder: Path, name: str) -> None:
    """Write text files of a table that are read only under one setting each, and one that is read without any."""
    folder.mkdir(exist_ok=True)
    moments = pc.strftime(pc.cast(table.column("moment"), pa.timestamp("s")), "%d/%m/%Y %H:%M:%S")
    if "time" in table.column_names:
        times = pc.strftime(pc.cast(table.column("time"), pa.timestamp("s")), "%d/%m/%Y %H:%M:%S")
        table = table.set_column(table.column_names.index("time"), "time", times)
    plain = pa.table(
        {
            **{column: table.column(column) for column in table.column_names if column in ("user_id", "item_id")},
            "number": [f"{1000 + value:.2f}" for value in table.column("number").to_pylist()],
            "moment": moments,
            "colour": table.column("colour"),
            **({"time": table.column("time")} if "time" in table.column_names else {}),
            **{label: table.column(label) for label in ("click", "conversion", "like") if label in table.column_names},
            "code": [f"{len(word)}" for word in table.column("colour").to_pylist()],
            "title": ["fine"] * table.num_rows,
        }
    )
    rows = [plain.column_names, *zip(*(map(str, column.to_pylist()) for column in plain.columns), strict=True)]
    number, title = plain.column_names.index("number"), plain.column_names.index("title")

    def write(
        variant: str, change: Callable[[list[str]], list[str]], encoding: str = "utf-8", delimiter: str = ","
    ) -> None:
        lines = [delimiter.join(row if place == 0 else change(list(row))) for place, row in enumerate(rows)]
        (folder / f"{name}_{variant}.csv").write_text("\n".join(lines) + "\n", encoding=encoding)

    def with_field(place: int, value: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
        return lambda row: [value(field) if at == place else field for at, field in enumerate(row)]

    write("plain", list)
    write("delimiter", list, delimiter=";")
    write("encoding", with_field(0, lambda value: f"{value}\u00e9"), encoding="latin-1")
    write("quoting", with_field(title, lambda _: '"quoted'))
    write("decimal", with_field(number, lambda value: value.replace(".", ",")), delimiter=";")
    write("thousands", with_field(number, lambda value: f"{value[0]},{value[1:]}"), delimiter=";")


def _features(random: np.random.Generator, count: int) -> dict[str, Any]:
    """Return two columns of each kind of feature."""
    words = [[COLOURS[k] for k in random.permutation(3)[: 1 + n % 3]] for n in range(count)]
    return {
        "colour": [COLOURS[n] for n in random.integers(0, 3, count)],
        "shade": [f"shade {n}" for n in random.integers(0, 7, count)],
        "words": ["|".join(row) for row in words],
        "number": random.exponential(3.0, count),
        "tally": random.integers(0, 50, count).astype(np.float64),
        "moment": START + random.integers(0, DAY, count),
        "later": START + DAY + random.integers(0, DAY, count),
        "vector": list(random.normal(size=(count, 3)).astype(np.float32)),
        "far": list((5.0 + random.normal(size=(count, 3))).astype(np.float32)),
        "wide": list(random.normal(size=(count, 5)).astype(np.float32)),
    }


def _owners(name: str, letter: str, count: int, seed: int) -> pa.Table:
    """Return one row per item or user; `other_NAME` names every owner but the first few, in another order."""
    random = np.random.default_rng(seed)
    ids = [f"{letter}{number:02d}" for number in range(count)]
    return pa.table({name: ids, f"other_{name}": ids[::-1], **_features(random, count)})


def _events() -> pa.Table:
    """Return walks over a ring of items, from which the next one can be guessed. Users u00 and u01 have three and four events."""
    random = np.random.default_rng(0)
    rows: list[tuple[str, str, int]] = []
    for user in range(NUM_USERS):
        length = user + 3 if user < 2 else EVENTS_PER_USER + int(random.integers(-2, 3))
        item = int(random.integers(NUM_ITEMS))
        time = START + int(random.integers(0, DAY))
        for _ in range(length):
            rows.append((f"u{user:02d}", f"i{item:02d}", time))
            item = (item + 1) % NUM_ITEMS if random.random() < 0.8 else int(random.integers(NUM_ITEMS))
            time += int(random.integers(600, DAY))
    rows.insert(1, rows[0])  # one event twice
    users, items, times = zip(*rows, strict=True)
    count = len(rows)
    numbers = [int(user[1:]) - 2 for user in users]  # two users are negative
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "time": pa.array(times, pa.int64()),
            "other_user": [f"v{n % 10}" for n in range(count)],
            "other_item": [f"j{n % 5}" for n in range(count)],
            "other_time": pa.array([2 * START - time for time in times], pa.int64()),
            "time_ms": pa.array([time * 1000 for time in times], pa.int64()),
            "moment_of_event": pa.array([time * 10**6 for time in times], pa.timestamp("us")),
            "user_number": pa.array(numbers, pa.int64()),
            **_features(random, count),
        }
    )


def _impressions() -> pa.Table:
    """Return shown items with a click or not, and conversions of some clicks."""
    random = np.random.default_rng(3)
    count = NUM_USERS * 14
    users = random.integers(0, NUM_USERS, count)
    items = random.integers(0, NUM_ITEMS, count)
    times = START + np.sort(random.integers(0, 8 * DAY, count))
    clicks = (random.random(count) < 0.25 + 0.4 * (items % 4 == users % 4)).astype(np.float32)
    conversions = clicks * (random.random(count) < 0.5)
    return pa.table(
        {
            "user_id": [f"u{user:02d}" for user in users],
            "item_id": [f"i{item:02d}" for item in items],
            "time": pa.array(times, pa.int64()),
            "click": clicks,
            "conversion": conversions.astype(np.float32),
            "like": (random.random(count) < 0.3).astype(np.float32),
            **_features(random, count),
        }
    )
