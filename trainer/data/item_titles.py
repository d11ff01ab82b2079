"""Titles of items for people, from the files of items that came with the logs. Titles are never part of a dataset.

The files are read again, so a report written after they were moved has no titles.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.logs.config import LogsConfig
from trainer.data.logs.files import InputFile, explaining, find_files
from trainer.data.logs.formats import open_parquet
from trainer.data.logs.text_files import open_text, read_names
from trainer.errors import UserError

MAX_BYTES = 1 << 30  # larger files of items are not searched for titles
_ROWS = 1 << 18  # read at a time
_CSV_BLOCK_BYTES = 16 << 20
_NAMES = ("title", "name")  # of a column that holds titles, alone or after an underscore


def item_titles(logs: LogsConfig, items: Iterable[object]) -> dict[str, str]:
    """Return the titles of items by the item as text.

    The title is in the first column of logs.items.path that is called title or name, or ends in _title or _name. The answer is
    empty where there is no such column, where the files are gone or changed, and where they exceed MAX_BYTES.
    """
    wanted = pa.array(sorted({str(item) for item in items if item is not None}), pa.string())
    titles: dict[str, str] = {}
    if logs.items is None or not len(wanted):
        return titles
    with suppress(UserError, pa.ArrowException, OSError):
        files = find_files(logs.items.path, logs.items.format, "logs.items.path")
        if sum(file.num_bytes for file in files) > MAX_BYTES:
            return titles
        for file in files:
            for ids, names in _columns(file, logs, logs.items.item):
                chosen = pc.is_in(ids, wanted)
                pairs = zip(ids.filter(chosen).to_pylist(), names.filter(chosen).to_pylist(), strict=True)
                titles |= {item: name for item, name in pairs if name}
    return titles


def title_column(names: Iterable[str]) -> str | None:
    """Return the column that holds titles, or None. A type after a colon does not belong to a name, as in "title:token"."""
    for name in names:
        bare = name.partition(":")[0].lower()
        if bare in _NAMES or bare.endswith(tuple(f"_{ending}" for ending in _NAMES)):
            return name
    return None


def _columns(file: InputFile, logs: LogsConfig, item: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield items and titles of a file as text, block by block."""
    if file.format == "parquet":
        with explaining(file), open_parquet(file) as parquet:
            title = title_column(parquet.schema_arrow.names)
            if title is not None:
                for batch in parquet.iter_batches(_ROWS, columns=[item, title], use_threads=False):
                    yield batch.column(item).cast(pa.string()), batch.column(title).cast(pa.string())
        return
    text, setting = logs.text_of("items"), "logs.items.text"
    title = title_column(read_names(file, text, setting))
    if title is not None:
        with open_text(file, text, setting, _CSV_BLOCK_BYTES, [item, title]) as (_, reader):
            for batch in reader:
                yield batch.column(item), batch.column(title)
