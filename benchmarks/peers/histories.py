"""Histories of the logs, as the other tools get them: users and items numbered from 0, events in order, the last one left out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ORDER = "position"  # column that orders the events of a user


def read_events(path: str) -> pa.Table:
    """Return user_id, item_id (int64, from 0) and position of the events, in order, without the test event of each user."""
    table = pq.read_table(path, columns=["user_id", "item_id", ORDER])
    columns: dict[str, Any] = {
        name: table[name].combine_chunks().dictionary_encode() for name in ("user_id", "item_id")
    }
    table = pa.table(
        {name: column.indices.cast(pa.int64()) for name, column in columns.items()} | {ORDER: table[ORDER]}
    ).sort_by([("user_id", "ascending"), (ORDER, "ascending")])
    users = table["user_id"].to_numpy()
    is_last = [*(users[1:] != users[:-1]), True]
    return table.filter(pa.array([not last for last in is_last]))


def write_lists(events: pa.Table, path: Path) -> int:
    """Write one row per user with the list of its items, and return the number of users."""
    lists = (
        events.group_by("user_id", use_threads=False)
        .aggregate([("item_id", "list")])
        .rename_columns(["user_id", "item_id"])
    )
    pq.write_table(lists, path)
    return int(lists.num_rows)
