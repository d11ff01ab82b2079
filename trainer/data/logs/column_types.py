"""The types that columns come in, which of them are usable for what, and what reading turns each into."""

import pyarrow as pa

from trainer.data.logs.columns import Column
from trainer.data.logs.files import InputFile
from trainer.data.logs.text_scan import Kind
from trainer.errors import UserError


def plain_type(found: pa.DataType) -> pa.DataType:
    """Dictionaries are taken as their values, large and view types as plain ones, lists without any entry as no value."""
    types = pa.types
    if types.is_dictionary(found):
        return plain_type(found.value_type)
    if types.is_large_string(found) or types.is_string_view(found):
        return pa.string()
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        inner = plain_type(found.value_type)
        return inner if types.is_null(inner) else pa.list_(inner)
    return found


def text_type(column: Column, kind: Kind, is_text: bool) -> pa.DataType:
    """The type as which a column of text files is read.

    Args:
        column: the column.
        kind: what all of its values are.
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


def check_usable(found: pa.DataType, file: InputFile, column: Column) -> None:
    """Raises UserError if a column of this type cannot be what the setting says."""
    types = pa.types
    number = types.is_integer(found) or types.is_floating(found)
    moment = number or types.is_timestamp(found) or types.is_date(found)
    value = types.is_integer(found) or types.is_string(found)
    inner = found.value_type if types.is_list(found) else None
    match column.role:
        case "id":
            usable = value or types.is_floating(found) or types.is_decimal(found)
            wanted = "an integer or a string"
        case "time":
            usable, wanted = moment or types.is_string(found), "an integer, a timestamp, a date or an ISO date as text"
        case "label" | "numeric":
            usable, wanted = number or types.is_boolean(found) or types.is_decimal(found), "a number"
        case "timestamp":
            usable, wanted = moment or types.is_string(found), "an integer, a timestamp, a date or an ISO date as text"
        case "categorical" if column.separator is not None:
            usable, wanted = types.is_string(found), "a string, as `separator` is set"
        case "categorical":
            value = value or types.is_floating(found) or types.is_boolean(found)
            usable = value or (inner is not None and (types.is_integer(inner) or types.is_string(inner)))
            wanted = "an integer, a string or a list of them"
        case "vector":
            usable = inner is not None and (types.is_integer(inner) or types.is_floating(inner))
            wanted = f"a list of {column.dim} numbers"
    if not usable:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) is {found}, and must be {wanted}; '
            f"take another column, or convert this one{_conversion(found)}"
        )


def _conversion(found: pa.DataType) -> str:
    """How a column of this type is converted, if one call does it."""
    types = pa.types
    if types.is_binary(found) or types.is_large_binary(found) or types.is_fixed_size_binary(found):
        return ": with pyarrow, column.cast(pa.string()) if the bytes are UTF-8, otherwise decode them, for example as latin-1"
    if types.is_boolean(found):
        return ": with pyarrow, column.cast(pa.int8())"
    return ""


def stored_type(column: Column, agreed: pa.DataType) -> pa.DataType:
    """What reading turns a column into."""
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
