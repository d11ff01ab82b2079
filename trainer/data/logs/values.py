"""Values of the logs, converted to the types that a dataset stores (Contract.stored).

It handles ids, times, numbers, categories and vectors of every usable Arrow type. trainer/data/logs/text_values.py
gives values of text files a type first. Nothing is rounded or guessed: a value that does not fit is refused with file
and row.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.logs.columns import Column
from trainer.data.logs.observations import WITH_ZONE, WITHOUT_ZONE
from trainer.data.logs.times import has_zone, parse_format, parse_iso
from trainer.errors import UserError, first_line

LARGEST = pa.scalar(2**63 - 1, pa.uint64())
_EXACT = 2.0**53  # beyond this a float64 rounds integers, so two ids may have become one


def plain(values: pa.Array, column: Column, agreed: pa.DataType, where: "BlockLocation") -> pa.Array:
    """Convert a Parquet column to its plain type, without dictionaries and large types. These casts lose nothing."""
    types = pa.types
    if types.is_null(agreed) or (_is_list(values.type) and types.is_null(values.type.value_type)):
        return pa.nulls(len(values), agreed)  # empty lists without a type have no value either
    return values if values.type == agreed else values.cast(agreed)


def _is_list(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type))


@dataclass(frozen=True)
class BlockLocation:
    """A block of rows: its location, for messages, and the counts of suspicious values in it."""

    # Name of the file.
    file: str
    # Number of the block's first row in the file.
    first_row: int
    # Counts by the names in trainer/data/logs/observations.py; reading adds to them.
    observed: Counter[str] = field(default_factory=Counter)

    def __call__(self, row: int) -> str:
        return f"logs {self.file} row {self.first_row + row}"


def normalised(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Convert values to the type of Contract.stored, with null for missing values."""
    try:
        match column.role:
            case "id":
                return _as_id(values, column, where)
            case "time" | "timestamp":
                return _as_moment(values, column, where)
            case "label" | "numeric":
                return _as_float(values)
            case "categorical":
                return _as_categorical(values, column, where)
            case "vector":
                return _as_vector(values, column, where)
    except pa.ArrowInvalid as error:
        remedy = "use another unit of time" if column.role == "time" else "write the values as strings"
        raise UserError(
            f'logs {where.file}: column "{column.source}" ({column.setting}) does not fit into an int64 '
            f"({first_line(error)}); {remedy}"
        ) from None


