"""The part of exported models that both tasks share: the program, and what encodes raw histories for it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shoal.loaded.given import as_table
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.export.folder import Manifest
    from trainer.inference.requests import Histories


class ExportedModel:
    """An exported model of either task."""

    def __init__(self, folder: Path, manifest: "Manifest") -> None:
        from trainer.export import folder as export_folder
        from trainer.export.run_program import load_program
        from trainer.export.source import NoStoredHistories, read_dynamic, read_source
        from trainer.inference.encoder import HistoryEncoder

        self.manifest = manifest
        self._form = replace(export_folder.form_of(manifest.form), dynamic=read_dynamic(folder))
        self._source = read_source(folder, self._form, manifest.scores_unknown)
        self._names = tuple(entry.name for entry in manifest.inputs)
        self._run = load_program(folder / export_folder.PROGRAM)
        self._logs = self._source.job.config.logs
        self._encoder = HistoryEncoder(self._source, NoStoredHistories())

    @property
    def items(self) -> pa.Array:
        """Items that can be scored, as in the logs."""
        return self._source.item_values

    def _encode(self, given: Any, users: Any, at: Any, first: pa.Array | None = None) -> "Histories":
        table = given
        if isinstance(given, Mapping | list | tuple):
            table, names = self._table_of(given)
            first = names if first is None else pa.concat_arrays([names, first])
        of_users = None if users is None else as_table(users, "user_features")
        return self._encoder.encode(as_table(table, "histories"), of_users, at, first)

    def _table_of(self, given: Any) -> tuple[pa.Table, pa.Array]:
        """Return lists of items by user as a table of events, and all users."""
        if self._encoder.needs_times:
            raise UserError(
                "histories: the model uses the times of events, and lists of items have none; give a table with the columns "
                f'"{self._logs.user}", "{self._logs.item}" and "{self._logs.time}"'
            )
        names, lengths, items = self._lists_of(given)
        table = pa.table({self._logs.user: names.take(pa.array(owners_of(lengths))), self._logs.item: items})
        return table, names

    def _lists_of(self, given: Any) -> tuple[pa.Array, np.ndarray, pa.Array]:
        """Return the users of lists of items, the length of each list, and the items one after another."""
        by_user: Mapping[Any, Sequence[Any]] = given if isinstance(given, Mapping) else dict(enumerate(given))
        if isinstance(given, Mapping):
            names = pa.array(by_user.keys(), self._encoder.type_of("user"))
        else:
            names = pa.array(range(len(given)), pa.int64()).cast(self._encoder.type_of("user"))
        lengths = np.asarray([len(items) for items in by_user.values()], np.int64)
        items = [item for history in by_user.values() for item in history]
        return names, lengths, pa.array(items, self._encoder.type_of("item"))


def owners_of(lengths: np.ndarray) -> np.ndarray:
    """Return the number of the owner of each entry of lists of these lengths."""
    return np.repeat(np.arange(lengths.size), lengths)
