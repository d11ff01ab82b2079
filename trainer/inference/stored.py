"""Histories that are stored in the dataset of a run, by user."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import Column, stretches, take_all
from trainer.data.stream.packed import PackedHistories, joined
from trainer.data.stream.row_groups import RowGroupReader
from trainer.inference.moments import latest_time
from trainer.inference.requests import Histories, PlainHistories
from trainer.inference.trained_model import TrainedModel


def histories_in(
    packed: PackedHistories, rows: np.ndarray, users: pa.Array, at: np.ndarray | None, latest: int
) -> Histories:
    """Return rows of packed row groups as whole histories, held-out events included, with requests.

    Args:
        packed: packed row groups, with at least one row.
        rows: (B,) rows among them; -1 for an empty history, which has the features of some other user.
        users: (B,) the users, as in the logs.
        at: as for `PlainHistories.asked`.
        latest: as for `PlainHistories.asked`.
    """
    known = np.maximum(rows, 0)
    starts = packed.starts[known]
    places, offsets = stretches(starts, np.where(rows >= 0, packed.ends[known], starts))
    histories = PlainHistories(
        users,
        offsets,
        packed.items.take(places),
        None if packed.times is None else packed.times.take(places),
        take_all(packed.features, places),
        take_all(packed.user_features, known),
    )
    return histories.asked(at, latest)


class StoredHistories:
    """Reader of the histories of some users. The first call reads the users of all rows."""

    def __init__(self, trained: TrainedModel) -> None:
        # Times are needed to leave out what is later than a request.
        columns = replace(columns_for(trained.catalogue, users=True), times=True)
        self._reader = RowGroupReader(trained.job.dataset_dir, trained.manifest, columns)
        self._latest = latest_time(trained.manifest)

    @cached_property
    def users(self) -> pa.Array:
        """All users of the dataset, in the order of its rows."""
        return self._reader.users()

    def rows_of(self, users: pa.Array) -> np.ndarray:
        """Return the row of each user in the dataset, (n,) int64; -1 for a user who is not there."""
        if users.type != self.users.type:  # an empty list of users has no type
            return np.full(len(users), -1, np.int64)
        rows: np.ndarray = pc.fill_null(pc.index_in(users, value_set=self.users), -1).to_numpy().astype(np.int64)
        return rows

    def read(self, users: pa.Array, rows: np.ndarray, at: np.ndarray | None = None) -> Histories:
        """Return the whole histories of users, held-out events included.

        Args:
            users: (B,) values as in the logs.
            rows: (B,) their rows in the dataset; -1 for an empty history.
            at: (B,) times of the requests; later events are left out. None: see `PlainHistories.asked`.
        """
        whole, place = self._packed(np.maximum(rows, 0))
        return histories_in(whole, np.where(rows >= 0, place, -1), users, at, self._latest)

    def user_features(self, rows: np.ndarray) -> dict[str, Column]:
        """Return the features of users, with an entry for each of the rows."""
        whole, place = self._packed(rows)
        return take_all(whole.user_features, place)

    def _packed(self, rows: np.ndarray) -> tuple[PackedHistories, np.ndarray]:
        """Return the row groups of some rows, joined, and the place of each row in them."""
        first_rows = self._reader.first_rows
        group_of = np.searchsorted(first_rows, rows, side="right") - 1
        groups = np.unique(group_of) if rows.size else np.zeros(1, np.int64)
        packed = self._reader.read(groups.tolist())
        first = np.concatenate(([0], np.cumsum([self._reader.group_rows[group] for group in groups])))
        place = first[np.searchsorted(groups, group_of)] + rows - first_rows[group_of]
        return joined([packed[group] for group in groups.tolist()]), place
