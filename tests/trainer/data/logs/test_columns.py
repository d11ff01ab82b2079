"""How the columns of a log become ids, times, numbers, labels and features; what does not fit is refused."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.logs.test_reading import events, inspect, logs_at, read, refusal, write
from trainer.errors import UserError

# Times and numbers


def test_timestamps_and_dates_become_microseconds_in_utc(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 1, 12, 0, 0, 5, tzinfo=datetime.UTC)
    expected = int(moment.timestamp()) * 1_000_000 + 5
    zone = datetime.timezone(datetime.timedelta(hours=5))
    for name, column, value in [
        ("ns", pa.array([moment], pa.timestamp("ns", "UTC")), expected),
        ("zone", pa.array([moment.astimezone(zone)], pa.timestamp("us", "+05:00")), expected),
        ("naive", pa.array([moment.replace(tzinfo=None)], pa.timestamp("us")), expected),
        ("date", pa.array([moment.date()], pa.date32()), expected // 86_400_000_000 * 86_400_000_000),
        ("past", pa.array([-1], pa.timestamp("s")), -1_000_000),
    ]:
        logs = logs_at(write(tmp_path / f"{name}.parquet", user=[1], item=[2], time=column))
        assert inspect(logs).time_kind == "timestamp"
        assert events(logs) == [(1, 2, value, 0)]


def test_whole_floats_are_times_and_fractions_are_not(tmp_path: Path) -> None:
    logs = logs_at(write(tmp_path / "a.parquet", time=[1.0, float("nan"), 3.0]))
    assert inspect(logs).time_kind == "integer"
    [block] = read(logs)
    assert block.events.column("time").to_pylist() == [1, 3]
    assert block.rejected.column("reason").to_pylist() == ["null time"]
    message = refusal(logs_at(write(tmp_path / "b.parquet", time=[1.0, 2.5, 3.0])))
    for part in ("b.parquet row 1", '"time"', "2.5"):
        assert part in message


@pytest.mark.parametrize("column", ["user", "item", "time"])
def test_a_number_beyond_int64_is_a_bad_row(tmp_path: Path, column: str) -> None:
    values = pa.array([1, None, 2**63, 2**63 - 1], pa.uint64())
    columns = {"user": range(4), "item": range(4), "time": range(4), column: values}
    [block] = read(logs_at(write(tmp_path / "a.parquet", **columns)))
    assert block.events.column(column).to_pylist() == [1, 2**63 - 1]
    assert [(row["row"], row["reason"], row[column]) for row in block.rejected.to_pylist()] == [
        (1, f"null {column}", None),
        (2, f"{column} beyond int64", str(2**63)),
    ]


# Features and labels


def read_columns(tmp_path: Path, features: dict[str, Any], labels: tuple[str, ...] = (), **columns: Any) -> pa.Table:
    """Return the events of one Parquet file that has these columns besides user, item and time."""
    count = len(next(iter(columns.values())))
    ids = {name: pa.array(range(count)) for name in ("user_id", "item_id", "time")}
    pq.write_table(pa.table({**ids, **columns}), tmp_path / "a.parquet")
    settings = {"labels": list(labels), "history_label": labels[0]} if labels else {}
    [block] = read(logs_at(tmp_path, features=features, **settings))
    return block.events


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, None, -7], pa.int8()), [7, None, -7]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array([1.0, float("nan"), None]), [1, None, None]),
        (pa.array(["x", "", None]), ["x", None, None]),
        (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", None]),
        (pa.array(["x", "y", None], pa.large_string()), ["x", "y", None]),
        (pa.array(["x", "y", None], pa.string_view()), ["x", "y", None]),
        (pa.nulls(3), [None, None, None]),
        (pa.array([[], None, []]), [None, None, None]),  # lists of no type
        (pa.array([[1, None], [], None], pa.large_list(pa.uint8())), [[1, None], [], None]),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)), [[1, 2], None, [3, 4]]),
        (pa.array([["x", "", None], None, ["", "y"]]), [["x", None, None], None, [None, "y"]]),
        (pa.array([["x"], None, [""]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), [["x"], None, [None]]),
    ],
)  # fmt: skip
def test_categorical_values_of_every_type(tmp_path: Path, values: pa.Array, expected: list[Any]) -> None:
    events = read_columns(tmp_path, {"c": {"kind": "categorical"}}, c=values)
    assert events.column("event.c").to_pylist() == expected


def test_a_separator_makes_several_values_and_no_empty_ones(tmp_path: Path) -> None:
    features = {"c": {"kind": "categorical", "separator": "|"}}
    events = read_columns(tmp_path, features, c=["a|b", "|a||", "|", "", None, "b"])
    assert events.column("event.c").to_pylist() == [
        ["a", "b"], [None, "a", None, None], [None, None], None, None, ["b"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1.5, None, float("nan"), float("-inf")]), [1.5, None, None, None]),
        (pa.array([1e300, 0.0, -1e39, 3.0]), [None, 0.0, None, 3.0]),  # finite, but not as float32
        (pa.array(np.array([1.5, np.inf, np.nan, 2.0], np.float16)), [1.5, None, None, 2.0]),
        (pa.array([1, 2**53 + 1, None, 2**24]), [1.0, 2.0**53, None, 2.0**24]),
        (pa.array([True, False, None, True]), [1.0, 0.0, None, 1.0]),
        (pa.array([1, None, 2, 3], pa.decimal128(12, 2)), [1.0, None, 2.0, 3.0]),
        (pa.nulls(4), [None] * 4),
    ],
)
def test_numbers_of_every_type_become_float32(tmp_path: Path, values: pa.Array, expected: list[Any]) -> None:
    events = read_columns(tmp_path, {"n": {"kind": "numeric"}}, n=values)
    assert events.column("event.n").to_pylist() == expected


@pytest.mark.parametrize("values", [pa.array([1e300, 1.0, 0.0]), pa.array([float("inf"), 1.0, 0.0])])
def test_a_label_that_is_not_finite_is_a_bad_row(tmp_path: Path, values: pa.Array) -> None:
    events = read_columns(tmp_path, {}, ("y",), y=values)
    assert events.column("label.y").to_pylist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([5, None, -5]), [5, None, -5]),
        (pa.array([5.0, float("nan"), None]), [5, None, None]),
        (pa.array([1, None, 2], pa.timestamp("s")), [1_000_000, None, 2_000_000]),
        (pa.array([1_500, None, -1_500], pa.timestamp("ns", "Asia/Tokyo")), [1, None, -1]),  # truncated
        (pa.array([1, None, 0], pa.date32()), [86_400_000_000, None, 0]),
        (pa.array(["1970-01-02", "", None]), [86_400_000_000, None, None]),
        (pa.array(["1970-01-01T00:00:01.5", "1970-01-01 00:00:02", "1970-01-01"]), [1_500_000, 2_000_000, 0]),
        (pa.array(["1970-01-01T01:00:01+01:00", "1970-01-01T00:00:02Z", "1970-01-02"]), [1_000_000, 2_000_000, 86_400_000_000]),
        (pa.nulls(3), [None] * 3),
    ],
)  # fmt: skip
def test_moments_of_every_type_become_int64(tmp_path: Path, values: pa.Array, expected: list[Any]) -> None:
    events = read_columns(tmp_path, {"t": {"kind": "timestamp"}}, t=values)
    assert events.column("event.t").to_pylist() == expected


def test_vectors_of_every_type_become_float32(tmp_path: Path) -> None:
    for values in (
        pa.array([[1.0, 2.0], None, [2.0**25, 3.0]]),
        pa.array([[1, 2], None, [2**25, 3]], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], None, [2**25 + 1, 3]], pa.large_list(pa.int32())),
    ):
        events = read_columns(tmp_path, {"v": {"kind": "vector", "dim": 2}}, v=values)
        assert events.column("event.v").to_pylist() == [[1.0, 2.0], None, [2.0**25, 3.0]]


@pytest.mark.parametrize(
    ("feature", "values", "words"),
    [
        ({"kind": "categorical"}, [1.5, 2.0], ["row 0", "1.5", 'kind = "numeric"']),
        ({"kind": "categorical"}, pa.array([1, 2**64 - 1], pa.uint64()), ["int64", "strings"]),
        ({"kind": "categorical", "separator": "|"}, [1, 2], ["int64", "`separator`"]),
        ({"kind": "numeric"}, ["1", "2"], ["string", "a number"]),
        ({"kind": "timestamp"}, ["2024-05-01", "May 2"], ["ISO", "May 2"]),
        ({"kind": "timestamp"}, [1.0, 2.5], ["row 1", "2.5", "whole"]),
        ({"kind": "vector", "dim": 2}, [[1.0, 2.0], [1.0]], ["row 1", "1 numbers", "dim = 2"]),
        ({"kind": "vector", "dim": 2}, [["a"], ["b"]], ["list of 2 numbers"]),
    ],
)
def test_a_feature_that_does_not_fit_is_refused(
    tmp_path: Path, feature: dict[str, Any], values: Any, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        read_columns(tmp_path, {"f": feature}, f=pa.array(values) if isinstance(values, list) else values)
    for word in ["a.parquet", '"f"', "logs.features.f", *words]:
        assert word in str(caught.value)


def test_the_type_of_a_feature_of_a_text_file_follows_its_settings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,time,tags,day,clock,n\n1,1,1,7,2024-05-01,12:00,\n1,2,2,8|9,,,4\n")
    features = {
        "tags": {"kind": "categorical", "separator": "|"},
        "day": {"kind": "categorical"},
        "when": {"kind": "timestamp", "column": "day"},
        "clock": {"kind": "categorical"},
        "n": {"kind": "numeric"},
    }
    [block] = read(logs_at(tmp_path, features={name: f for name, f in features.items() if name != "when"}))
    assert [tuple(row.values())[3:] for row in block.events.to_pylist()] == [
        (["7"], "2024-05-01", "12:00", None, 0), (["8", "9"], None, None, 4.0, 1),
    ]  # fmt: skip
    [block] = read(logs_at(tmp_path, features={"when": features["when"]}))
    assert block.events.column("event.when").to_pylist() == [1_714_521_600_000_000, None]


def test_a_text_column_that_is_empty_at_first_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,time,n\n" + "1,2,3,\n" * 300_000 + "1,2,3,5\n")
    blocks = read(logs_at(tmp_path, features={"n": {"kind": "numeric"}}))
    values = pa.concat_tables([block.events for block in blocks]).column("event.n")
    assert (len(values), values.null_count, values[300_000].as_py()) == (300_001, 300_000, 5.0)
