r"""Quotes in text files: where they open, and rows that they make of several physical lines.

A quote is special where a field begins, and there only. It is closed by the next quote that is neither doubled ("") nor, if so
configured, escaped (\"). Text behind a closing quote belongs to the field, as it does for the parser.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SHOWN = 60  # characters of a line in a message
_LINE_END = r"\r\n|\n|\r"


@dataclass(frozen=True)
class Spanning:
    """Rows of a file that take several physical lines."""

    # The number of such rows.
    num_rows: int = 0
    # The physical line where the first of them begins, counted from 1.
    first_line: int = 0
    # The line where the first of them begins whose every line could be a row of its own; 0 if there is none.
    first_suspicious_line: int = 0
    # The beginning of that line's field.
    suspicious_text: str = ""


def first_open_quote(lines: Iterable[bytes], delimiter: str, quoting: str) -> tuple[int, str] | None:
    """The first line (from 1, with its beginning) on which a quote opens that does not close there."""
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
    """Rows whose values hold line ends. The batches have all columns, and the header as their first row."""
    found = Spanning()
    line = 1  # where the batch begins; lines without any text are passed over by the parser, and not counted here
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
        rows, bad = np.flatnonzero(ends), np.flatnonzero(suspicious)
        found = Spanning(
            found.num_rows + rows.size,
            found.first_line or (int(begins[rows[0]]) if rows.size else 0),
            found.first_suspicious_line or (int(begins[bad[0]]) if bad.size else 0),
            found.suspicious_text or (_opening(batch, int(bad[0])) if bad.size else ""),
        )
        line += batch.num_rows + int(ends.sum())
    return found


def _rows_of_their_own(place: int, num_columns: int, delimiter: str) -> str:
    """Pattern of the value at `place` of a row over several lines, if each line has as many fields as there are columns.

    This is what an unbalanced quote makes: rows swallowed by a field. A text with line breaks hardly ever looks so.
    """
    mark = re.escape(delimiter)
    field = f"[^{mark}\\r\\n]*"
    end = f"(?:{_LINE_END})"

    def fields(num_delimiters: int) -> str:
        return f"(?:{field}{mark}){{{num_delimiters}}}{field}"

    last = num_columns - 1
    return f"^{fields(last - place)}{end}(?:{fields(last)}{end})*{fields(place)}{end}?$"


def _opening(batch: pa.RecordBatch, row: int) -> str:
    """The first line of the first field of a row that holds a line end."""
    values = [str(column[row].as_py()) for column in batch.columns]
    return next(re.split(_LINE_END, value)[0] for value in values if re.search(_LINE_END, value))[:_SHOWN]


def line_of(lines: Iterable[bytes], text: str, at_least: int) -> tuple[int, str]:
    """The physical line in which a quoted field of this beginning opens, from a lower bound of its number on."""
    wanted = b'"' + text.encode()
    for number, line in enumerate(lines, 1):
        if number >= at_least and wanted in line:
            return number, line[:_SHOWN].decode("utf-8", "replace")
    return at_least, text
