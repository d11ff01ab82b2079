"""First pass over a text file: the types that its columns fit, and checks of its quotes.

Text files name no types, so all values of all files decide, not a first block. Ambiguous values stay text: `007` is no
integer, because reading it as one would merge it with `7`.

The scan costs one more pass over each text file, block by block, in bounded memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from trainer.data.logs.columns import Column
from trainer.data.logs.config import TextConfig
from trainer.data.logs.files import InputFile, UnreadableFileError
from trainer.data.logs.quotes import QuoteWatch, Spanning, line_at, line_of, spanning_rows
from trainer.data.logs.text_files import delimiter_of, line_number, open_all_columns, open_text, raw_lines, read_names
from trainer.data.logs.times import SAMPLE_ROWS, is_iso
from trainer.errors import UserError

SCAN_BYTES = 16 << 20
# Texts that the parser reads as a missing number or time, besides an empty field.
NULL_SPELLINGS = tuple(pacsv.ConvertOptions().null_values)
BOOLEANS = ("true", "True", "TRUE", "false", "False", "FALSE")

# nothing: no value. float: integers written as floats, such as 12.0 (the result of a merge with missing values).
Kind = Literal["nothing", "integer", "float", "number", "boolean", "moment", "text"]


@dataclass(frozen=True)
class Seen:
    """Summary of the values of a text column."""

    # The kind that all values have.
    kind: Kind = "nothing"
    # Row (from 0) and value of the first value that is no integer; None if there is none.
    other: tuple[int, str] | None = None

    def __add__(self, later: "Seen") -> "Seen":
        return Seen(_joined(self.kind, later.kind), self.other or later.other)


@dataclass(frozen=True)
class TextProfile:
    """Result of scanning a text file."""

    # Rows of the file.
    num_rows: int
    # Summary of each column, by its name in the file.
    columns: dict[str, Seen]
    # Rows that take several lines.
    spanning: Spanning = field(default_factory=Spanning)


@dataclass(frozen=True)
class ScanJob:
    """Text files to scan, each with the columns to read from it."""

    files: tuple[tuple[InputFile, tuple[Column, ...]], ...] = field(default_factory=tuple)


def seen_together(files: Sequence[Seen]) -> Seen:
    """Combine the summaries of a column over several files. A file may hold its integers written as floats throughout."""
    total = Seen()
    for seen in files:
        both = {total.kind, seen.kind} == {"integer", "float"}
        total = Seen("float" if both else _joined(total.kind, seen.kind), total.other or seen.other)
    return total


# Scans all files of a job: entry k is the profile of file k, or the reason why it cannot be read.
Scan = Callable[[ScanJob], Sequence[TextProfile | str]]


def scan_here(job: ScanJob) -> list[TextProfile | str]:
    """Scan the files one after the other in this process."""
    return [scan_task(job, number) for number in range(len(job.files))]


def scan_task(job: ScanJob, number: int) -> TextProfile | str:
    """Scan one file. Returns the reason if it cannot be read. Raises UserError if its quotes may be ordinary characters."""
    file, columns = job.files[number]
    try:
        return _scan(file, columns)
    except UnreadableFileError as error:
        return str(error)


def _scan(file: InputFile, columns: tuple[Column, ...]) -> TextProfile:
    text = columns[0].text
    setting = columns[0].text_setting
    missing = pa.array(["", *columns[0].null_values, *NULL_SPELLINGS])
    names = list(dict.fromkeys(column.source for column in columns))
    seen = dict.fromkeys(names, Seen())
    num_rows = 0
    watch = QuoteWatch(delimiter_of(file, text)) if text.quoting == "auto" else None
    file.check_unchanged()
    with open_text(file, text, setting, SCAN_BYTES, names, watch) as (stream, reader):
        for batch in reader:
            for name in names:
                seen[name] = seen_with(seen[name], batch.column(name), missing, num_rows)
            num_rows += batch.num_rows
        num_lines = stream.num_line_ends + stream.mid_line
    # If each line except the header is a row, no quote joined lines. Additional lines may be empty.
    spanning = Spanning() if num_rows + 1 >= num_lines or text.quoting == "none" else _spanning(file, text, setting)
    if watch is not None:
        watch.finish()
        _check_closed(file, text, setting, watch)
    file.check_unchanged()
    return TextProfile(num_rows, seen, spanning)


def _check_closed(file: InputFile, text: TextConfig, setting: str, watch: QuoteWatch) -> None:
    """Check that no text follows a closing quote. Raises UserError, because reading would drop quotes that may be ordinary."""
    if watch.offset is None:
        return
    number = line_number(file, text, setting, watch.offset)
    start = line_at(raw_lines(file, text, setting), number)
    raise UserError(
        f"logs {file.name}: in line {number} ({start!r}) text follows the quote that closes a field; if quotes are ordinary "
        f'characters in this file, set {setting}.quoting = "none"; if quotes inside fields are written as \\", set '
        f'"escaped"; if the field is right without its quotes, set "double"'
    )


def seen_with(before: Seen, values: pa.Array, missing: pa.Array, first_row: int) -> Seen:
    """Add the next block of a column to its summary. Most blocks resemble the first one and need a single check.

    Args:
        before: summary of the blocks so far.
        values: the block.
        missing: texts that stand for a missing value.
        first_row: row of the block in its file.
    """
    if before.kind == "text":  # whatever follows
        return before
    if before.kind in ("nothing", "integer") and _are_short_integers(values):
        return before + Seen("integer")
    there = pc.invert(pc.is_in(values, value_set=missing))
    kept = values if pc.all(there).as_py() else values.filter(there)
    if not len(kept) or _are_again(before.kind, kept):
        return before
    integers = canonical_integers(kept)
    if pc.all(integers).as_py():
        return before + Seen("integer")
    place = pc.index(integers, False).as_py()
    row = pc.indices_nonzero(there)[place].as_py()
    return before + Seen(_kind(kept), (first_row + row, kept[place].as_py()))


def _are_short_integers(values: pa.Array) -> bool:
    """Return whether all values are canonical non-negative integers of at most 18 digits, as most columns of ids hold."""
    if not pc.all(pc.ascii_is_decimal(values)).as_py():
        return False
    digits = pc.binary_length(values)
    padded = pc.and_(pc.starts_with(values, "0"), pc.greater(digits, 1))
    return pc.max(digits).as_py() <= 18 and not pc.any(padded).as_py()


def _are_again(kind: Kind, values: pa.Array) -> bool:
    """Return whether values keep the kind of their column. False may also mean that a closer look is needed."""
    match kind:
        case "number":  # integers and floats are numbers too
            return casts(values, pa.float64())
        case "float" | "boolean" | "moment":
            return not casts(values, pa.int64()) and _kind(values) == kind
        case _:
            return False


def _kind(values: pa.Array) -> Kind:
    """Return the kind of values that are not all integers."""
    if pc.all(pc.match_substring_regex(values, r"^(?:0|-?[1-9]\d{0,14})\.0$")).as_py():
        return "float"
    if casts(values, pa.float64()):
        return "number"
    if pc.all(pc.is_in(values, value_set=pa.array(BOOLEANS))).as_py():
        return "boolean"
    return "moment" if is_iso(values) else "text"


def canonical_integers(values: pa.Array) -> pa.BooleanArray:
    """Return a mask of the texts that are canonical 64-bit integers: without leading zero, plus sign, or space."""
    likely = pc.match_substring_regex(values, r"^(?:0|-?[1-9]\d{0,17})$")  # up to 18 digits always fit
    if pc.all(likely).as_py():
        return likely
    long = pc.match_substring_regex(values, r"^-?[1-9]\d{18}$")
    if pc.any(long).as_py():  # of 19 digits some fit
        digits = pc.utf8_ltrim(values, "-")
        largest = pc.if_else(pc.starts_with(values, "-"), str(2**63), str(2**63 - 1))
        likely = pc.or_(likely, pc.and_(long, pc.less_equal(digits, largest)))
    return likely


def casts(values: pa.Array, arrow_type: pa.DataType) -> bool:
    """Return whether all texts can be cast to this type. The first ones are tried alone, because a failure is slow."""
    try:
        values[:SAMPLE_ROWS].cast(arrow_type)
        values.cast(arrow_type)
    except pa.ArrowInvalid:
        return False
    return True


def _joined(one: Kind, other: Kind) -> Kind:
    """Return the kind of values of two kinds together."""
    if "nothing" in (one, other):
        return one if other == "nothing" else other
    if one == other:
        return one
    return "number" if {one, other} <= {"integer", "float", "number"} else "text"


def _spanning(file: InputFile, text: TextConfig, setting: str) -> Spanning:
    """Return the rows over several lines. Raises UserError if undeclared quotes may have swallowed rows."""
    mark = delimiter_of(file, text)
    with open_all_columns(file, text, setting, SCAN_BYTES, len(read_names(file, text, setting))) as batches:
        spanning = spanning_rows(batches, mark)
    if text.quoting == "auto" and spanning.first_suspicious_line:
        number, start = line_of(
            raw_lines(file, text, setting), spanning.suspicious_text, spanning.first_suspicious_line
        )
        raise UserError(
            f"logs {file.name}: a quote in line {number} ({start!r}) makes one row of several lines that could each be a row; "
            f'if quotes are ordinary characters in this file, set {setting}.quoting = "none"; if the line breaks belong to the '
            f'quoted field, set {setting}.quoting = "double", or "escaped" where quotes inside fields are written as \\"'
        )
    return spanning
