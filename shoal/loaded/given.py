"""Conversion of what a caller gives, as tables, lists or dictionaries, to Arrow in the types of the logs."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from trainer.errors import UserError

OnUnknown = Literal["raise", "warn", "skip"]


def as_table(given: Any, name: str) -> pa.Table:
    """Return an Arrow table of a table of Arrow or pandas. Raises UserError for anything else."""
    match given:
        case pa.Table():
            return given
        case pa.RecordBatch():
            return pa.Table.from_batches([given])
        case _ if hasattr(given, "to_dict") and hasattr(given, "columns"):
            return pa.Table.from_pandas(given, preserve_index=False)
        case _:
            raise UserError(f"{name}: must be a table of Arrow or pandas, not {type(given).__name__}")


def as_values(given: Any, wanted: pa.DataType, name: str) -> pa.Array:
    """Return users or items as an array of the type of the logs. Raises UserError for values of another type, and for nulls.

    Args:
        given: values in any sequence.
        wanted: the type of the logs.
        name: of the values in messages.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UserError(f"{name}: must be a list of values, not {type(given).__name__}")
    try:
        if isinstance(given, pa.ChunkedArray):
            given = given.combine_chunks()
        if isinstance(given, pa.Array):
            plain = given.cast(given.type.value_type) if pa.types.is_dictionary(given.type) else given
            values = pa.array(plain, wanted) if plain.type == wanted else _exactly(plain, wanted)
        else:
            values = pa.array([value.item() if isinstance(value, np.generic) else value for value in given], wanted)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise UserError(f"{name}: must be of the type {wanted}, as in the logs of the model ({error})") from None
    if values.null_count:
        raise UserError(f"{name}: {values.null_count} values are null; leave them out")
    return values


def _exactly(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Convert between kinds of text or of integers. Raises ArrowTypeError for other types, such as numbers for text."""
    types = pa.types
    text = types.is_string(wanted) and (types.is_large_string(values.type) or types.is_string_view(values.type))
    if text or types.is_null(values.type) or (types.is_integer(wanted) and types.is_integer(values.type)):
        return values.cast(wanted)
    raise pa.ArrowTypeError(f"values of the type {values.type}")


def as_lists(given: Any, name: str) -> Mapping[Any, Any] | None:
    """Return lists of items by user; lists without users are those of the users 0, 1, 2 and so on. None for a table."""
    if isinstance(given, Mapping):
        return given
    if not isinstance(given, list | tuple):
        return None
    for place, entry in enumerate(given):
        if isinstance(entry, str | bytes) or not isinstance(entry, Iterable):
            raise UserError(
                f"{name}: entry {place} is {entry!r}, and must be a list of items; for a single history give [[...]]"
            )
    return dict(enumerate(given))


def react(on_unknown: OnUnknown, message: str, consequence: str) -> None:
    """Raise UserError, warn, or do nothing about values that a model does not know."""
    match on_unknown:
        case "raise":
            raise UserError(f'{message}; leave them out, or set on_unknown="warn" or "skip"')
        case "warn":
            warnings.warn(f"{message}; {consequence}", stacklevel=5)
        case "skip":
            pass
        case _:
            raise UserError(f'on_unknown = {on_unknown!r}: must be "raise", "warn" or "skip"')


def check_count(k: Any) -> int:
    """Return the number of recommendations. Raises UserError if it is no positive integer."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise UserError(f"k = {k!r}: must be an integer of at least 1")
    return int(k)


def some_of(values: pa.Array, places: np.ndarray) -> str:
    """Return the first values at these places as text, for messages."""
    return ", ".join(repr(value) for value in values.take(pa.array(places[:3])).to_pylist())
