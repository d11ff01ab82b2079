"""Yambda's flat files and mappings."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.public_sets.originals import columns, rows
from trainer.data.public_sets.sets import convert
from trainer.errors import UserError

IN_ALL: dict[str, Any] = {
    "uid": pa.array([100, 100, 200], pa.uint32()),
    "timestamp": pa.array([0, 5, 5], pa.uint32()),
    "item_id": pa.array([7, 9, 7], pa.uint32()),
    "is_organic": pa.array([1, 0, 1], pa.uint8()),
}
OF_LISTENS: dict[str, Any] = {
    "played_ratio_pct": pa.array([110, None, 3], pa.uint16()),
    "track_length_seconds": pa.array([205, None, 205], pa.uint32()),
}


def write(folder: Path, **tables: dict[str, Any]) -> Path:
    folder.mkdir()
    for name, values in tables.items():
        pq.write_table(pa.table(values), folder / f"{name}.parquet")
    return folder


def test_multi_event_is_taken_alone_and_mappings_become_items(tmp_path: Path) -> None:
    event_type = pa.array(["listen", "like", "listen"]).dictionary_encode()
    source = write(
        tmp_path / "yambda",
        multi_event={**IN_ALL, **OF_LISTENS, "event_type": event_type},
        likes=IN_ALL,  # a part of multi_event
        artist_item_mapping={"artist_id": [31, 30, 30], "item_id": pa.array([7, 9, 7], pa.uint32())},
        album_item_mapping={"album_id": [40, 41], "item_id": pa.array([11, 7], pa.uint32())},
    )
    done = convert("yambda", source, tmp_path / "logs")
    assert columns(tmp_path / "logs", "events-00000.parquet") == {
        "user_id": "int64",
        "item_id": "int64",
        "time": "int64",
        "event_type": "string",
        "is_organic": "int8",
        "played_ratio_pct": "int64",
        "track_length_seconds": "int64",
    }
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        (100, 7, 0, "listen", 1, 110, 205),
        (100, 9, 5, "like", 0, None, None),
        (200, 7, 5, "listen", 1, 3, 205),
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [(7, ["31", "30"], ["41"]), (9, ["30"], []), (11, [], ["40"])]
    assert "likes.parquet" not in done.source


def test_files_of_single_types_get_their_type(tmp_path: Path) -> None:
    source = write(tmp_path / "yambda", listens={**IN_ALL, **OF_LISTENS}, undislikes=IN_ALL)
    convert("yambda", source, tmp_path / "logs")
    written = rows(tmp_path / "logs", "events-00000.parquet")
    assert [row[3] for row in written] == ["listen"] * 3 + ["undislike"] * 3
    assert written[3] == (100, 7, 0, "undislike", 1, None, None)
    assert not (tmp_path / "logs" / "items.parquet").exists()


def test_sequential_files_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "yambda", likes={"uid": [1], "item_id": [[7, 9]], "timestamp": [[0, 5]]})
    with pytest.raises(UserError, match=r"likes\.parquet: holds lists \(item_id, timestamp\).*folder flat/"):
        convert("yambda", source, tmp_path / "logs")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "yambda", listens=IN_ALL)
    with pytest.raises(UserError, match=r"listens\.parquet: has no column played_ratio_pct, track_length_seconds"):
        convert("yambda", source, tmp_path / "logs")


def test_one_mapping_without_the_other_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "yambda", likes=IN_ALL, artist_item_mapping={"artist_id": [1], "item_id": [7]})
    with pytest.raises(UserError, match="one of the two mappings"):
        convert("yambda", source, tmp_path / "logs")
