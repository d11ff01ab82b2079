"""Taobao's user behaviour."""

from pathlib import Path

import pytest

from tests.trainer.data.public_sets.originals import columns, rows, write_files
from trainer.data.public_sets import taobao
from trainer.data.public_sets.sets import convert
from trainer.errors import UserError

LINES = (
    "1,2268318,2520377,pv,1511544070\n"
    "1,2333346,2520771,cart,1511561733\n"
    "1,2268318,2520377,pv,1511544070\n"  # a duplicate
    "100,2268318,999,buy,-1293842\n"  # a time before 1970, and another category of the same item
    "100,2576651,149192,fav,2122867355\n"
)


def test_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    source = write_files(tmp_path / "taobao", {"UserBehavior.csv": LINES})
    done = convert("taobao", source, tmp_path / "logs")
    assert columns(tmp_path / "logs", "events-00000.parquet")["category"] == "string"
    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        (1, 2268318, 1511544070, "pv", "2520377"),
        (1, 2333346, 1511561733, "cart", "2520771"),
        (1, 2268318, 1511544070, "pv", "2520377"),
        (100, 2268318, -1293842, "buy", "999"),
        (100, 2576651, 2122867355, "fav", "149192"),
    ]
    assert done.rows == {"events": 5, "items": 3}


@pytest.mark.parametrize("rows_until_merge", [1, 1 << 22])
def test_an_item_has_the_category_of_its_first_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_until_merge: int
) -> None:
    monkeypatch.setattr(taobao, "_ROWS_UNTIL_MERGE", rows_until_merge)
    source = write_files(tmp_path / "taobao", {"UserBehavior.csv": LINES})
    convert("taobao", source, tmp_path / "logs")
    assert rows(tmp_path / "logs", "items.parquet") == [(2268318, "2520377"), (2333346, "2520771"), (2576651, "149192")]


@pytest.mark.parametrize("bad", ["1,2268318,2520377,pv\n", "1,22683x8,2520377,pv,1511544070\n"])
def test_a_malformed_row_is_named(tmp_path: Path, bad: str) -> None:
    source = write_files(tmp_path / "taobao", {"UserBehavior.csv": LINES + bad})
    with pytest.raises(UserError, match=r"UserBehavior\.csv: cannot be read .*line 6"):
        convert("taobao", source, tmp_path / "logs")
