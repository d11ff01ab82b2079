"""What files say of themselves before they are read: the header of Parquet files, the names of columns of text files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.logs.config import TextConfig
from trainer.data.logs.files import InputFile, UnreadableFileError, explaining
from trainer.data.logs.text_files import read_names

HEADER_THREADS = 16


@dataclass(frozen=True)
class Header:
    """Columns of a file. Those of text files are text."""

    schema: pa.Schema
    # Decoded at once, because those of a damaged header may be no text.
    names: tuple[str, ...]
    # Rows of each Parquet row group; None for text files, which do not say.
    rows_of_groups: tuple[int, ...] | None


def read_headers(
    files: Sequence[InputFile], text: TextConfig, setting: str
) -> tuple[list[tuple[InputFile, Header]], dict[str, str]]:
    """The headers of the files that can be read, and why the others cannot, by name.

    Args:
        files: those of one source.
        text: how its text files are written.
        setting: the name of that setting, for messages.
    """
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(partial(_header_or_cause, text=text, setting=setting), files))
    headers = [(f, found) for f, found in zip(files, results, strict=True) if isinstance(found, Header)]
    return headers, {f.name: found for f, found in zip(files, results, strict=True) if isinstance(found, str)}


def _header_or_cause(file: InputFile, text: TextConfig, setting: str) -> Header | str:
    try:
        return _read_header(file, text, setting)
    except UnreadableFileError as error:
        return str(error)


def _read_header(file: InputFile, text: TextConfig, setting: str) -> Header:
    if file.format != "parquet":
        names = read_names(file, text, setting)
        return Header(pa.schema([(name, pa.string()) for name in names]), names, None)
    with explaining(file), open_parquet(file) as parquet:
        metadata = parquet.metadata
        rows = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
        return Header(parquet.schema_arrow, tuple(parquet.schema_arrow.names), rows)


def open_parquet(file: InputFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.filesystem().open_input_file(file.path), page_checksum_verification=True)
