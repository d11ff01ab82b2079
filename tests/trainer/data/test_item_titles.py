"""Titles of items are found in whatever form the files of items have, and a report does without them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import item_titles as module
from trainer.data.item_titles import item_titles, title_column
from trainer.data.logs.config import LogsConfig


def logs_with(path: Path, item: str = "item_id", format: str = "auto") -> LogsConfig:
    return LogsConfig.model_validate({"path": "events", "items": {"path": str(path), "item": item, "format": format}})


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("item_id", "title"), "title"),
        (("item_id:token", "movie_title:token_seq", "class"), "movie_title:token_seq"),
        (("id", "Name"), "Name"),
        (("id", "rename", "subtitles"), None),
        ((), None),
    ],
)
def test_the_column_of_titles_is_known_by_its_name(names, column):
    assert title_column(names) == column


def test_titles_of_parquet_files(tmp_path):
    table = pa.table({"item_id": [3, 1, 2], "price": [1.0, 2.0, 3.0], "title": ["Fargo", "Alien", None]})
    pq.write_table(table, tmp_path / "items.parquet")
    assert item_titles(logs_with(tmp_path), [1, 2, 3, 4, None]) == {"1": "Alien", "3": "Fargo"}


def test_titles_of_text_files(tmp_path):
    path = tmp_path / "films.item"
    path.write_text("item_id:token\tmovie_title:token_seq\n1\tAlien\n2\tHeat\n")
    assert item_titles(logs_with(path, "item_id:token", "tsv"), ["2"]) == {"2": "Heat"}


def test_a_report_does_without_titles(tmp_path, monkeypatch):
    assert item_titles(LogsConfig(path="events"), [1]) == {}
    assert item_titles(logs_with(tmp_path / "gone.parquet"), [1]) == {}
    (tmp_path / "damaged.parquet").write_text("no")
    assert item_titles(logs_with(tmp_path), [1]) == {}
    pq.write_table(pa.table({"item_id": [1], "title": ["Alien"]}), tmp_path / "damaged.parquet")
    assert item_titles(logs_with(tmp_path), [1]) == {"1": "Alien"}
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert item_titles(logs_with(tmp_path), [1]) == {}
