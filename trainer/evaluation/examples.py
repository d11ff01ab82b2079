"""Example users of a report: which users, the end of their histories, and items as people know them. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.dataset.manifest import Manifest
from trainer.data.item_titles import item_titles
from trainer.data.logs.config import LogsConfig
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

FILE = "examples.json"
NUM_USERS = 5
NUM_EVENTS = 8  # most recent events of a history that an example shows
NUM_ITEMS = 5  # recommendations, or impressions, that an example shows


@dataclass(frozen=True)
class History:
    """The events of one user."""

    items: np.ndarray
    """(n,) ids in time order."""
    times: np.ndarray
    """(n,) int64 in the unit of the logs."""
    train_end: int
    """The number of events of the training part; of ranking datasets, of impressions."""
    validation_end: int
    """The same with the validation part."""


def example_places(num_users: int) -> list[int]:
    """Return the places of the users that serve as examples: evenly spread over all, so that nobody chose them."""
    places: list[int] = np.unique(np.linspace(0, num_users - 1, min(NUM_USERS, num_users)).astype(np.int64)).tolist()
    return places


def read_histories(folder: Path, manifest: Manifest, row_ids: Iterable[int], unknown: bool) -> dict[int, History]:
    """Return the histories of rows of a dataset, by row.

    Args:
        folder: the dataset.
        manifest: its manifest.
        row_ids: the rows to read.
        unknown: whether items that the training part does not know have ids after the known ones, instead of 0.
    """
    reader = RowGroupReader(folder, manifest, ColumnSelection(times=True, unknown=unknown))
    histories = {}
    for row_id in row_ids:
        group = int(np.searchsorted(reader.first_rows, row_id, side="right")) - 1
        packed = reader.read([group])[group]
        row = int(row_id - reader.first_rows[group])
        events = slice(int(packed.starts[row]), int(packed.ends[row]))
        assert packed.times is not None
        histories[int(row_id)] = History(
            packed.items[events], packed.times[events], int(packed.train_end[row]), int(packed.validation_end[row])
        )
    return histories


class ItemNames:
    """Items as people know them: the title where there is one, else the value in the logs."""

    def __init__(self, logs: LogsConfig | None, values: pa.Array, ids: Iterable[int]) -> None:
        """Look up names.

        Args:
            logs: the settings of the logs, with the files of items; None gives no titles.
            values: the value in the logs of each id from 1 on.
            ids: the ids that will be asked for; 0 is an unknown item.
        """
        known = sorted({int(number) for number in ids if number > 0})
        raw = values.take(pa.array([number - 1 for number in known], pa.int64())).to_pylist()
        self._values = {number: str(value) for number, value in zip(known, raw, strict=True)}
        self._titles = {} if logs is None else item_titles(logs, self._values.values())

    def __getitem__(self, number: int) -> str:
        """Return the name of an id."""
        value = self._values.get(int(number))
        return "an unknown item" if value is None else self._titles.get(value, value)

    def names(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """Return the names of ids, without empty places (0)."""
        return [self[number] for number in numbers if number > 0]
