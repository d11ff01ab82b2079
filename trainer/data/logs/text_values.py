"""Values of text files, converted to the type that the contract agreed on.

Every conversion is exact, or refused with file, row, value and the setting to change. An empty field and the usual
spellings of a missing number (such as NaN or NULL) are null. Text columns keep such words, and the data card counts
them.
"""

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.logs.columns import Column
from trainer.data.logs.text_scan import BOOLEANS, NULL_SPELLINGS, canonical_integers, casts
from trainer.data.logs.values import BlockLocation, declared_integers, moments_of
from trainer.errors import UserError

Fits = Callable[[pa.Array], bool]  # whether a single value fits
_NULL = pa.scalar(None, pa.string())
_TRUE = pa.array([word for word in BOOLEANS if word.lower() == "true"])


def typed_text(values: pa.Array, column: Column, agreed: pa.DataType, where: BlockLocation) -> pa.Array:
    """Convert a column of text to the agreed type. Labels and numeric features become numbers."""
    types = pa.types
    if types.is_string(agreed):
        return values
    missing = pc.is_in(values, value_set=pa.array(["", *column.null_values, *NULL_SPELLINGS]))
    values = pc.if_else(missing, _NULL, values) if pc.any(missing).as_py() else values
    if types.is_null(agreed):
        return _refuse_any(values, column, where)
    if column.role in ("label", "numeric"):
        return _booleans(values) if _are_booleans(values) else _numbers(values, column, where)
    if types.is_temporal(agreed):
        moments = moments_of(values, column, where)
        return moments.cast(pa.timestamp("us", "UTC")).cast(agreed) if agreed.tz else moments.cast(agreed)
    if types.is_boolean(agreed) and _are_booleans(values):
        return _booleans(values)
    if types.is_floating(agreed) and casts(values, pa.float64()):
        return values.cast(pa.float64())
    if types.is_integer(agreed):
        return _integers(values, column, where).cast(agreed)
    raise _refusal(
        values, column, where, lambda value: casts(value, agreed), f"is no {agreed}, which the column is elsewhere"
    )


def _integers(values: pa.Array, column: Column, where: BlockLocation) -> pa.Array:
    if column.type == "integer":
        return declared_integers(values, column, where)
    if not pc.all(canonical_integers(values), min_count=0).as_py():
        if not pc.all(_is_float_of_integer(values), min_count=0).as_py():
            remedy = (
                f'set {column.type_setting} = "text" to keep such values apart, or "integer" if leading zeros and signs mean '
                "nothing"
                if column.type_setting
                else f"take another column as {column.setting}"
            )
            raise _refusal(
                values, column, where, _is_whole, f"is no plain integer, which the column holds elsewhere; {remedy}"
            )
        values = pc.replace_substring_regex(values, r"\.0$", "")
    return values.cast(pa.int64())


def _is_whole(value: pa.Array) -> bool:
    return bool(_is_float_of_integer(value)[0].as_py())


def _is_float_of_integer(values: pa.Array) -> pa.BooleanArray:
    """Return a mask of the integers, including the form that a merge with missing values leaves: 12.0."""
    return pc.or_(canonical_integers(values), pc.match_substring_regex(values, r"^(?:0|-?[1-9]\d{0,14})\.0$"))


def _are_booleans(values: pa.Array) -> bool:
    words = pc.is_in(values, value_set=pa.array(BOOLEANS), skip_nulls=True)
    return bool(pc.all(pc.or_(words, values.is_null())).as_py()) and values.null_count < len(values)


def _booleans(values: pa.Array) -> pa.Array:
    return pc.if_else(values.is_valid(), pc.is_in(values, value_set=_TRUE), pa.scalar(None, pa.bool_()))


def _numbers(values: pa.Array, column: Column, where: BlockLocation) -> pa.Array:
    """Convert text to numbers, with the decimal and thousands marks of the settings."""
    text = column.text
    plain = values
    if text.thousands or text.decimal != ".":
        pattern = _number_pattern(text.decimal, text.thousands)
        if not pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py():
            raise _no_number(values, column, where, lambda value: bool(re.search(pattern, value[0].as_py())))
        plain = pc.replace_substring(values, text.thousands, "") if text.thousands else values
        plain = pc.replace_substring(plain, ",", ".") if text.decimal == "," else plain
    if not casts(plain, pa.float64()):
        raise _no_number(values, column, where, lambda value: casts(value, pa.float64()))
    return plain.cast(pa.float64())


def _number_pattern(decimal: str, thousands: str) -> str:
    """Return a pattern of numbers: digits in groups of three or ungrouped, with optional fraction and exponent."""
    mark = re.escape(thousands)
    point = re.escape(decimal)
    groups = rf"\d{{1,3}}(?:{mark}\d{{3}})+|" if thousands else ""
    return rf"^[+-]?(?:(?:{groups}\d+)(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$"


def _no_number(values: pa.Array, column: Column, where: BlockLocation, fits: Fits) -> UserError:
    setting = column.text_setting
    return _refusal(
        values,
        column,
        where,
        fits,
        f"is no number with {setting}.decimal = {column.text.decimal!r} and {setting}.thousands = {column.text.thousands!r}; set "
        "these to the marks of the file, add the text to logs.null_values if it means a missing number, or correct the file",
    )


def _refuse_any(values: pa.Array, column: Column, where: BlockLocation) -> pa.Array:
    if values.null_count < len(values):
        raise _refusal(
            values,
            column,
            where,
            lambda value: False,
            "is a value, and the column had none before; prepare the dataset again",
        )
    return pa.nulls(len(values))


def _refusal(values: pa.Array, column: Column, where: BlockLocation, fits: Fits, what: str) -> UserError:
    """Raise the error about the first value that does not fit."""
    distinct = {value: row for row, value in reversed(list(enumerate(values.to_pylist()))) if value is not None}
    rows = sorted(row for value, row in distinct.items() if not fits(pa.array([value])))
    row = rows[0] if rows else 0
    raise UserError(
        f'{where(row)}: column "{column.source}" ({column.setting}) is {values[row].as_py()!r}, which {what}'
    )
