"""Yambda, listens and likes in Yandex Music: the flat Parquet files, and the mappings of tracks to artists and albums.

Times are seconds since the beginning of the collection, in steps of five.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.public_sets.columns import lists_of
from trainer.data.public_sets.source import SourceFolder, explaining, read_parquet
from trainer.data.public_sets.tables import FLAG, INT, TEXT, TEXTS, Table, events, record_batch, schema_of
from trainer.errors import UserError

EVENTS = schema_of(
    user_id=INT, item_id=INT, time=INT, event_type=TEXT, is_organic=FLAG, played_ratio_pct=INT, track_length_seconds=INT
)
ITEMS = schema_of(item_id=INT, artists=TEXTS, albums=TEXTS)

_ALL_EVENTS = "multi_event.parquet"
_ONE_TYPE = {
    "listens.parquet": "listen",
    "likes.parquet": "like",
    "dislikes.parquet": "dislike",
    "unlikes.parquet": "unlike",
    "undislikes.parquet": "undislike",
}
_IN_ALL = ["uid", "item_id", "timestamp", "is_organic"]
_OF_LISTENS = ["played_ratio_pct", "track_length_seconds"]


def read(source: SourceFolder) -> list[Table]:
    """Return the tables of multi_event.parquet or else of the files of single types; items if both mappings are present."""
    paths = source.any(_ALL_EVENTS) or source.some(*_ONE_TYPE)
    for path in paths:
        _check_flat(path)
    tables = [events(EVENTS, (batch for path in paths for batch in _events(path)))]
    artists = source.any("artist_item_mapping.parquet")
    albums = source.any("album_item_mapping.parquet")
    if artists and albums:
        tables.append(Table("items", ITEMS, _items(artists[0], albums[0])))
    elif artists or albums:
        raise source.wrong("it has one of the two mappings of tracks (to artists, to albums) without the other")
    return tables


def _check_flat(path: Path) -> None:
    """Check that the file is not of the sequential kind, which has the same name and one row per user. Raises UserError."""
    with explaining(path):
        schema = pq.read_schema(path)
    lists = [field.name for field in schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)]
    if lists:
        raise UserError(
            f"{path}: holds lists ({', '.join(lists)}), so it is of the sequential kind; take the file of this name from "
            "the folder flat/, which holds the same events"
        )


def _events(path: Path) -> Iterator[pa.RecordBatch]:
    event_type = _ONE_TYPE.get(path.name)
    columns = [*_IN_ALL, *([] if event_type else ["event_type"])]
    if event_type in (None, "listen"):
        columns += _OF_LISTENS
    for batch in read_parquet(path, columns):
        present = dict(zip(batch.schema.names, batch.columns, strict=True))
        present |= {"user_id": present["uid"], "time": present["timestamp"]}
        if event_type:
            present["event_type"] = pa.repeat(pa.scalar(event_type), batch.num_rows)
        absent = {name: pa.nulls(batch.num_rows, EVENTS.field(name).type) for name in _OF_LISTENS}
        yield record_batch(EVENTS, absent | present)


def _items(artists: Path, albums: Path) -> Iterator[pa.RecordBatch]:
    """Yield the items. The mappings are read whole: they are small compared with the log, and an item's rows are scattered."""
    artist = pa.Table.from_batches(read_parquet(artists, ["item_id", "artist_id"]))
    album = pa.Table.from_batches(read_parquet(albums, ["item_id", "album_id"]))
    item_ids = np.union1d(artist.column("item_id").to_numpy(), album.column("item_id").to_numpy())
    columns = {
        "item_id": pa.array(item_ids),
        "artists": _values_of_items(artist, "artist_id", item_ids),
        "albums": _values_of_items(album, "album_id", item_ids),
    }
    yield record_batch(ITEMS, columns)


def _values_of_items(mapping: pa.Table, column: str, item_ids: np.ndarray) -> pa.Array:
    """Return for each of the item_ids, which are sorted and contain every item of the mapping, the list of its values."""
    items = mapping.column("item_id").to_numpy()
    order = np.argsort(items, kind="stable")
    bounds = np.searchsorted(items[order], item_ids, side="right")
    values = mapping.column(column).take(pa.array(order)).cast(TEXT).combine_chunks()
    return lists_of(np.diff(bounds, prepend=0), values)
