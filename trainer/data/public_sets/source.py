"""The downloaded files of a public set: found by name, read in bounded memory, and what is wrong with them told.

Every reader is a generator that holds one block of the file. Messages name the file and, where it can be known, the line.
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
_SEPARATOR = "\x1f"  # the ASCII unit separator: in no title of any set
_ROW = re.compile(r"([Rr]ow) #?(\d+)")

LineParser = Callable[[str], Any]


class SourceFolder:
    """Where the user put the downloaded files. Remembers which of them a converter took."""

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
        """Name and bytes of every file taken so far."""
        return dict(sorted(self._taken.items()))

    def one(self, name: str) -> Path:
        """The file of that name. Raises UserError if it is missing."""
        return self.some(name)[0]

    def some(self, *patterns: str) -> list[Path]:
        """The files that match any of the patterns, by name. Raises UserError if there is none."""
        found = self.any(*patterns)
        if not found:
            there = "no such folder" if not self.path.is_dir() else f"the folder has no {' or '.join(patterns)}"
            raise self.wrong(there)
        return found

    def any(self, *patterns: str) -> list[Path]:
        """As `some`, but there may be none."""
        found = [path for path in self._present if any(fnmatchcase(path.name, pattern) for pattern in patterns)]
        self._taken.update({path.name: path.stat().st_size for path in found})
        return found

    def wrong(self, what: str) -> UserError:
        """What is wrong with the folder as a whole, and what it should hold."""
        return UserError(f"{self.set_name}: {self.path}: {what}; it must hold {self.layout} (docs/public_sets.md)")


@contextmanager
def explaining(path: Path, first_line: int = 1) -> Iterator[None]:
    """Turn what pyarrow, a decoder or the operating system says about a file into a UserError.

    `first_line`: the line at which pyarrow's count of rows begins.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # pyarrow counts the rows of a CSV file from 1 ("Row #3"), those of JSON lines from 0 ("row 3").
        said = _ROW.sub(lambda m: f"line {int(m[2]) + first_line - (m[1] == 'Row')}", lines[0])
        raise UserError(
            f"{path}: cannot be read ({said}); the file is truncated, damaged, or not the one that is expected under "
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
    """The columns `types` of a CSV file. `names` are those of all its columns if it has no header.

    Empty fields are nulls. Raises UserError naming the line of a field that does not have its type.
    """
    with (
        explaining(path),
        pacsv.open_csv(str(path), *_csv_options(types, names, delimiter, encoding, quoted)) as reader,
    ):
        yield from reader


def read_double_colon(path: Path, types: dict[str, pa.DataType], encoding: str) -> Iterator[pa.RecordBatch]:
    """A file without header whose fields are separated by two colons, as no CSV reader of pyarrow can split them."""
    options = _csv_options(types, tuple(types), _SEPARATOR, encoding, quoted=False)
    for first_line, block in line_blocks(path):
        with explaining(path, first_line):
            table = pacsv.read_csv(pa.BufferReader(block.replace(b"::", _SEPARATOR.encode())), *options)
        yield from table.to_batches()


def read_json_lines(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The fields of `schema` of a file with one JSON object per line; other fields are ignored, absent ones are null."""
    parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    for first_line, block in line_blocks(path):
        read = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)  # one block, so that rows count from 0
        with explaining(path, first_line):
            table = pajson.read_json(pa.BufferReader(block), read_options=read, parse_options=parse)
        yield from table.select(schema.names).to_batches()


def read_records(path: Path, parse: LineParser = json.loads) -> Iterator[dict[str, Any]]:
    """One dictionary per line, for files whose fields change their type from line to line: pyarrow refuses those.

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
                raise _bad_line(path, line, f"a record is expected, and it is a {type(record).__name__}")
            yield record


def read_parquet(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Those columns of a Parquet file, with the types that they have there. Raises UserError for a missing column."""
    with explaining(path), pq.ParquetFile(path) as parquet:
        missing = [column for column in columns if column not in parquet.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path}: has no column {', '.join(missing)} (columns: {', '.join(parquet.schema_arrow.names)}); it is "
                "not the file that is expected under this name: see docs/public_sets.md for the files of each set"
            )
        yield from parquet.iter_batches(columns=columns)


def line_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, block) for blocks of complete lines, decompressed if the ending says so."""
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
        # One thread: only then does pyarrow say in which row an error is.
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
