"""What files say of themselves before they are read: the header of Parquet files, the first block of text files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from trainer.logs.files import InputFile, UnreadableFileError, explaining

HEADER_BYTES = 1 << 20  # the types of a CSV file are those of its first block of this size
HEADER_THREADS = 16


@dataclass(frozen=True)
class Header:
    """names: of the columns, decoded at once, because those of a damaged header may be no text."""

    schema: pa.Schema
    names: tuple[str, ...]
    rows_of_groups: tuple[int, ...] | None  # None: a CSV file, which does not say


def read_headers(files: Sequence[InputFile]) -> tuple[list[tuple[InputFile, Header]], dict[str, str]]:
    """The headers of the files that can be read, and why the others cannot, by name."""
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(_header_or_cause, files))
    headers = [(f, found) for f, found in zip(files, results, strict=True) if isinstance(found, Header)]
    return headers, {f.name: found for f, found in zip(files, results, strict=True) if isinstance(found, str)}


def _header_or_cause(file: InputFile) -> Header | str:
    try:
        return _read_header(file)
    except UnreadableFileError as error:
        return str(error)


def _read_header(file: InputFile) -> Header:
    with explaining(file):
        if file.format == "parquet":
            with open_parquet(file) as parquet:
                metadata = parquet.metadata
                rows = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
                return Header(parquet.schema_arrow, tuple(parquet.schema_arrow.names), rows)
        with open_csv(file, HEADER_BYTES) as reader:
            schema = pa.schema([field.with_type(_widened(field.type)) for field in reader.schema])
            return Header(schema, tuple(schema.names), None)


def open_parquet(file: InputFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.filesystem().open_input_file(file.path), page_checksum_verification=True)


def open_csv(
    file: InputFile, block_bytes: int, convert: pacsv.ConvertOptions | None = None
) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        file.filesystem().open_input_stream(file.path),  # decompresses by the file's ending
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
        parse_options=pacsv.ParseOptions(delimiter="\t" if file.format == "tsv" else ","),
        convert_options=convert,
    )


def _widened(inferred: pa.DataType) -> pa.DataType:
    """Dates or whole seconds in a CSV file's first block do not promise that fractions will not follow."""
    if pa.types.is_date(inferred):
        return pa.timestamp("us")
    if pa.types.is_timestamp(inferred) and inferred.unit == "s":
        return pa.timestamp("us", inferred.tz)
    return inferred
