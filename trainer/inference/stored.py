"""Histories that are stored in the dataset of a run, by user."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import stretches, take_all
from trainer.data.stream.packed import joined
from trainer.data.stream.row_groups import RowGroupReader
from trainer.inference.requests import Histories, with_requests
from trainer.inference.trained_model import TrainedModel


class StoredHistories:
    """Reader of the histories of some users. The first call reads the users of all row groups."""

    def __init__(self, trained: TrainedModel) -> None:
        columns = columns_for(trained.catalogue, users=True)
        if trained.manifest.task == "ranking":  # impressions are compared with the times of events
            columns = replace(columns, times=True)
        self._reader = RowGroupReader(trained.job.dataset_dir, trained.manifest, columns)

    @cached_property
    def users(self) -> pa.Array:
        """All users of the dataset, in the order of its rows."""
        groups = range(len(self._reader.group_rows))
        return pa.concat_arrays([self._reader.read([group])[group].users for group in groups])

    def rows_of(self, users: pa.Array) -> np.ndarray:
        """Return the row of each user in the dataset, (n,) int64; -1 for a user who is not there."""
        rows: np.ndarray = pc.fill_null(pc.index_in(users, value_set=self.users), -1).to_numpy().astype(np.int64)
        return rows

    def read(self, rows: np.ndarray, at: np.ndarray | int | None = None) -> Histories:
        """Return the whole histories of rows of the dataset, held-out events included.

        Args:
            rows: (B,) rows.
            at: time of the requests, in the unit of the dataset; by default the latest time of these histories.
        """
        group_of = np.searchsorted(self._reader.first_rows, rows, side="right") - 1
        groups = np.unique(group_of)
        packed = self._reader.read(groups.tolist())
        whole = joined([packed[group] for group in groups.tolist()])
        first = np.concatenate(([0], np.cumsum([self._reader.group_rows[group] for group in groups])))
        place = first[np.searchsorted(groups, group_of)] + rows - self._reader.first_rows[group_of]
        places, offsets = stretches(whole.starts[place], whole.ends[place])
        assert whole.users is not None
        return with_requests(
            whole.users.take(pa.array(place)),
            offsets,
            whole.items.take(places),
            None if whole.times is None else whole.times.take(places),
            take_all(whole.features, places),
            take_all(whole.user_features, place),
            at,
        )
