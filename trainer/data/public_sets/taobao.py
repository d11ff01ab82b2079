"""User behaviour from Taobao, by Alibaba on Tianchi: clicks, carts, favourites and purchases. Times are Unix seconds.

The rows are kept unchanged. Some occur twice, and some times are outside the nine days of the set.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from trainer.data.public_sets.columns import code_as_text
from trainer.data.public_sets.source import SourceFolder, read_csv
from trainer.data.public_sets.tables import INT, TEXT, Table, events, record_batch, schema_of

EVENTS = schema_of(user_id=INT, item_id=INT, time=INT, behaviour=TEXT, category=TEXT)
ITEMS = schema_of(item_id=INT, category=TEXT)

_COLUMNS = {"user_id": INT, "item_id": INT, "category": INT, "behaviour": TEXT, "time": INT}
_CODES = schema_of(item_id=INT, category=INT)
_ROWS_UNTIL_MERGE = 1 << 21
_ROWS_PER_BATCH = 1 << 18


def read(source: SourceFolder) -> list[Table]:
    """Return the tables of UserBehavior.csv. It has no header and no file of items; these are gathered from the events."""
    path = source.one("UserBehavior.csv")
    categories = _Categories()
    return [events(EVENTS, _events(path, categories)), Table("items", ITEMS, categories.batches())]


class _Categories:
    """The category of every item, from its first event. Holds one row per item, and a bounded number more between merges."""

    def __init__(self) -> None:
        self._merged = _CODES.empty_table()
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch with the columns item_id and category, both numbers."""
        new = _first_of_each_item(pa.Table.from_batches([batch.select(_CODES.names)]))
        self._waiting.append(new)
        self._num_waiting += new.num_rows
        if self._num_waiting >= _ROWS_UNTIL_MERGE:
            self._merge()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all items by their number. Call it only after all events were added."""
        self._merge()
        for batch in self._merged.sort_by("item_id").to_batches(_ROWS_PER_BATCH):
            item_id, category = batch.columns
            yield record_batch(ITEMS, {"item_id": item_id, "category": code_as_text(category)})

    def _merge(self) -> None:
        self._merged = _first_of_each_item(pa.concat_tables([self._merged, *self._waiting]))
        self._waiting = []
        self._num_waiting = 0


def _first_of_each_item(table: pa.Table) -> pa.Table:
    # "first" needs an order, so one thread.
    firsts = table.group_by("item_id", use_threads=False).aggregate([("category", "first")])
    return pa.table({"item_id": firsts.column("item_id"), "category": firsts.column("category_first")}, schema=_CODES)


def _events(path: Path, categories: _Categories) -> Iterator[pa.RecordBatch]:
    for batch in read_csv(path, _COLUMNS, tuple(_COLUMNS)):
        categories.add(batch)
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield record_batch(EVENTS, {**columns, "category": code_as_text(columns["category"])})
