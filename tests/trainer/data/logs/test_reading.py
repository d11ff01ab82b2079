"""Event logs: what is found, what is refused and how, what is quarantined."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from trainer.data.logs.config import LogsConfig
from trainer.data.logs.contract import LogInputs, find_inputs, inspect_inputs
from trainer.data.logs.files import InputFile
from trainer.data.logs.files import find_files as find_files_of
from trainer.data.logs.reading import RowBlock, Rules, read_chunk
from trainer.errors import UserError


def write(path: Path, user: Any = (1, 2, 1), item: Any = (7, 8, 9), time: Any = (10, 11, 12), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"user_id": user, "item_id": item, "time": time}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path, **options)
    return path


def logs_at(path: Any, **settings: Any) -> LogsConfig:
    return LogsConfig(path=[str(p) for p in path] if isinstance(path, list) else str(path), **settings)


def find_files(logs: LogsConfig) -> tuple[InputFile, ...]:
    return find_files_of(logs.path, logs.format)


def inspect(logs: LogsConfig, **settings: Any) -> LogInputs:
    return inspect_inputs(find_inputs(logs), logs, **settings)


def read(logs: LogsConfig, **settings: Any) -> list[RowBlock]:
    inputs = inspect(logs, **settings)
    return [block for chunk in inputs.chunks for block in read_chunk(chunk, inputs.contracts["logs"], Rules())]


def events(logs: LogsConfig, **settings: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for block in read(logs, **settings) for row in block.events.to_pylist()]


def refusal(logs: LogsConfig) -> str:
    with pytest.raises(UserError) as caught:
        read(logs)
    return str(caught.value)


def names(logs: LogsConfig) -> list[str]:
    return [os.path.basename(file.path) for file in find_files(logs)]


# Which files


def test_a_folder_is_searched_below_in_the_order_of_the_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/z.parquet", "a/_temporary/x.parquet", ".hidden.parquet"):
        write(tmp_path / name)
    for name in ("README.md", "_SUCCESS"):
        (tmp_path / name).write_text("not a log")
    assert names(logs_at(tmp_path)) == ["z.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["top.parquet"]),
        ("day=*/*.parquet", ["a.parquet", "b.parquet"]),
        ("day=*", ["a.parquet", "b.parquet"]),
        ("day=[2]/?.parquet", ["b.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "top.parquet"]),
        ("**", ["a.parquet", "b.parquet", "top.parquet"]),
    ],
)
def test_a_glob_stays_within_a_name_but_for_two_stars(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("day=1/a.parquet", "day=2/b.parquet", "top.parquet"):
        write(tmp_path / name)
    assert names(logs_at(tmp_path / pattern)) == expected


def test_a_list_names_each_file_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    assert names(logs_at([file, tmp_path, tmp_path / "*.parquet"])) == ["a.parquet"]


def test_a_bracket_in_a_name_is_meant_where_the_file_exists(tmp_path: Path) -> None:
    assert names(logs_at(write(tmp_path / "a[1].parquet"))) == ["a[1].parquet"]


def test_a_uri_and_a_glob_in_it(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    assert find_files(logs_at(f"file://{tmp_path}/*.parquet")) == find_files(logs_at(tmp_path))


@pytest.mark.parametrize("path", ["nothing.parquet", "nothing*.parquet", "empty", "nothing/**/x.parquet"])
def test_no_file_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal(logs_at(tmp_path / path))
    assert str(tmp_path / path) in message
    assert "logs.path" in message


def test_an_unknown_ending_is_refused_and_a_set_format_helps(tmp_path: Path) -> None:
    file = tmp_path / "log.dat"
    file.write_text("user_id,item_id,time\n1,2,3\n")
    assert "logs.format" in refusal(logs_at(file))
    assert events(logs_at(file, format="csv")) == [(1, 2, 3, 0)]


def test_an_unknown_filesystem_is_refused() -> None:
    assert "cannot be opened" in refusal(logs_at("nosuch://bucket/a.parquet"))


# The contract


def test_a_missing_column_names_file_nearest_column_and_setting(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    message = refusal(logs_at(file, user="userid"))
    for part in (str(file), '"userid"', '"user_id"', "logs.user", "item_id, time"):
        assert part in message


def test_a_column_missing_in_a_later_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": [1], "item_id": [2], "ts": [3]}), tmp_path / "b.parquet")
    message = refusal(logs_at(tmp_path))
    assert "b.parquet" in message
    assert "logs.time" in message


@pytest.mark.parametrize(
    ("column", "values", "setting"),
    [
        ("user", [1.5, 2.0, 3.0], "logs.user"),
        ("item", [[1], [2], [3]], "logs.item"),
        ("user", [True, False, True], "logs.user"),
        ("time", ["2024-01-01", "x", "y"], "logs.time"),
    ],
)
def test_a_wrong_type_is_refused(tmp_path: Path, column: str, values: list[Any], setting: str) -> None:
    message = refusal(logs_at(write(tmp_path / "a.parquet", **{column: values})))
    assert "a.parquet" in message
    assert setting in message


@pytest.mark.parametrize("later", [pa.array([1, 2, 1], pa.int32()), pa.array(["1", "2", "1"])])
def test_a_type_that_drifts_between_files_is_refused(tmp_path: Path, later: pa.Array) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", user=later)
    message = refusal(logs_at(tmp_path))
    assert "a.parquet" in message
    assert "b.parquet" in message
    assert str(later.type) in message


def test_kinds_of_strings_and_dictionaries_are_one_type(tmp_path: Path) -> None:
    users = pa.array(["x", "y", "x"])
    for number, column in enumerate([users, users.cast(pa.large_string()), users.dictionary_encode()]):
        write(tmp_path / f"{number}.parquet", user=column)
    assert [row[0] for row in events(logs_at(tmp_path))] == ["x", "y", "x"] * 3


def test_an_empty_column_fits_any_type_but_not_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", user=[None, None, None])
    assert "holds no value" in refusal(logs_at(tmp_path))
    write(tmp_path / "b.parquet", user=["x", "y", "x"])
    blocks = read(logs_at(tmp_path))
    assert [block.events.num_rows for block in blocks] == [0, 3]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_no_rows_are_refused(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        empty = pa.array([], pa.int64())
        write(tmp_path / "a.parquet", user=empty, item=empty, time=empty)
    else:
        (tmp_path / "a.csv").write_text("user_id,item_id,time\n")
    assert "no" in refusal(logs_at(tmp_path))


@pytest.mark.parametrize("cut", [0, 4, 200, -1])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, cut: int) -> None:
    file = write(tmp_path / "a.parquet")
    file.write_bytes(file.read_bytes()[:cut])
    message = refusal(logs_at(tmp_path))
    assert "a.parquet" in message
    assert "truncated" in message


def test_damaged_pages_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", user=[1, 77_777, 99_999], write_page_checksum=True, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[content.index((77_777).to_bytes(8, "little"))] ^= 1
    file.write_bytes(content)
    assert "a.parquet" in refusal(logs_at(tmp_path))


def test_a_file_rewritten_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    logs = logs_at(file)
    inputs = inspect(logs)
    for change in (lambda: os.utime(file, ns=(0, 0)), lambda: rewrite_with_other_columns(file), file.unlink):
        change()
        with pytest.raises(UserError, match=r"a\.parquet: the file was changed"):
            list(read_chunk(inputs.chunks[0], inputs.contracts["logs"], Rules()))


def rewrite_with_other_columns(file: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), file)


# What is joined must be of one kind


def test_history_and_logs_use_one_unit_of_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    history = write(tmp_path / "h.parquet", time=pa.array([1, 2, 3], pa.timestamp("s")))
    write_label = pa.table(pq.read_table(file).append_column("y", pa.array([1, 0, 1])))
    pq.write_table(write_label, file)
    message = refusal(logs_at(file, labels=["y"], history={"path": str(history)}))
    for part in ("logs.history.time", "timestamp[ms]", "logs.time", "int64"):
        assert part in message


def test_features_that_share_a_table_share_a_type(tmp_path: Path) -> None:
    columns = {"user_id": [1], "item_id": [2], "time": [3], "a": ["x"], "b": [[7]], "c": pa.nulls(1)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    shared = {name: {"kind": "categorical", "table": "t"} for name in "abc"}
    message = refusal(logs_at(tmp_path, features=shared))
    for part in ("logs.features.b", '"b"', "int64", "tables.t", "logs.features.a", "string"):
        assert part in message
    read(logs_at(tmp_path, features={name: shared[name] for name in "ac"}))
    message = refusal(logs_at(tmp_path, features={"a": {"kind": "categorical", "table": "item"}}))
    for part in ("logs.features.a", "tables.item", "logs.item"):
        assert part in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": {"a": {"kind": "numeric", "buckets": 3, "table": "t"}, "b": {"kind": "categorical", "table": "t"}}},
         ["logs.features.a", "'t'", "logs.features.b"]),
        ({"features": {"a": {"kind": "numeric", "buckets": 3, "table": "item"}}}, ["logs.features.a", "'item'"]),
        ({"features": {"a": {"kind": "categorical", "table": "no such/name"}}}, ["table"]),
        ({"features": {"time": {"kind": "timestamp"}}, "labels": ["y"], "history_label": "y"},
         ["logs.features.time", "column"]),
    ],
)  # fmt: skip
def test_settings_under_which_rows_would_mean_two_things_are_refused(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        LogsConfig(path="x", **settings)
    for word in words:
        assert word in str(caught.value)


# Bad rows


def test_bad_rows_are_quarantined_with_file_row_and_reason(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.parquet",
        user=["a", "", None, "d", "e"],
        item=[1, 2, None, None, 5],
        time=pa.array([1, 2, 3, 4, None], pa.timestamp("ms")),
    )
    [block] = read(logs_at(file))
    assert block.num_rows == 5
    assert block.events.to_pylist() == [{"user": "a", "item": 1, "time": 1_000, "row": 0}]
    assert [tuple(row.values()) for row in block.rejected.to_pylist()] == [
        (str(file), 1, "null user", "", "2", "1970-01-01 00:00:00.002"),
        (str(file), 2, "null user", None, None, "1970-01-01 00:00:00.003"),
        (str(file), 3, "null item", "d", None, "1970-01-01 00:00:00.004"),
        (str(file), 4, "null time", "e", "5", None),
    ]


# Chunks and CSV


def test_chunks_cover_every_row_once_and_know_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", user=range(10), item=range(10), time=range(10), row_group_size=3)
    write(tmp_path / "b.parquet", user=range(2), item=range(2), time=range(2))
    logs = logs_at(tmp_path)
    inputs = inspect(logs, rows_per_chunk=6)
    assert [(c.row_groups, c.first_row, c.num_rows) for c in inputs.chunks] == [
        ((0, 1), 0, 6),
        ((2, 3), 6, 4),
        ((0,), 0, 2),
    ]
    assert [row[3] for row in events(logs, rows_per_chunk=6)] == [*range(10), 0, 1]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.inter", "\t"), ("a.csv.gz", ",")])
def test_text_files_are_read_by_their_ending(tmp_path: Path, name: str, separator: str) -> None:
    rows = [
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
        ("u1", "7", "3.5", "10"),
        ("u2", "", "1", "11"),
    ]
    text = "".join(separator.join(row) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    logs = logs_at(tmp_path, user="user_id:token", item="item_id:token", time="timestamp:float")
    [block] = read(logs)
    assert [tuple(row.values()) for row in block.events.to_pylist()] == [("u1", 7, 10, 0)]
    assert block.rejected.column("reason").to_pylist() == ["null item"]


def test_a_csv_file_is_read_as_the_type_of_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,time\nu1,x,2024-05-01\n")
    (tmp_path / "b.csv").write_text("time,user_id,item_id\n2024-05-01T00:00:01.5,007,8\n")
    day = 1_714_521_600_000_000
    assert events(logs_at(tmp_path)) == [("u1", "x", day, 0), ("007", "8", day + 1_500_000, 0)]


@pytest.mark.parametrize("bad_line", ["4,5", "4,5,6,7"])
def test_a_csv_line_that_does_not_fit_is_refused(tmp_path: Path, bad_line: str) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,time\n" + "1,2,3\n" * 300_000 + bad_line + "\n")
    message = refusal(logs_at(tmp_path))
    assert "a.csv" in message
    assert "300002" in message  # the line, as pyarrow says it


def test_a_csv_file_of_many_blocks_keeps_count_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.logs.formats.CSV_BLOCK_BYTES", 1000)
    (tmp_path / "a.csv").write_text("user_id,item_id,time\n" + "".join(f"{n},1,{n}\n" for n in range(1000)))
    assert events(logs_at(tmp_path)) == [(n, 1, n, n) for n in range(1000)]
