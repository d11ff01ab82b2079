"""Logs as people have them: types, quotes, times, numbers and encodings of text files. Nothing is merged in silence."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tests.trainer.data.logs.test_reading import events, inspect, logs_at, read, refusal, write
from trainer.data.logs.config import LogsConfig, TextConfig
from trainer.data.logs.text_scan import Seen, seen_with
from trainer.errors import UserError

HEADER = "user_id,item_id,time\n"
DAY = 1_714_521_600_000_000  # 2024-05-01


def csv(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def ids(logs: LogsConfig) -> list[tuple[Any, Any]]:
    return [row[:2] for row in events(logs)]


def times(tmp_path: Path, *texts: str, **settings: Any) -> list[int]:
    csv(tmp_path, HEADER + "".join(f'1,2,"{text}"\n' for text in texts))
    return [row[2] for row in events(logs_at(tmp_path, **settings))]


# Ids


@pytest.mark.parametrize("value", ["007", "+7", " 7", "-0", "7 ", "0x7", "9223372036854775808", "1e5", "7.5", "true"])
def test_ids_are_text_unless_all_of_them_are_written_as_plain_integers(tmp_path: Path, value: str) -> None:
    csv(tmp_path, f"{HEADER}7,8,1\n8,{value},2\n9,-5,3\n")
    assert ids(logs_at(tmp_path)) == [(7, "8"), (8, value), (9, "-5")]


@pytest.mark.parametrize("large", [2**63 - 1, -(2**63), 10**18, 0])
def test_integers_of_64_bits_are_integers(tmp_path: Path, large: int) -> None:
    csv(tmp_path, f"{HEADER}7,8,1\n{large},9,2\n")
    logs = logs_at(tmp_path)
    assert [inspect(logs).contracts["logs"].stored(name) for name in ("user", "item")] == [pa.int64()] * 2
    assert (large < 0) != ((large, 9) in ids(logs))  # negative ids are rejected


def test_every_block_and_every_file_decides_the_type_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.logs.text_scan.SCAN_BYTES", 1000)
    rows = "".join(f"{n},{n},{n}\n" for n in range(300))
    csv(tmp_path, f"{HEADER}{rows}1,000000030X,1\n")
    assert ids(logs_at(tmp_path))[-2:] == [(299, "299"), (1, "000000030X")]
    csv(tmp_path, HEADER + rows)
    csv(tmp_path, f"{HEADER}1,000000030X,1\n", "b.csv")
    assert ids(logs_at(tmp_path))[-2:] == [(299, "299"), (1, "000000030X")]


def test_joined_columns_are_read_as_one_type(tmp_path: Path) -> None:
    log = csv(tmp_path, "user_id,item_id,time,tag,other\n1,007,1,5,6\n")
    items = csv(tmp_path, "item_id,brand\n7,3\n", "items.csv")
    features = {"other": {"kind": "categorical", "table": "brand"}, "tag": {"kind": "categorical", "table": "item"}}
    catalogue = {"path": str(items), "features": {"brand": {"kind": "categorical"}}}
    contracts = inspect(logs_at(log, features=features, items=catalogue)).contracts
    assert {contracts["logs"].stored(name) for name in ("item", "event.tag")} == {pa.string()}
    assert contracts["items"].stored("item") == pa.string()
    assert {contracts["items"].stored("item.brand"), contracts["logs"].stored("event.other")} == {pa.int64()}
    items.write_text("item_id,brand\n7,03\n")
    contracts = inspect(logs_at(log, features=features, items=catalogue)).contracts
    assert {contracts["items"].stored("item.brand"), contracts["logs"].stored("event.other")} == {pa.string()}


def test_a_setting_chooses_the_type_of_ids(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}1,007,1\n2,7,2\n3,+7,3\n")
    assert ids(logs_at(tmp_path, user_type="text", item_type="integer")) == [("1", 7), ("2", 7), ("3", 7)]
    write(tmp_path / "b/b.parquet", item=["07", "8", "9"])
    assert ids(logs_at(tmp_path / "b", user_type="text", item_type="integer")) == [("1", 7), ("2", 8), ("1", 9)]
    csv(tmp_path / "c", f"{HEADER}1,1,1\n2,seven,2\n")
    message = refusal(logs_at(tmp_path / "c", item_type="integer"))
    for part in ("a.csv row 1", '"item_id"', "'seven'", 'logs.item_type = "integer"'):
        assert part in message


def test_text_files_are_read_as_the_type_of_parquet_files(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}7,8,1\n")
    write(tmp_path / "b.parquet", user=["x", "y", "z"])
    assert ids(logs_at(tmp_path))[0] == ("7", 8)
    write(tmp_path / "b.parquet")
    csv(tmp_path, f"{HEADER}7,8,1\n007,8,1\n")
    message = refusal(logs_at(tmp_path))
    for part in ("a.csv row 1", "'007'", '"user_id"', 'logs.user_type = "text"'):
        assert part in message


@pytest.mark.parametrize(
    "values",
    [
        pa.array([12.0, None, 13.0]),
        pa.array([12.0, float("nan"), 13.0], pa.float32()),
        pa.array([12, None, 13], pa.decimal128(20, 0)),
        pa.array(["12.00", None, "13.00"]).cast(pa.decimal128(9, 2)),
    ],
)
def test_whole_numbers_of_other_types_are_ids(tmp_path: Path, values: pa.Array) -> None:
    write(tmp_path / "a.parquet", user=values)
    [block] = read(logs_at(tmp_path))
    assert block.events.column("user").to_pylist() == [12, 13]
    assert block.rejected.column("reason").to_pylist() == ["null user"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([12.0, 12.5, 1.0]), ["row 1", "12.5", "whole number", "integers or text"]),
        (pa.array([12.0, 2.0**53 + 2, 1.0]), ["row 1", "2^53", "integers or text"]),
        (pa.array([12.0, 2.0**25, 1.0], pa.float32()), ["row 1", "2^24"]),
        (pa.array(["12.50", "1.00", "2.00"]).cast(pa.decimal128(9, 2)), ["row 0", "12.50", "column.cast(pa.string())"]),
        (pa.array([b"a", b"\xe9", b"c"]), ["binary", "latin-1", "column.cast(pa.string())"]),
        (pa.array([True, False, True]), ["bool", "column.cast(pa.int8())"]),
    ],
)
def test_other_ids_are_refused_with_the_conversion(tmp_path: Path, values: pa.Array, words: list[str]) -> None:
    write(tmp_path / "a.parquet", user=values)
    message = refusal(logs_at(tmp_path))
    for word in ("a.parquet", '"user_id"', "logs.user", *words):
        assert word in message


def test_a_column_of_integers_written_as_floats_holds_integers(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}12.0,1,1\n,2,2\n13.0,3,3\n")
    csv(tmp_path, f"{HEADER}12,1,4\n", "b.csv")
    assert ids(logs_at(tmp_path)) == [(12, 1), (13, 3), (12, 1)]
    csv(tmp_path, f"{HEADER}12,1,4\n12.0,1,5\n", "b.csv")  # within one file they may be two
    assert ids(logs_at(tmp_path))[-2:] == [("12", 1), ("12.0", 1)]


def test_null_values_are_missing_everywhere(tmp_path: Path) -> None:
    csv(tmp_path, "user_id,item_id,time,n,c,tags\nNone,a,1,1,x,p|-\nu,-,2,2,y,q\nu,a,-,3,z,r\nu,a,4,-,-,-\n")
    features = {
        "n": {"kind": "numeric"},
        "c": {"kind": "categorical"},
        "tags": {"kind": "categorical", "separator": "|"},
    }
    [block] = read(logs_at(tmp_path, null_values=["None", "-"], features=features))
    assert block.rejected.column("reason").to_pylist() == ["null user", "null item", "null time"]
    assert [tuple(row.values()) for row in block.events.to_pylist()] == [("u", "a", 4, None, None, None, 3)]
    parquet = write(tmp_path / "p/a.parquet", item=["None", "x", "y"])
    assert [row[1] for row in events(logs_at(parquet, null_values=["None"]))] == ["x", "y"]


def test_ids_that_look_missing_or_have_spaces_are_counted(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}u,nan,1\nNone,a,2\nu, a,3\nNULL,<NA>,4\n")
    [block] = read(logs_at(tmp_path))
    assert dict(block.observed) == {
        "user: text of a missing value": 2, "item: text of a missing value": 2, "item: spaces around": 1,
    }  # fmt: skip


def test_missing_words_among_integers_are_null(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}1,nan,1\n2,3,2\n")
    [block] = read(logs_at(tmp_path))
    assert block.events.column("item").to_pylist() == [3]
    assert block.rejected.column("reason").to_pylist() == ["null item"]


def test_categories_with_leading_zeros_are_text(tmp_path: Path) -> None:
    csv(tmp_path, "user_id,item_id,time,zip\n1,1,1,1234\n1,1,2,01234\n")
    feature = {"kind": "categorical"}
    assert [row[3] for row in events(logs_at(tmp_path, features={"zip": feature}))] == ["1234", "01234"]
    declared = {"zip": feature | {"type": "integer"}}
    assert [row[3] for row in events(logs_at(tmp_path, features=declared))] == [1234, 1234]
    csv(tmp_path, "user_id,item_id,time,zip\n1,1,1,1234\n")
    declared = {"zip": feature | {"type": "text"}}
    assert [row[3] for row in events(logs_at(tmp_path, features=declared))] == ["1234"]


KINDS_OF_VALUES = [
    ["7", "12", "0"], ["-5", "9223372036854775807"], ["007"], ["12.0", "3.0"], ["1.5", "2e3", "-4"], ["inf"], ["true", "FALSE"],
    ["2024-05-01", "2024-05-01T10:00"], ["2024-05-01T10:00Z"], ["2024-05-01T10:00:00.123456789+02:00"], ["red", "x"], ["", "NULL"],
]  # fmt: skip


def test_blocks_that_are_like_the_earlier_ones_are_seen_as_all_of_them_together() -> None:
    """A block is looked at less closely when the column's kind is known, with the same result."""
    random = np.random.default_rng(3)
    missing = pa.array(["", "NULL"])
    for _ in range(1000):
        kinds = random.integers(0, len(KINDS_OF_VALUES), 2)
        values = [str(random.choice(KINDS_OF_VALUES[random.choice(kinds)])) for _ in range(random.integers(1, 8))]
        cut = int(random.integers(0, len(values)))
        first, rest = values[:cut], values[cut:]
        together = seen_with(Seen(), pa.array(first, pa.string()), missing, 0)
        together = seen_with(together, pa.array(rest, pa.string()), missing, cut)
        alone = seen_with(Seen(), pa.array(first, pa.string()), missing, 0) + seen_with(
            Seen(), pa.array(rest, pa.string()), missing, cut
        )
        assert together == alone, values


