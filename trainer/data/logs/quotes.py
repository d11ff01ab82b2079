r"""Quotes in text files: where they open, and rows that they extend over several physical lines.

A quote is special at the beginning of a field only. The next quote closes it, unless that quote is doubled ("") or, if
so configured, escaped (\"). The parser joins text behind a closing quote to the field and drops both quotes. Unless the
settings declare this as intended, QuoteWatch reports it.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_SHOWN = 60  # characters of a line in a message
_WATCHED_BYTES = 1 << 20  # bounds the memory for the positions of quotes
_LINE_END = r"\r\n|\n|\r"


@dataclass(frozen=True)
class Spanning:
    """Rows of a file that take several physical lines."""

    # The number of such rows.
    num_rows: int = 0
    # The physical line where the first of them begins, counted from 1.
    first_line: int = 0
    # The line of the first such row in which each line could be a row by itself; 0 if there is none.
    first_suspicious_line: int = 0
    # The beginning of that line's field.
    suspicious_text: str = ""


class QuoteWatch:
    """Search for text behind a closing quote, as in `"A" x`, in the blocks of a file.

    It looks at all runs of n quotes of a block at once. Outside of quotes, a run at the beginning of a field opens them
    if n is odd; any other run is ordinary text. Inside of quotes, a run closes them if n is odd. So a run swaps the
    state, keeps it, or leads outside from both states. Sums over the runs give the state before each.
    """

    def __init__(self, delimiter: str) -> None:
        # Bytes of the file before the first closing quote that has text behind it; None if there is none so far.
        self.offset: int | None = None
        self._field_ends = (ord(delimiter), ord("\n"), ord("\r"))
        # Number of bytes searched so far, the last of them, and whether they end inside of quotes.
        self._num_bytes = 0
        self._last = ord("\n")  # a file begins as if a line had ended
        self._inside = False
        # Quotes at the end of a block: their run may not be complete.
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        """Search the next block of the file, as UTF-8."""
        if self._num_bytes == 0 and data.startswith(codecs.BOM_UTF8):
            self._num_bytes = len(codecs.BOM_UTF8)
            data = data[self._num_bytes :]
        for begin in range(0, len(data), _WATCHED_BYTES):
            if self.offset is not None:
                return
            part = self._waiting + data[begin : begin + _WATCHED_BYTES]
            complete = part.rstrip(b'"')
            self._waiting = part[len(complete) :]
            self._look(complete)

    def finish(self) -> None:
        """Treat the end of the file as the end of a field."""
        if self.offset is None:
            self._look(self._waiting)

    def _look(self, data: bytes) -> None:
        """Search bytes that do not end within a run, except for the run at the end of the file."""
        if b'"' in data:
            self._look_at_runs(np.frombuffer(data, np.uint8))
        if data:
            self._num_bytes += len(data)
            self._last = data[-1]

    def _look_at_runs(self, codes: npt.NDArray[np.uint8]) -> None:
        quotes = np.flatnonzero(codes == ord('"'))
        if self._are_regular(codes, quotes):
            self._inside ^= bool(quotes.size % 2)
            return
        first = quotes[np.diff(quotes, prepend=-2) > 1]
        last = quotes[np.diff(quotes, append=codes.size + 1) > 1]
        odd = (last - first) % 2 == 0
        begins_field = self._ends_field(np.where(first > 0, codes[first - 1], self._last))
        ends_field = self._ends_field(np.append(codes, self._field_ends[0])[last + 1])
        swaps = np.cumsum(odd & begins_field)
        swaps_at_reset = np.maximum.accumulate(np.where(odd & ~begins_field, swaps, -int(self._inside)))
        after = (swaps - swaps_at_reset) % 2 == 1
        inside = np.concatenate([[self._inside], after[:-1]])
        closes = np.where(inside, odd, begins_field & ~odd)
        wrong = np.flatnonzero(closes & ~ends_field)
        self._inside = bool(after[-1])
        if wrong.size:
            self.offset = self._num_bytes + int(last[wrong[0]])

    def _are_regular(self, codes: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64]) -> bool:
        """Return whether every quote stands alone, opening ones at the beginning of a field and closing ones at an end.

        Most blocks are like this. The check costs a fifth of the whole search, and proves that nothing is wrong in the
        block.
        """
        opening, closing = quotes[int(self._inside) :: 2], quotes[1 - int(self._inside) :: 2]
        before = np.where(opening > 0, codes[opening - 1], self._last)
        after = codes[np.minimum(closing + 1, codes.size - 1)]
        return bool(self._ends_field(before).all() and self._ends_field(after).all() and (np.diff(quotes) > 1).all())

    def _ends_field(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        return np.isin(codes, self._field_ends)


def first_open_quote(lines: Iterable[bytes], delimiter: str, quoting: str) -> tuple[int, str] | None:
    """Return the first line on which a quote opens but does not close: its number from 1, and its beginning."""
    inner = rb'(?:[^"\\]|\\.)*' if quoting == "escaped" else rb'(?:[^"]|"")*'
    mark = re.escape(delimiter.encode())
    whole = re.compile(rb'"' + inner + rb'"')
    field = re.compile(rb'"' + inner + rb'"[^' + mark + rb"]*|[^" + mark + rb"]*")
    for number, line in enumerate(lines, 1):
        if b'"' not in line:
            continue
        place = 0
        while place <= len(line):
            if line[place : place + 1] == b'"' and not whole.match(line, place):
                return number, line[:_SHOWN].decode("utf-8", "replace")
            match = field.match(line, place)
            assert match is not None
            place = match.end() + 1
    return None


def spanning_rows(batches: Iterable[pa.RecordBatch], delimiter: str) -> Spanning:
    """Count rows with line ends in their values. The batches have all columns, and the header as their first row."""
    total = Spanning()
    line = 1  # where the batch begins; the parser skips empty lines, so they are not counted here
    for batch in batches:
        ends = np.zeros(batch.num_rows, np.int64)
        suspicious = np.zeros(batch.num_rows, np.bool_)
        for place, column in enumerate(batch.columns):
            counts = pc.count_substring_regex(column, _LINE_END).to_numpy()
            inside = np.flatnonzero(counts)
            if inside.size:
                ends += counts
                pattern = _rows_of_their_own(place, batch.num_columns, delimiter)
                suspicious[inside] |= pc.match_substring_regex(column.take(pa.array(inside)), pattern).to_numpy(False)
        begins = line + np.arange(batch.num_rows) + np.cumsum(ends) - ends
        rows = np.flatnonzero(ends)
        bad = np.flatnonzero(suspicious)
        total = Spanning(
            total.num_rows + rows.size,
            total.first_line or (int(begins[rows[0]]) if rows.size else 0),
            total.first_suspicious_line or (int(begins[bad[0]]) if bad.size else 0),
            total.suspicious_text or (_opening(batch, int(bad[0])) if bad.size else ""),
        )
        line += batch.num_rows + int(ends.sum())
    return total


def _rows_of_their_own(place: int, num_columns: int, delimiter: str) -> str:
    """Return a pattern of swallowed rows: a value of several lines, each with as many fields as the file has columns.

    An unbalanced quote causes this, because a field swallows rows. A text with line breaks hardly ever looks like it.

    Args:
        place: position of the value's column in the row.
        num_columns: number of columns of the file.
        delimiter: character between fields.
    """
    mark = re.escape(delimiter)
    field = f"[^{mark}\\r\\n]*"
    end = f"(?:{_LINE_END})"

    def fields(num_delimiters: int) -> str:
        return f"(?:{field}{mark}){{{num_delimiters}}}{field}"

    last = num_columns - 1
    return f"^{fields(last - place)}{end}(?:{fields(last)}{end})*{fields(place)}{end}?$"


def _opening(batch: pa.RecordBatch, row: int) -> str:
    """Return the first line of the first field of a row that holds a line end."""
    values = [str(column[row].as_py()) for column in batch.columns]
    return next(re.split(_LINE_END, value)[0] for value in values if re.search(_LINE_END, value))[:_SHOWN]


def line_at(lines: Iterable[bytes], number: int) -> str:
    """Return the beginning of a physical line, for a message. Lines are counted from 1."""
    line = next(islice(lines, number - 1, None), b"")
    return line[:_SHOWN].decode("utf-8", "replace")


def line_of(lines: Iterable[bytes], text: str, at_least: int) -> tuple[int, str]:
    """Return the physical line, from line `at_least` on, in which a quoted field with this beginning opens."""
    opening = b'"' + text.encode()
    for number, line in enumerate(lines, 1):
        if number >= at_least and opening in line:
            return number, line[:_SHOWN].decode("utf-8", "replace")
    return at_least, text
