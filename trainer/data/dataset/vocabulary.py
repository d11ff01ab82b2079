"""Raw values of ids, read back from a dataset."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.storage.files import refusal_cause
from trainer.storage.parquet import open_parquet, read_parquet


@dataclass(frozen=True)
class Vocabulary:
    """Items by id."""

    # Values as in the logs; entry k is id k + 1.
    values: pa.Array
    # (num_items,) int64 training events.
    train_events: np.ndarray

    @property
    def num_items(self) -> int:
        """Number of items."""
        return int(self.train_events.size)


def read_vocabulary(folder: Path, manifest: Manifest, with_unknown: bool = False) -> Vocabulary:
    """Read the items in the order of their ids: the known ones, and with `with_unknown` the others after them."""
    table = _read_by_id(folder, manifest, ["value", "num_train_events"], with_unknown)
    return Vocabulary(whole(table.column("value")), table.column("num_train_events").to_numpy())


def read_train_events(folder: Path, manifest: Manifest) -> np.ndarray:
    """Return the training events of all items, (num_items,) by id: of the known ones, then of the others."""
    events: np.ndarray = _read_by_id(folder, manifest, ["num_train_events"], True).column(0).to_numpy()
    return events


def _read_by_id(folder: Path, manifest: Manifest, columns: list[str], with_unknown: bool) -> pa.Table:
    """Return columns of the vocabulary of items, a row per id from 1 on."""
    table = _read(folder / manifest.vocabulary.path, columns)
    if manifest.ids_are_numbers:
        return table
    ids = ids_of_numbers(folder, manifest, with_unknown)[1:]
    order = np.argsort(ids, kind="stable")
    return table.take(pa.array(order[np.searchsorted(ids[order], 1) :]))


def read_values(folder: Path, manifest: Manifest, table: str) -> pa.Array:
    """Read the values of a table's ids, or of the catalogue's numbers ("item"): entry k is id or number k + 1."""
    return whole(_read(folder / manifest.vocabularies[table].path, ["value"]).column("value"))


def iterate_values(folder: Path, manifest: Manifest, table: str) -> Iterator[tuple[int, pa.Array]]:
    """Yield what `read_values` returns in pieces, each with the id or number of its first value. Raises UserError like it."""
    path = folder / manifest.vocabularies[table].path
    first = 1
    try:
        file = open_parquet(path, page_checksum_verification=True)
        for group in range(file.num_row_groups):
            values = whole(file.read_row_group(group, columns=["value"], use_threads=False).column("value"))
            yield first, values
            first += len(values)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def ids_of_numbers(folder: Path, manifest: Manifest, with_unknown: bool = False) -> np.ndarray:
    """Return the id of every number of the catalogue, including number 0 (no item): (catalogue + 1,) int32.

    Items that the training part does not know have id 0, or with `with_unknown` the ids after the known ones.
    """
    ids = _read(folder / manifest.vocabulary.path, ["id"]).column("id").to_numpy().astype(np.int32)
    if with_unknown:
        unknown = ids == 0
        ids = np.where(unknown, ids.max(initial=0) + np.cumsum(unknown), ids).astype(np.int32)
    return np.concatenate((np.zeros(1, np.int32), ids))


def _read(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a vocabulary, with a check of its pages. Raises UserError naming the file if it cannot be read."""
    try:
        return read_parquet(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if (cause := refusal_cause(error)) is not None:
        return UserError(f"dataset {path}: cannot be read: {cause}")
    return UserError(
        f"dataset {path}: cannot be read ({error}); the file is damaged, missing or was changed: delete the dataset folder "
        "and run `shoal prepare`"
    )
