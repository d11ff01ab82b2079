"""Files of users and items that the user gives, in one form. Imports no torch.

Parquet and CSV files have a column with the name of the logs', or a single column of any name. Any other file is text with one
value per line.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from trainer.data.dataset.hashing import whole
from trainer.data.logs.column_types import plain_type
from trainer.errors import UserError, first_line
from trainer.storage.parquet import csv_source, read_parquet


def read_given(path: Path, column: str, wanted: pa.DataType, option: str) -> pa.Table:
    """Read a file of users or items. Its column gets the name and the type of the logs; other columns stay.

    Args:
        path: the file.
        column: name of the column in the logs.
        wanted: type of the column in the dataset.
        option: name of the option, for messages.

    Raises:
        UserError: the file cannot be read, has no such column, or values of another type, or nulls.
    """
    try:
        match path.suffix:
            case ".parquet":
                table = read_parquet(path)
            case ".csv":
                names = pacsv.read_csv(csv_source(path), parse_options=pacsv.ParseOptions()).column_names
                name = column if column in names else names[0]
                table = pacsv.read_csv(
                    csv_source(path), convert_options=pacsv.ConvertOptions(column_types={name: pa.string()})
                )
            case _:
                lines = path.read_text(encoding="utf-8").splitlines()
                table = pa.table({column: pa.array([line.strip() for line in lines if line.strip()], pa.string())})
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{option} {path}: cannot be read ({first_line(error)}); give a Parquet, CSV or text file"
        ) from None
    if column not in table.column_names:
        if table.num_columns != 1:
            raise UserError(
                f'{option} {path}: no column "{column}", and several others: {", ".join(table.column_names)}; rename the right one'
            )
        table = table.rename_columns([column])
    values = _typed(whole(table.column(column)), wanted, f'{option} {path}: column "{column}"')
    if values.null_count:
        raise UserError(f'{option} {path}: column "{column}" has {values.null_count} nulls; leave them out')
    if not len(values):
        raise UserError(f"{option} {path}: has no values")
    return table.set_column(table.column_names.index(column), column, values)


def listed(values: list[str], wanted: pa.DataType, option: str) -> pa.Array:
    """Return values of an option in the type of the dataset. Raises UserError for values of another type."""
    return _typed(pa.array(values, pa.string()), wanted, f"{option}: its values")


def _typed(values: pa.Array, wanted: pa.DataType, where: str) -> pa.Array:
    """Convert values to the type of the dataset: numbers that are text, and kinds of integers and of text."""
    types = pa.types
    own = plain_type(values.type)
    if types.is_string(own) or (types.is_integer(own) and types.is_integer(wanted)):
        try:
            return values.cast(own).cast(wanted)
        except pa.ArrowInvalid as error:
            raise UserError(f"{where} must hold {wanted}, as the logs do ({first_line(error)})") from None
    raise UserError(f"{where} holds {values.type}, and the logs of the model {wanted}; convert the column")


def distinct(table: pa.Table, column: str) -> pa.Table:
    """Return the first row of each value of a column."""
    values = whole(table.column(column))
    _, first = np.unique(values.dictionary_encode().indices.to_numpy(), return_index=True)
    return table.take(pa.array(np.sort(first)))


def unknown_values(values: pa.Array, known: pa.Array) -> pa.Array:
    """Return the values that are not among the known ones."""
    return values.filter(pc.invert(pc.is_in(values, value_set=known)))
