"""What a converter hands to the writer: named tables of record batches that are read only when they are written."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

INT, FLOAT, FLAG, TEXT = pa.int64(), pa.float64(), pa.int8(), pa.string()
TEXTS = pa.list_(pa.field("element", pa.string()))


@dataclass(frozen=True)
class Table:
    """A table to be written as NAME.parquet, or, if numbered, as NAME-00000.parquet and so on.

    `batches` may be gone through once, and no sooner than those of the tables before it in the list were.
    """

    name: str
    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]
    numbered: bool = False


def events(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Table:
    """The log itself."""
    assert schema.names[:3] == ["user_id", "item_id", "time"]
    return Table("events", schema, batches, numbered=True)


def schema_of(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


def record_batch(schema: pa.Schema, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """The columns in the order of the schema; each must have its type already, or one that casts without loss."""
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)