# How files are written


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_an_encoding_is_a_setting(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.logs.text_scan.SCAN_BYTES", 1000)
    text = HEADER + "".join(f"Zoë,Käse{n},{n}\r\n" for n in range(500))
    file = csv(tmp_path, text.encode(encoding))
    message = refusal(logs_at(tmp_path))
    assert str(file) in message
    assert "logs.text.encoding" in message
    assert ids(logs_at(tmp_path, text={"encoding": encoding})) == [("Zoë", f"Käse{n}") for n in range(500)]


def test_an_unknown_encoding_or_equal_marks_are_refused() -> None:
    for settings, word in [({"encoding": "latin-77"}, "latin-77"), ({"decimal": ",", "thousands": ","}, "differ")]:
        with pytest.raises(ValidationError, match=word):
            TextConfig(**settings)


def test_nul_bytes_are_refused(tmp_path: Path) -> None:
    csv(tmp_path, f"{HEADER}a\0b,1,2\n")
    message = refusal(logs_at(tmp_path))
    assert "NUL" in message
    assert "logs.text.encoding" in message


def test_another_delimiter_is_named_and_a_setting(tmp_path: Path) -> None:
    csv(tmp_path, "user_id;item_id;time;price\n1;2;3;4\n")
    assert "logs.text.delimiter = ';'" in refusal(logs_at(tmp_path))
    csv(tmp_path, "user_id;item_id;time;price\n1;2;3;1.299,5\n")
    assert "logs.text.delimiter" in refusal(logs_at(tmp_path))
    text = {"delimiter": ";", "decimal": ",", "thousands": "."}
    assert events(logs_at(tmp_path, text=text, features={"price": {"kind": "numeric"}})) == [(1, 2, 3, 1299.5, 0)]


def test_each_source_may_be_written_in_its_own_way(tmp_path: Path) -> None:
    log = csv(tmp_path, f"{HEADER}1,2,3\n")
    items = csv(tmp_path, "item_id;price\n2;1,5\n", "items.csv")
    catalogue = {"path": str(items), "features": {"price": {"kind": "numeric"}}}
    for text, setting in (({}, "logs.text.delimiter"), ({"text": {"delimiter": "|"}}, "logs.items.text.delimiter")):
        with pytest.raises(UserError, match=setting):
            inspect(logs_at(log, items=catalogue | text))
    inspect(logs_at(log, items=catalogue | {"text": {"delimiter": ";", "decimal": ","}}))


def test_a_file_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    csv(tmp_path, "1,2,3\n4,5,6\n")
    assert "add a line with the names of the columns" in refusal(logs_at(tmp_path))


# Valid files of other kinds


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xef\xbb\xbf" + HEADER.encode() + b"0,1,2\n"),  # byte order mark
        ("a.csv", HEADER.replace("\n", "\r\n").encode() + b"0,1,2\r\n\r\n"),
        ("a.csv", HEADER.encode() + b"0,1,2"),
        ("a.csv", HEADER.replace("\n", "\r").encode() + b"0,1,2\r"),
        ("a.csv", b"user_id,item_id,time,\n0,1,2,\n"),  # a delimiter at the end of every line
        ("a.csv", b"user_id,item_id,time,x,x\n0,1,2,3,4\n"),  # columns of one name that nobody reads
        ("a.csv.gz", gzip.compress(HEADER.encode() + b"0,1,2\n", mtime=0)),
        ("day=2024-05-01/hour=1/a.csv", HEADER.encode() + b"0,1,2\n"),
    ],
)
def test_text_files_of_every_make_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    csv(tmp_path, content, name)
    assert events(logs_at(tmp_path)) == [(0, 1, 2, 0)]


