"""Text files (CSV, TSV) as streams of record batches with text columns only.

This module handles encoding, delimiter, quotes and line ends. trainer/data/logs/text_scan.py decides the types, from
all values of all files.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from trainer.data.logs.config import TextConfig
from trainer.data.logs.files import InputFile, UnreadableFileError, explaining
from trainer.data.logs.quotes import QuoteWatch, first_open_quote
from trainer.errors import first_line

HEADER_BYTES = 1 << 20
OTHER_DELIMITERS = {";": "semicolon", "\t": "tab", "|": "vertical bar", ",": "comma"}
_READ_BYTES = 1 << 20
_ROW = re.compile(r"Row #(\d+)")
_FIELDS = re.compile(r"Expected (\d+) columns, got (\d+)")


class CountingStream:
    """A text file as UTF-8 bytes, read once from its start, with a count of the line ends read so far.

    Reading raises UnreadableFileError for bytes that are not text in the configured encoding, and for NUL bytes.
    """

    def __init__(self, file: InputFile, text: TextConfig, setting: str, watch: QuoteWatch | None = None) -> None:
        # Line ends read so far, of all three kinds.
        self.num_line_ends = 0
        # Whether the bytes read so far end in the middle of a line.
        self.mid_line = False
        self.closed = False
        self._watch = watch
        self._file = file
        self._setting = setting
        self._encoding = text.encoding
        self._stream = file.filesystem().open_input_stream(file.path)  # decompresses by the file's ending
        utf8 = codecs.lookup(text.encoding).name == "utf-8"
        self._decoder = None if utf8 else codecs.getincrementaldecoder(text.encoding)()
        self._decoded = b""
        self._ends_in_return = False

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; empty at the end of the file."""
        data = self._raw(size) if self._decoder is None else self._transcoded(size)
        if b"\0" in data:
            raise UnreadableFileError(
                f"logs {self._file.name}: contains NUL bytes, which text does not have; if the file is UTF-16, set "
                f'{self._setting}.encoding = "utf-16", otherwise write the file again'
            )
        self._count(data)
        if self._watch is not None:
            self._watch.feed(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._stream.close()

    def _raw(self, size: int) -> bytes:
        return bytes(self._stream.read(None if size < 0 else size))

    def _transcoded(self, size: int) -> bytes:
        """Return up to `size` bytes as UTF-8, and keep the rest.

        UTF-8 takes more bytes than most encodings, and the caller has room for `size` bytes only.
        """
        assert self._decoder is not None
        while size < 0 or len(self._decoded) < size:
            data = self._raw(_READ_BYTES)
            try:
                self._decoded += self._decoder.decode(data, final=not data).encode("utf-8")
            except UnicodeDecodeError as error:
                raise UnreadableFileError(
                    f"logs {self._file.name}: is not text in {self._setting}.encoding = {self._encoding!r} ({error.reason}); "
                    "set the encoding in which the file was written"
                ) from None
            if not data:
                break
        end = len(self._decoded) if size < 0 else size
        taken = self._decoded[:end]
        self._decoded = self._decoded[end:]
        return taken

    def _count(self, data: bytes) -> None:
        if not data:
            return
        returns = data.count(b"\r")
        pairs = data.count(b"\r\n") if returns else 0
        if self._ends_in_return and data.startswith(b"\n"):  # a pair across two reads
            pairs += 1
        self.num_line_ends += data.count(b"\n") + returns - pairs
        self._ends_in_return = data.endswith(b"\r")
        self.mid_line = not data.endswith((b"\n", b"\r"))


def delimiter_of(file: InputFile, text: TextConfig) -> str:
    """Return the character between the fields of a file."""
    return text.delimiter or ("\t" if file.format == "tsv" else ",")


def read_names(file: InputFile, text: TextConfig, setting: str) -> tuple[str, ...]:
    """Return the column names of a text file. Raises UnreadableFileError if its first block cannot be parsed."""
    with (
        explaining(file),
        explaining_text(file, text, setting),
        _reader(file, text, setting, HEADER_BYTES, pacsv.ConvertOptions()) as (_, reader),
    ):
        return tuple(reader.schema.names)


@contextmanager
def open_text(
    file: InputFile,
    text: TextConfig,
    setting: str,
    block_bytes: int,
    names: Sequence[str],
    watch: QuoteWatch | None = None,
) -> Iterator[tuple[CountingStream, Iterator[pa.RecordBatch]]]:
    """Open a file, and yield its stream with an iterator of record batches of text columns.

    Empty fields are empty text.

    Args:
        file: the file.
        text: the format of the file.
        setting: the name of that setting, for messages.
        block_bytes: size of a block.
        names: the columns to read.
        watch: receives every byte that is read.

    Raises:
        UnreadableFileError: naming the line that cannot be split into columns.
    """
    options = pacsv.ConvertOptions(include_columns=list(names), column_types=dict.fromkeys(names, pa.string()))
    with (
        explaining(file),
        explaining_text(file, text, setting),
        _reader(file, text, setting, block_bytes, options, watch=watch) as opened,
    ):
        yield opened


@contextmanager
def open_all_columns(
    file: InputFile, text: TextConfig, setting: str, block_bytes: int, num_columns: int
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Open a file, and yield an iterator of record batches of all columns as text, by position.

    The header is the first row.
    """
    types = {f"f{place}": pa.string() for place in range(num_columns)}
    options = pacsv.ConvertOptions(column_types=types, check_utf8=False)
    with (
        explaining(file),
        explaining_text(file, text, setting),
        _reader(file, text, setting, block_bytes, options, header=False) as (_, reader),
    ):
        yield reader


@contextmanager
def _reader(
    file: InputFile,
    text: TextConfig,
    setting: str,
    block_bytes: int,
    options: pacsv.ConvertOptions,
    header: bool = True,
    watch: QuoteWatch | None = None,
) -> Iterator[tuple[CountingStream, Any]]:
    quoted = text.quoting != "none"
    escaped = text.quoting == "escaped"
    stream = CountingStream(file, text, setting, watch)
    with pacsv.open_csv(
        pa.PythonFile(stream, "r"),
        # One thread: only then do errors name the row.
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes, autogenerate_column_names=not header),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter_of(file, text),
            quote_char='"' if quoted else False,
            double_quote=quoted and not escaped,
            escape_char="\\" if escaped else False,
            newlines_in_values=quoted,
        ),
        convert_options=options,
    ) as reader:
        yield stream, reader


@contextmanager
def explaining_text(file: InputFile, text: TextConfig, setting: str) -> Iterator[None]:
    """Turn errors of the parser about a text file into an UnreadableFileError that names the line and the setting."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise UnreadableFileError(f"logs {file.name}: {_cause(file, text, setting, str(error))}") from None


def _cause(file: InputFile, text: TextConfig, setting: str, message: str) -> str:
    row = _ROW.search(message)
    line = f"line {row[1]}" if row else "a line"
    if "invalid UTF8" in message:
        return (
            f"{line} is not text in {setting}.encoding = {text.encoding!r}; set the encoding in which the file was written, "
            'such as "latin-1" or "cp1252"'
        )
    if text.quoting != "none" and (
        open_quote := first_open_quote(raw_lines(file, text, setting), delimiter_of(file, text), text.quoting)
    ):
        number, start = open_quote
        return (
            f"cannot be split into rows ({first_line(Exception(message))}): a quote opens in line {number} ({start!r}) and does "
            f'not close there; if quotes are ordinary characters, set {setting}.quoting = "none", if quotes inside fields are '
            f'written as \\", set "escaped", otherwise correct that line'
        )
    if fields := _FIELDS.search(message):
        return (
            f"{line} has {fields[2]} fields, and the header has {fields[1]}; it is truncated or damaged, or has another delimiter "
            f"({setting}.delimiter) or other quotes ({setting}.quoting): write the file again, or leave it out of logs.path"
        )
    return (
        f"cannot be read as {file.format} ({first_line(Exception(message))}); it is truncated, damaged, or of another format: "
        f"write the file again, leave it out of logs.path, or set logs.format or {setting}"
    )


def line_number(file: InputFile, text: TextConfig, setting: str, offset: int) -> int:
    """Return the number, from 1, of the physical line that holds the byte at `offset` of the file as UTF-8."""
    stream = CountingStream(file, text, setting)
    left = offset
    try:
        while left and (data := stream.read(min(left, _READ_BYTES))):
            left -= len(data)
        return stream.num_line_ends + 1
    finally:
        stream.close()


def raw_lines(file: InputFile, text: TextConfig, setting: str) -> Iterator[bytes]:
    """Yield the physical lines of a file without their ends. A Python loop: for error messages, not for reading data."""
    stream = CountingStream(file, text, setting)
    rest = b""
    try:
        while data := stream.read(_READ_BYTES):
            *lines, rest = re.split(rb"\r\n|\n|\r(?!$)", rest + data)
            yield from lines
        if rest:
            yield rest.removesuffix(b"\r")
    finally:
        stream.close()