def without_missing(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """Replace empty text, and texts in logs.null_values, by null."""
    missing = pc.equal(pc.binary_length(values), 0)
    if column.null_values:
        missing = pc.or_(missing, pc.is_in(values, value_set=pa.array(column.null_values)))
    return pc.if_else(missing, pa.scalar(None, pa.string()), values) if pc.any(missing).as_py() else values


def _as_id(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Convert ids to int64 or text, by the type setting or the type in the files."""
    types = pa.types
    if types.is_string(values.type):
        values = without_missing(values, column)
        return declared_integers(values, column, where) if column.type == "integer" else values
    if types.is_floating(values.type):
        values = _whole_numbers(values, column, where)
    elif types.is_decimal(values.type):
        values = _whole_decimals(values, column, where)
    else:
        values = _as_integer(values)
    return values.cast(pa.string()) if column.type == "text" else values


def declared_integers(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Convert text to int64 where a setting declares integers. Leading zeros, a plus sign and surrounding spaces are ignored."""
    trimmed = pc.utf8_trim_whitespace(values)
    digits = pc.replace_substring_regex(trimmed, r"^\+|\.0+$", "")
    fits = pc.match_substring_regex(trimmed, r"^[+-]?\d+(?:\.0+)?$")
    try:
        if pc.all(fits, min_count=0).as_py():
            return digits.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        fits = pc.and_(fits, pc.less_equal(pc.utf8_length(digits), 18))
    row, value = _first(values, pc.invert(fits))
    raise UserError(
        f'{where(row)}: column "{column.source}" ({column.setting}) is {value!r}, which is no integer of 64 bits, and '
        f'{column.type_setting} = "integer"; set it to "text"'
    )


def _first(values: pa.ChunkedArray, wrong: pa.ChunkedArray) -> tuple[int, str]:
    """Return row and value of the first wrong value."""
    row = pc.index(pc.fill_null(wrong, False), True).as_py()
    return row, values[row].as_py()


def _whole_decimals(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        wrong = next(row for row, value in enumerate(values) if value.is_valid and not _is_int64(value.as_py()))
    raise UserError(
        f'{where(wrong)}: column "{column.source}" ({column.setting}) is {values[wrong].as_py()}, and an id must be a whole '
        "number of 64 bits; convert the column to text: with pyarrow, column.cast(pa.string())"
    )


def _is_int64(value: object) -> bool:
    return int(value) == value and abs(int(value)) < 2**63  # type: ignore[call-overload, no-any-return]


def _as_integer(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert to int64. Larger numbers become null, and `_reasons` distinguishes them from missing values."""
    if pa.types.is_uint64(values.type):
        values = pc.if_else(pc.greater(values, LARGEST), pa.scalar(None, values.type), values)
    return values.cast(pa.int64())


def _as_moment(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    types = pa.types
    if types.is_null(values.type):
        return values.cast(pa.int64())
    if types.is_string(values.type):
        values = moments_of(without_missing(values, column), column, where)
    if types.is_temporal(values.type):
        microseconds = pc.CastOptions(pa.timestamp("us", getattr(values.type, "tz", None)), allow_time_truncate=True)
        return values.cast(options=microseconds).cast(pa.int64())
    if types.is_floating(values.type):
        return _whole_numbers(values, column, where)
    return _as_integer(values) if column.role == "time" else values.cast(pa.int64())


def moments_of(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Parse text as timestamps in UTC: by the format of the setting if there is one, otherwise as ISO 8601."""
    try:
        moments = _parsed(values, column)
    except pa.ArrowInvalid:
        row = next(row for row, value in enumerate(values) if value.is_valid and not _parses(value, column))
    else:
        if column.role == "time":
            num_values = len(values) - values.null_count
            zoned = "%z" in column.time_format if column.time_format is not None else has_zone(values)
            num_zoned = (num_values if zoned else 0) if isinstance(zoned, bool) else pc.sum(zoned).as_py() or 0
            where.observed.update({WITH_ZONE: num_zoned, WITHOUT_ZONE: num_values - num_zoned})
        return moments
    problem = f"not in the format {column.time_format!r}" if column.time_format else "no ISO date or time"
    feature = "" if column.role == "time" else ", or take the column as categorical"
    raise UserError(
        f'{where(row)}: column "{column.source}" ({column.setting}) is {values[row].as_py()!r}, which is {problem}; set '
        f'{column.format_setting} to the format of the text, such as "%m/%d/%Y" or "%d/%m/%Y %H:%M:%S", or write times as '
        f"2024-05-01T12:00:00{feature}"
    )


def _parsed(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    return parse_iso(values) if column.time_format is None else parse_format(values, column.time_format)


def _parses(value: pa.Scalar, column: Column) -> bool:
    try:
        _parsed(pa.array([value.as_py()], pa.string()), column)
    except pa.ArrowInvalid:
        return False
    return True


def _as_float(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert to float32. NaN, and numbers that are infinite in float32, become null."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if not pa.types.is_floating(values.type):  # an integer beyond 2^24 is rounded, as any float32 is
        values = values.cast(pa.float64(), safe=False)
    values = values.cast(pa.float32(), safe=False)
    finite = pc.is_finite(values)
    if not pc.all(finite, min_count=0).as_py():
        values = pc.if_else(finite, values, pa.scalar(None, values.type))
    return values


def _as_categorical(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    types = pa.types
    if column.separator is not None:
        values = without_missing(values.cast(pa.string()), column)
        return _without_missing_entries(pc.split_pattern(values, column.separator), column)
    if types.is_list(values.type):
        if types.is_string(values.type.value_type):
            values = _without_missing_entries(values, column)
        else:
            values = values.cast(pa.list_(pa.int64()))
        return _entries_as_declared(values, column, where)
    if types.is_string(values.type):
        values = without_missing(values, column)
        return declared_integers(values, column, where) if column.type == "integer" else values
    integers = _whole_numbers(values, column, where) if types.is_floating(values.type) else values.cast(pa.int64())
    return integers.cast(pa.string()) if column.type == "text" else integers


def _entries_as_declared(lists: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Convert the entries of lists to the declared type."""
    is_text = pa.types.is_string(lists.type.value_type)
    if column.type == "text" and not is_text:
        return lists.cast(pa.list_(pa.string()))
    if column.type == "integer" and is_text:
        entries = declared_integers(pc.list_flatten(lists), column, where)
        return _with_entries(lists, entries.combine_chunks())
    return lists


def _without_missing_entries(lists: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    entries = pc.list_flatten(lists)
    kept = without_missing(entries, column)
    return lists if kept is entries else _with_entries(lists, kept.combine_chunks())


def _with_entries(lists: pa.ChunkedArray, entries: pa.Array) -> pa.ChunkedArray:
    """Return lists of the same lengths with other entries."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    missing = lists.is_null().combine_chunks()
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, entries, mask=missing)])


def _as_vector(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    values = values.cast(pa.list_(pa.float32()), safe=False)  # an integer beyond 2^24 is rounded, as any float32 is
    lengths = pc.fill_null(pc.list_value_length(values), column.dim).to_numpy()
    wrong = np.flatnonzero(lengths != column.dim)
    if wrong.size:
        raise UserError(
            f'{where(int(wrong[0]))}: column "{column.source}" ({column.setting}) has {lengths[wrong[0]]} numbers, '
            f"and {column.setting}.dim = {column.dim}; set dim to the width of the vectors, which must all have the same"
        )
    return values


def _whole_numbers(values: pa.ChunkedArray, column: Column, where: BlockLocation) -> pa.ChunkedArray:
    """Convert floats without a fraction to int64, because some tools write integers as floats. Raises UserError otherwise.

    An id or a category beyond 2^53 is refused too, because floats round there: two values may have become one.
    """
    numbers: npt.NDArray[np.float64] = values.to_numpy().astype(np.float64)
    missing = np.isnan(numbers)
    is_time = column.role in ("time", "timestamp")
    largest = 2.0**63 if is_time else _EXACT + 1
    if values.type != pa.float64() and not is_time:
        largest = min(largest, 2.0**11 + 1 if values.type == pa.float16() else 2.0**24 + 1)
    broken = ~missing & ((numbers != np.floor(numbers)) | (np.abs(numbers) >= largest))
    if broken.any():
        row = int(np.argmax(broken))
        what = "a time" if is_time else "an id" if column.role == "id" else "a categorical value"
        remedy = (
            "multiply it by the resolution that you need (for example 1000) and write it as an integer"
            if is_time
            else 'write it as text, or take it as kind = "numeric"'
            if column.role == "categorical"
            else "write ids as integers or text: floats round numbers beyond 2^53 (float32: 2^24)"
        )
        raise UserError(
            f'{where(row)}: column "{column.source}" ({column.setting}) is {numbers[row]}, and {what} must be '
            f"a whole number; {remedy}"
        )
    return pa.chunked_array([pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)])
