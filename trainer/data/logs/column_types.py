"""Types of columns: plain types, the types allowed for each role, and the types that reading stores."""

import pyarrow as pa

from trainer.data.logs.columns import Column
from trainer.data.logs.files import InputFile
from trainer.data.logs.text_scan import Kind
from trainer.errors import UserError


def plain_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the plain form of a type.

    A dictionary becomes the type of its values. Large and view types become plain ones. A list without entries becomes
    null.
    """
    types = pa.types
    if types.is_dictionary(arrow_type):
        return plain_type(arrow_type.value_type)
    if types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return pa.string()
    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        inner = plain_type(arrow_type.value_type)
        return inner if types.is_null(inner) else pa.list_(inner)
    return arrow_type


def text_type(column: Column, kind: Kind, is_text: bool) -> pa.DataType:
    """Return the type as which a column of text files is read.

    Args:
        column: the column.
        kind: the kind that all its values have.
        is_text: whether the values that it is compared with are text.
    """
    match column.role:
        case "id" | "categorical" if column.separator is not None or is_text:
            return pa.string()
        case "id" | "categorical":
            return pa.bool_() if kind == "boolean" else pa.int64()
        case "label" | "numeric":
            return pa.bool_() if kind == "boolean" else pa.float64()
        case "time" | "timestamp" if column.time_format is not None or kind == "moment":
            return pa.timestamp("us")
        case "time" | "timestamp" if kind in ("integer", "float", "number"):
            return pa.int64() if kind == "integer" else pa.float64()
        case _:
            return pa.string()


def check_usable(arrow_type: pa.DataType, file: InputFile, column: Column) -> None:
    """Check that a column of this type can have the role of its setting. Raises UserError."""
    types = pa.types
    number = types.is_integer(arrow_type) or types.is_floating(arrow_type)
    moment = number or types.is_timestamp(arrow_type) or types.is_date(arrow_type)
    value = types.is_integer(arrow_type) or types.is_string(arrow_type)
    inner = arrow_type.value_type if types.is_list(arrow_type) else None
    match column.role:
        case "id":
            usable = value or types.is_floating(arrow_type) or types.is_decimal(arrow_type)
            expected = "an integer or a string"
        case "time" | "timestamp":
            usable = moment or types.is_string(arrow_type)
            expected = "an integer, a timestamp, a date or an ISO date as text"
        case "label" | "numeric":
            usable = number or types.is_boolean(arrow_type) or types.is_decimal(arrow_type)
            expected = "a number"

        case "categorical" if column.separator is not None:
            usable = types.is_string(arrow_type)
            expected = "a string, because `separator` is set"
        case "categorical":
            value = value or types.is_floating(arrow_type) or types.is_boolean(arrow_type)
            usable = value or (inner is not None and (types.is_integer(inner) or types.is_string(inner)))
            expected = "an integer, a string or a list of them"
        case "vector":
            usable = inner is not None and (types.is_integer(inner) or types.is_floating(inner))
            expected = f"a list of {column.dim} numbers"
    if not usable:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) is {arrow_type}, and must be {expected}; '
            f"take another column, or convert this one{_conversion(arrow_type)}"
        )


def _conversion(arrow_type: pa.DataType) -> str:
    """Return a hint how to convert a column of this type, if one call does it."""
    types = pa.types
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_fixed_size_binary(arrow_type):
        return ": with pyarrow, column.cast(pa.string()) if the bytes are UTF-8, otherwise decode them, for example as latin-1"
    if types.is_boolean(arrow_type):
        return ": with pyarrow, column.cast(pa.int8())"
    return ""


def stored_type(column: Column, agreed: pa.DataType) -> pa.DataType:
    """Return the type that reading stores a column in."""
    types = pa.types
    text = types.is_string(agreed) if column.type == "auto" else column.type == "text"
    match column.role:
        case "id":
            return pa.string() if text else pa.int64()
        case "time" | "timestamp":
            return pa.int64()
        case "label" | "numeric":
            return pa.float32()
        case "vector":
            return pa.list_(pa.float32())
        case "categorical":
            if column.separator is not None:
                return pa.list_(pa.string())
            if types.is_list(agreed):
                text = types.is_string(agreed.value_type) if column.type == "auto" else text
                return pa.list_(pa.string() if text else pa.int64())
            return pa.string() if text else pa.int64()
