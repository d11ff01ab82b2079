"""Conversion of columns to features: lists from text, flags or rows, and codes as text. Without Python loops over rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.public_sets.tables import TEXTS


def split_text(column: pa.Array, separator: str) -> pa.Array:
    """Split "a|b" into ["a", "b"]. Null and empty text become the empty list."""
    empty = pc.equal(pc.fill_null(column, ""), "")
    parts = pc.split_pattern(pc.fill_null(column, ""), separator)
    lengths = pc.if_else(empty, 0, pc.list_value_length(parts))
    kept = parts.filter(pc.invert(empty)).flatten()
    return lists_of(np.asarray(lengths), kept)


def lists_of(lengths: npt.NDArray[np.integer], values: pa.Array) -> pa.Array:
    """Cut consecutive values into lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert offsets[-1] == len(values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values).cast(TEXTS)


def named_flags(flags: list[pa.Array], names: Sequence[str]) -> pa.Array:
    """Return for every row the names of the flags that are set, as a list."""
    matrix = np.stack([np.asarray(pc.fill_null(flag, 0)) for flag in flags], axis=1) != 0
    return lists_of(matrix.sum(axis=1), pa.array(names).take(pa.array(np.nonzero(matrix)[1])))


def code_as_text(column: pa.Array) -> pa.Array:
    """Convert category codes to text. Publishers write such codes as 9 or as 9.0; both become "9".

    Raises pyarrow.ArrowInvalid for a code with a fraction.
    """
    return column.cast(pa.int64()).cast(pa.string())


def year_in_title(title: pa.Array) -> pa.Array:
    """Return 1995 for "Toy Story (1995)"; null if the title does not end with a year."""
    matches = pc.extract_regex(title, r"\((?P<year>\d{4})\)\s*$")
    return matches.flatten()[0].cast(pa.int64())  # unlike `field`, `flatten` applies the nulls of the struct itself
