"""Names of columns: each column of the config is in a file exactly once, and the first line of a text file is a header."""

import difflib
import re
from collections.abc import Sequence

from trainer.data.logs.columns import Column
from trainer.data.logs.files import InputFile
from trainer.data.logs.formats import Header, reader_of
from trainer.data.logs.text_files import OTHER_DELIMITERS
from trainer.errors import UserError


def check_column_name(file: InputFile, header: Header, column: Column) -> None:
    """Check that the file has the column exactly once. Raises UserError."""
    names = header.names
    if names.count(column.source) == 1:
        return
    if column.source in names:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) occurs {names.count(column.source)} times; '
            "rename one"
        )
    if not reader_of(file).has_types:
        _check_header_line(file, names, column)
    nearest = difflib.get_close_matches(column.source, names, n=1, cutoff=0.5)
    remedy = f'did you mean "{nearest[0]}"? Then set' if nearest else "set"
    feature = column.role not in ("id", "time", "label")
    raise UserError(
        f'logs {file.name}: there is no column "{column.source}"; {remedy} {column.setting}{".column" if feature else ""} '
        f"to the right column (columns: {', '.join(names)})"
    )


def _check_header_line(file: InputFile, names: Sequence[str], column: Column) -> None:
    """Check that the first line of a text file is a header with the right delimiter. Raises UserError.

    A line that looks like a row, or like columns with another delimiter, is refused.
    """
    shown = ", ".join(names)
    if len(names) == 1:
        for mark, called in OTHER_DELIMITERS.items():
            if mark in names[0]:
                raise UserError(
                    f'logs {file.name}: there is no column "{column.source}"; with the assumed delimiter the first line is one '
                    f"column, {names[0]!r}; set {column.text_setting}.delimiter = {mark!r} ({called})"
                )
    if names and all(re.fullmatch(r"[+-]?[\d.:T/ -]*\d[\d.:TZ/ -]*", name) for name in names):
        raise UserError(
            f'logs {file.name}: there is no column "{column.source}"; the first line ({shown}) looks like a row: add '
            "a line with the names of the columns above it"
        )
