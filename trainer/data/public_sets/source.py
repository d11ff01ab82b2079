"""Downloaded files of a public set: found by name, and read in bounded memory, with clear error messages.

Every reader is a generator that holds one block of the file. Messages name the file and, if known, the line.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from trainer.errors import UserError

BLOCK_BYTES = 16 << 20
_SEPARATOR = "\x1f"  # the ASCII unit separator, which no title of any set contains
_ROW = re.compile(r"([Rr]ow) #?(\d+)")

LineParser = Callable[[str], Any]


class SourceFolder:
    """The folder of the downloaded files. It records which of them a converter uses."""

    def __init__(self, set_name: str, path: Path, layout: str) -> None:
        self.set_name = set_name
        self.path = path
        self.layout = layout
        self._taken: dict[str, int] = {}
        self._present: list[Path] = []
        if path.is_dir():
            self._present = sorted(entry for entry in path.iterdir() if entry.is_file())

    @property
    def sizes(self) -> dict[str, int]:
        """Name and size in bytes of every file used so far."""
        return dict(sorted(self._taken.items()))

    def one(self, name: str) -> Path:
        """Return the file with this name. Raises UserError if it is missing."""
        return self.some(name)[0]

    def some(self, *patterns: str) -> list[Path]:
        """Return the files that match any of the patterns, by name. Raises UserError if there is none."""
        paths = self.any(*patterns)
        if not paths:
            what = "no such folder" if not self.path.is_dir() else f"the folder has no {' or '.join(patterns)}"
            raise self.wrong(what)
        return paths

    def any(self, *patterns: str) -> list[Path]:
        """Return the files that match any of the patterns, by name; possibly none."""
        paths = [path for path in self._present if any(fnmatchcase(path.name, pattern) for pattern in patterns)]
        self._taken.update({path.name: path.stat().st_size for path in paths})
        return paths

    def wrong(self, what: str) -> UserError:
        """Return an error about the folder as a whole, with the files that it must contain."""
        return UserError(f"{self.set_name}: {self.path}: {what}; it must hold {self.layout} (docs/public_sets.md)")


@contextmanager
def explaining(path: Path, first_line: int = 1) -> Iterator[None]:
    """Turn errors of pyarrow, a decoder or the operating system about a file into a UserError.

    Args:
        path: the file.
        first_line: the line at which pyarrow's count of rows begins.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # pyarrow counts the rows of a CSV file from 1 ("Row #3"), those of JSON lines from 0 ("row 3").
        message = _ROW.sub(lambda m: f"line {int(m[2]) + first_line - (m[1] == 'Row')}", lines[0])
        raise UserError(
            f"{path}: cannot be read ({message}); the file is truncated, damaged, or not the one that is expected under "
            "this name: download it again, and see docs/public_sets.md for the files of each set"
        ) from None


def read_csv(
    path: Path,
    types: dict[str, pa.DataType],
    names: tuple[str, ...] | None = None,
    delimiter: str = ",",
    encoding: str = "utf8",
    quoted: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Yield the columns `types` of a CSV file. Empty fields are nulls.

    Args:
        path: the file.
        types: columns to read, with their types.
        names: names of all columns if the file has no header.
        delimiter: character between fields.
        encoding: encoding of the file.
        quoted: whether fields may be in double quotes.

    Raises:
        UserError: naming the line of a field that does not have its type.
    """
    with (
        explaining(path),
        pacsv.open_csv(str(path), *_csv_options(types, names, delimiter, encoding, quoted)) as reader,
    ):
        yield from reader


def read_double_colon(path: Path, types: dict[str, pa.DataType], encoding: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of a file without header and with fields separated by two colons, which pyarrow cannot split."""
    options = _csv_options(types, tuple(types), _SEPARATOR, encoding, quoted=False)
    for first_line, block in line_blocks(path):
        with explaining(path, first_line):
            table = pacsv.read_csv(pa.BufferReader(block.replace(b"::", _SEPARATOR.encode())), *options)
        yield from table.to_batches()


def read_json_lines(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the fields of `schema` from a file with one JSON object per line. Other fields are ignored, absent ones are null."""
    parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    for first_line, block in line_blocks(path):
        read = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)  # one block, so that rows count from 0
        with explaining(path, first_line):
            table = pajson.read_json(pa.BufferReader(block), read_options=read, parse_options=parse)
        yield from table.select(schema.names).to_batches()


def read_records(path: Path, parse: LineParser = json.loads) -> Iterator[dict[str, Any]]:
    """Yield one dictionary per line, for files with fields of changing types, which pyarrow refuses.

    A Python loop, so for catalogues, not for logs. Raises UserError naming the first line that is no dictionary.
    """
    for first_line, block in line_blocks(path):
        for line, raw in enumerate(block.splitlines(), first_line):
            if not raw.strip():
                continue
            try:
                record = parse(raw.decode("utf-8"))
            except (ValueError, SyntaxError) as error:
                raise _bad_line(path, line, str(error)) from None
            if not isinstance(record, dict):
                raise _bad_line(path, line, f"expected a record, but it is a {type(record).__name__}")
            yield record


def read_parquet(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file with their stored types. Raises UserError for a missing column."""
    with explaining(path), pq.ParquetFile(path) as parquet:
        missing = [column for column in columns if column not in parquet.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path}: has no column {', '.join(missing)} (columns: {', '.join(parquet.schema_arrow.names)}); it is "
                "not the file that is expected under this name: see docs/public_sets.md for the files of each set"
            )
        yield from parquet.iter_batches(columns=columns)


def line_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, block) for blocks of complete lines, decompressed according to the file's ending."""
    line = 1
    rest = b""
    with explaining(path), pa.input_stream(str(path), compression="detect") as stream:
        while chunk := stream.read(BLOCK_BYTES):
            whole = rest + chunk
            cut = whole.rfind(b"\n") + 1
            if cut:
                yield line, whole[:cut]
                line += whole.count(b"\n", 0, cut)
            rest = whole[cut:]
    if rest:
        yield line, rest


def _csv_options(
    types: dict[str, pa.DataType], names: tuple[str, ...] | None, delimiter: str, encoding: str, quoted: bool
) -> tuple[pacsv.ReadOptions, pacsv.ParseOptions, pacsv.ConvertOptions]:
    return (
        # One thread: only then do errors of pyarrow name the row.
        pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names, encoding=encoding),
        pacsv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False),
        pacsv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _bad_line(path: Path, line: int, what: str) -> UserError:
    return UserError(
        f"{path} line {line}: is not a record as expected ({what.splitlines()[0] if what else 'unreadable'}); "
        "the file is truncated or damaged: download it again"
    )
