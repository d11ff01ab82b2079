"""The types that columns come in, which of them are usable for what, and what reading turns each into."""

import pyarrow as pa

from trainer.errors import UserError
from trainer.logs.columns import Column
from trainer.logs.files import InputFile


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


def meant_type(inferred: pa.DataType, column: Column) -> pa.DataType:
    """Text files say no types: what looks like a number or a moment may be meant as text."""
    moment = pa.types.is_temporal(inferred) and column.role in ("id", "categorical")
    return pa.string() if moment or column.separator is not None else inferred


def check_usable(found: pa.DataType, file: InputFile, column: Column) -> None:
    types = pa.types
    number = types.is_integer(found) or types.is_floating(found)
    moment = number or types.is_timestamp(found) or types.is_date(found)
    value = types.is_integer(found) or types.is_string(found)
    inner = found.value_type if types.is_list(found) else None
    match column.role:
        case "id":
            usable, wanted = value, "an integer or a string"
        case "time":
            usable, wanted = moment, "an integer, a timestamp or a date"
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
            "take another column, or convert this one"
        )


def stored_type(column: Column, agreed: pa.DataType) -> pa.DataType:
    """What reading turns a column into."""
    types = pa.types
    text = types.is_string(agreed)
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
                return pa.list_(pa.string() if types.is_string(agreed.value_type) else pa.int64())
            return pa.string() if text else pa.int64()