@pytest.mark.parametrize("ending", ["bz2", "zst", "lz4"])
def test_compressed_text_files_are_read(tmp_path: Path, ending: str) -> None:
    with pa.output_stream(str(tmp_path / f"a.csv.{ending}")) as stream:  # compresses by the ending
        stream.write(HEADER.encode() + b"0,1,2\n")
    assert events(logs_at(tmp_path)) == [(0, 1, 2, 0)]


def test_files_without_rows_beside_others_are_fine(tmp_path: Path) -> None:
    csv(tmp_path, HEADER)
    csv(tmp_path, f"{HEADER}u,1,2\n", "b.csv")
    assert events(logs_at(tmp_path)) == [("u", 1, 2, 0)]
    write(
        tmp_path / "p/a.parquet",
        user=pa.array([], pa.int64()),
        item=pa.array([], pa.int64()),
        time=pa.array([], pa.int64()),
    )
    write(tmp_path / "p/b.parquet")
    assert len(events(logs_at(tmp_path / "p"))) == 3


def test_partitioned_folders_of_parquet_files_are_read(tmp_path: Path) -> None:
    pq.write_to_dataset(
        pa.table(
            {"user_id": [1, 2], "item_id": pa.array(["a", "b"]).dictionary_encode(), "time": [3, 4], "day": [1, 2]}
        ),
        tmp_path,
        partition_cols=["day"],
    )
    assert ids(logs_at(tmp_path)) == [(1, "a"), (2, "b")]
