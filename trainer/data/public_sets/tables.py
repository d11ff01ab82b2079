"""Tables that a converter passes to the writer: named tables of record batches, which are read only when they are written."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

INT, FLOAT, FLAG, TEXT = pa.int64(), pa.float64(), pa.int8(), pa.string()
TEXTS = pa.list_(pa.field("element", pa.string()))


@dataclass(frozen=True)
class Table:
    """A table to write as NAME.parquet or, if numbered, as NAME-00000.parquet and so on."""

    # Name of the table.
    name: str
    # Its schema.
    schema: pa.Schema
    # Its batches. They can be iterated once, and only after those of the tables before it in the list.
    batches: Iterable[pa.RecordBatch]
    # Whether it is split into numbered files.
    numbered: bool = False


def events(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Table:
    """Return the table of the events."""
    assert schema.names[:3] == ["user_id", "item_id", "time"]
    return Table("events", schema, batches, numbered=True)


def schema_of(**types: pa.DataType) -> pa.Schema:
    """Return a schema of these columns."""
    return pa.schema(list(types.items()))


def record_batch(schema: pa.Schema, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """Return the columns in the order of the schema. Each must have its type, or one that casts without loss."""
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)
