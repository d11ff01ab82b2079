"""Base of trained models of both tasks: their checkpoint, their items, and histories in any form."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.loaded.given import OnUnknown, as_lists, as_table, as_values, react, some_of
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.inference.requests import Histories
    from trainer.inference.trained_model import TrainedModel


class Model:
    """A trained model in this process. `shoal.load` returns one of its two kinds."""

    def __init__(self, trained: "TrainedModel") -> None:
        from trainer.inference.encoder import HistoryEncoder
        from trainer.inference.stored import StoredHistories

        self._trained = trained
        self._stored = StoredHistories(trained)
        self._encoder = HistoryEncoder(trained, self._stored)
        self._logs = trained.job.config.logs

    @property
    def checkpoint(self) -> Path:
        """Folder of the loaded checkpoint."""
        return self._trained.checkpoint.path

    @property
    def items(self) -> pa.Array:
        """Items that can be scored, as in the logs."""
        return self._trained.item_values

    @property
    def users(self) -> pa.Array:
        """Users of the dataset, as in the logs."""
        return self._stored.users

    def _type_of(self, column: Literal["user", "item"]) -> pa.DataType:
        return self._encoder.type_of(column)

    def _histories(self, given: Any, user_features: Any, at: Any, first: pa.Array | None = None) -> "Histories":
        """Encode histories in any form. `first` are users who come first, with empty histories if they have no events."""
        lists = as_lists(given, "histories")
        users = None if user_features is None else as_table(user_features, "user_features")
        if lists is None:
            return self._encoder.encode(as_table(given, "histories"), users, at, first)
        if self._encoder.needs_times:
            raise UserError(
                "histories: the model uses the times of events, and lists of items have none; give a table with the columns "
                f'"{self._logs.user}", "{self._logs.item}" and "{self._logs.time}"'
            )
        anonymous = not isinstance(given, Mapping)
        numbers = pa.array(np.arange(len(lists)))
        names = (
            numbers.cast(self._type_of("user"))
            if anonymous
            else as_values(list(lists), self._type_of("user"), "histories")
        )
        lengths = np.asarray([len(items) for items in lists.values()], np.int64)
        items = [item for history in lists.values() for item in history]
        table = pa.table(
            {
                self._logs.user: names.take(pa.array(np.repeat(np.arange(lengths.size), lengths))),
                self._logs.item: as_values(items, self._type_of("item"), "histories"),
            }
        )
        encoded = self._encoder.encode(table, users, at, names, anonymous)
        return replace(encoded, packed=replace(encoded.packed, users=numbers)) if anonymous else encoded

    def _given(self, histories: Any, users: Any, user_features: Any, at: Any, on_unknown: OnUnknown) -> "Histories":
        """Return given histories, or those of users of the dataset."""
        if histories is not None and users is not None:
            raise UserError("give either `histories`, or `users` of the dataset")
        if histories is not None:
            given = self._histories(histories, user_features, at)
            events = int(given.lengths.sum())
            if events and given.num_unknown == events and on_unknown != "skip":
                react(
                    "warn", f"histories: the model knows the item of none of the {events} events", "are they its items?"
                )
            return given
        if user_features is not None:
            raise UserError("user_features: stored histories come with those of the dataset; give `histories` as well")
        if users is None:
            return self._of_dataset(self.users, np.arange(len(self.users)), at)
        values = pc.unique(as_values(users, self._type_of("user"), "users"))
        rows = self._stored.rows_of(values)
        unknown = np.flatnonzero(rows < 0)
        if unknown.size:
            message = (
                f"users: {unknown.size} users without a history in the dataset, such as {some_of(values, unknown)}"
            )
            popular = self._trained.manifest.task == "next_item"
            react(on_unknown, message, "they get the most popular items" if popular else "they are left out")
        if on_unknown == "skip" or self._trained.manifest.task == "ranking":
            values, rows = values.filter(pa.array(rows >= 0)), rows[rows >= 0]
        return self._of_dataset(values, rows, at)

    def _of_dataset(self, users: pa.Array, rows: np.ndarray, at: Any) -> "Histories":
        from trainer.inference.moments import moments_of

        trained = self._trained
        return self._stored.read(users, rows, moments_of(at, users, trained.manifest, trained.model.config))

    def _item_ids(self, items: Any, on_unknown: OnUnknown, what: str) -> np.ndarray:
        """Return the ids of items, 0 for unknown ones, after the reaction to those."""
        values = as_values(items, self._type_of("item"), what)
        ids = self._trained.item_ids(values)
        unknown = np.flatnonzero(ids == 0)
        if unknown.size:
            message = f"{what}: {unknown.size} items that the model does not know, such as {some_of(values, unknown)}"
            react(on_unknown, message, "they are left out")
        return ids

    def _lists(self, columns: tuple[str, ...], owners: pa.Array, ids: np.ndarray, scores: np.ndarray) -> pa.Table:
        """Return lists as one row per entry, without empty places."""
        from trainer.inference.lists import list_table

        return list_table(columns, owners, ids, scores, self._trained.item_values)
