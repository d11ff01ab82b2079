"""Items of a file as candidates of an evaluation, and the candidates of every setting in words. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError, first_line
from trainer.storage.objects.paths import path_of
from trainer.storage.parquet import csv_source, read_parquet

ALL, AVAILABLE = "all", "available"


@dataclass(frozen=True)
class ListedItems:
    """Items of a file, found in a dataset."""

    ids: np.ndarray
    """Ids of the items that the model scores, ascending."""
    num_unknown: int
    """Values of the file that are no such items."""


def listed_items(path: Path, folder: Path, manifest: Manifest, unknown: bool) -> ListedItems:
    """Find the items of a file. Raises UserError if it cannot be read, or the model knows none of them."""
    vocabulary = read_vocabulary(folder, manifest, with_unknown=unknown).values
    values = pc.unique(_read_column(path).drop_null())
    try:
        values = values.cast(vocabulary.type)
    except pa.ArrowInvalid:  # such as names, where the logs have numbers: compared as text, none of these is known
        values = values.cast(pa.string())
        vocabulary = vocabulary.cast(pa.string())
    ids = pc.index_in(values, value_set=vocabulary)
    known = np.sort(ids.drop_null().to_numpy().astype(np.int64) + 1)
    if not known.size:
        raise UserError(
            f"evaluate.candidates = {str(path)!r}: the model knows none of its {len(values):,} items; write one column with "
            "items as in the logs"
        )
    return ListedItems(known, len(values) - int(known.size))


def _read_column(path: Path) -> pa.ChunkedArray:
    """Read the only column of a Parquet file, of a CSV or TSV file with a header, or of a text file with a value per line."""
    try:
        if path.suffix == ".parquet":
            table = read_parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = pa_csv.read_csv(csv_source(path), parse_options=pa_csv.ParseOptions(delimiter=delimiter))
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            table = pa.table({"item": pa.array([line for line in lines if line], pa.string())})
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.candidates = {str(path)!r}: cannot be read ({first_line(error)})") from None
    if table.num_columns != 1:
        raise UserError(
            f"evaluate.candidates = {str(path)!r}: must have one column, of items, and has {', '.join(table.column_names)}"
        )
    return table.column(0)


def candidates_text(setting: str, folder: Path, manifest: Manifest, unknown: bool) -> str:
    """Return the candidates of a setting in words. Raises UserError as `candidates_of` does."""
    if setting == ALL:
        return "full catalogue"
    if setting == AVAILABLE:
        return "items of the catalogue with an event, of any user, not later than the first target of the query"
    listed = listed_items(path_of(setting), folder, manifest, unknown)
    return f"{listed.ids.size:,} items of {path_of(setting).name} ({listed.num_unknown:,} others in it are unknown)"
