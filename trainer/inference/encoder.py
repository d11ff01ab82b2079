"""Raw events of users, encoded as the dataset of a run encodes them: its columns, types, vocabularies and fits.

The checks and the encoders are those of prepare. So an event has the same ids and numbers as if it had been prepared.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.features.values import InputFeature
from sharding.config import VocabularyIdsConfig
from trainer.data.dataset.features import Decode, Ids, decoder_of, encode
from trainer.data.dataset.grouping import sort_events
from trainer.data.dataset.hashing import whole
from trainer.data.dataset.partition_events import events_before
from trainer.data.dataset.vocabulary import ids_of_numbers, read_values
from trainer.data.logs.column_types import plain_type
from trainer.data.logs.columns import Column, SourceName, columns_of
from trainer.data.logs.config import FeatureSpec, Owner, feature_specs
from trainer.data.logs.contract import Contract
from trainer.data.logs.reading import Rules, check_rows
from trainer.data.logs.values import BlockLocation, plain
from trainer.data.prepare.source import contracts_of
from trainer.data.stream.columns import Column as PackedColumn
from trainer.data.stream.columns import Lists, concatenate, stretches, take
from trainer.data.stream.packed import PackedHistories, PackedImpressions
from trainer.data.stream.row_groups import column_of
from trainer.errors import UserError
from trainer.inference.moments import latest_time, moments_of
from trainer.inference.requests import Histories, PlainHistories

if TYPE_CHECKING:
    from trainer.export.source import ExportSource, NoStoredHistories
    from trainer.inference.stored import StoredHistories
    from trainer.inference.trained_model import TrainedModel


class HistoryEncoder:
    """Encoder of raw events of users for one model, or for the export of one.

    stored: provides the features of users whom the dataset has; None: the dataset of the model.
    """

    def __init__(
        self, trained: "TrainedModel | ExportSource", stored: "StoredHistories | NoStoredHistories | None" = None
    ) -> None:
        self._trained = trained
        self._stored = stored if stored is not None else _stored_histories(trained)
        self._logs = trained.job.config.logs
        self._contracts = contracts_of(trained.manifest, columns_of(self._logs))
        self._specs = {(spec.owner, spec.name): spec for spec in feature_specs(self._logs)}

    @property
    def needs_times(self) -> bool:
        """Return whether events need times: for a model that uses them, and for rankers, which score at a time."""
        trained = self._trained
        return trained.catalogue.inputs.clock is not None or trained.manifest.task == "ranking"

    def type_of(self, column: str) -> pa.DataType:
        """Return the type of "user" or "item" in the dataset."""
        return self._contracts["logs"].stored(column)

    def empty_columns(self) -> dict[str, pa.Array]:
        """Return the columns of events as in the logs, without any event."""
        contract = self._contracts["logs"]
        return {column.source: pa.nulls(0, contract.stored(column.name)) for column in contract.columns}

    def encode(
        self,
        events: pa.Table,
        users: pa.Table | None = None,
        at: Any = None,
        first: pa.Array | None = None,
        anonymous: bool = False,
    ) -> Histories:
        """Encode the events of some users.

        Args:
            events: columns as in the logs: user, item, time, and the features of events that the model uses. The
                column of times may be missing if the model uses no times; the order of rows is then that of the events.
            users: columns as in the files of users. Users without a row have the features that the dataset has of them, or
                none.
            at: time of the requests, or of each by user, see `moments_of`; later events are left out. None: see
                `PlainHistories.asked`.
            first: users who come first, with an empty history if they have no events. The others follow as they appear.
            anonymous: whether the users are no users of the dataset, whatever their values.

        Raises:
            UserError: a column is missing or has another type than in the logs, or a value is null. The message names it.
        """
        features = self._trained.catalogue.inputs.events
        required = ["user", "item", *(["time"] if self.needs_times else []), *_columns("event", features)]
        table = self._checked("logs", events, "histories", required, optional="time")
        users_of_events = whole(table.column("user"))
        names = pc.unique(users_of_events if first is None else pa.concat_arrays([first, users_of_events]))
        codes = pc.index_in(users_of_events, value_set=names).to_numpy().astype(np.int64)
        times = table.column("time").to_numpy() if "time" in table.column_names else np.arange(table.num_rows)
        items = whole(table.column("item"))
        duplicates = items.dictionary_encode().indices.to_numpy().astype(np.int64)
        drop = self._logs.duplicates == "drop" and "time" in table.column_names
        kept = sort_events(codes, times.astype(np.int64), duplicates, len(names), drop)
        order = pa.array(kept.order)
        ids = self._trained.item_ids(items.take(order))
        encoded = {f.name: self._encoded("event", f, table.column(f"event.{f.name}").take(order)) for f in features}
        own_times = times[kept.order].astype(np.int64) if "time" in table.column_names else None
        of_users = self._user_features(names, users, anonymous)
        histories = PlainHistories(names, kept.offsets, ids, own_times, encoded, of_users)
        moments = moments_of(at, names, self._trained.manifest, self._trained.model.config)
        return histories.asked(moments, latest_time(self._trained.manifest))

    def with_impressions(self, histories: Histories, impressions: pa.Table) -> tuple[PackedHistories, np.ndarray]:
        """Return histories with impressions to score, and the row of `impressions` for each packed impression.

        An impression is scored from the events of its user strictly before its time. Users without events have empty histories.

        Args:
            histories: of the users, as `encode` returns them.
            impressions: columns as in the logs: user, item, time, and the features of impressions that the model uses.
        """
        features = self._trained.catalogue.inputs.candidates
        required = ["user", "item", "time", *_columns("event", features)]
        table = self._checked("logs", impressions, "impressions", required)
        place = pc.index_in(whole(table.column("user")), value_set=histories.users)
        if place.null_count:
            raise ValueError("every user of the impressions must have a history, which may be empty")
        rows = place.to_numpy().astype(np.int64)
        times = table.column("time").to_numpy().astype(np.int64)
        order = np.lexsort((np.arange(rows.size), times, rows))
        rows, times = rows[order], times[order]
        packed = histories.packed
        assert packed.times is not None
        places, _ = stretches(packed.starts, packed.starts + histories.lengths)
        owners = np.repeat(np.arange(histories.lengths.size), histories.lengths)
        before = events_before(rows, times, owners, packed.times[places])
        bounds = np.searchsorted(rows, np.arange(packed.starts.size + 1))
        taken = table.take(pa.array(order))
        shown = PackedImpressions(
            items=self._trained.item_ids(whole(taken.column("item"))).astype(np.int32),
            times=times,
            history_end=before,
            labels={name: np.zeros(rows.size, np.float32) for name in self._logs.labels},
            features={f.name: self._encoded("event", f, taken.column(f"event.{f.name}")) for f in features},
            starts=bounds[:-1].astype(np.int64),
            ends=bounds[1:].astype(np.int64),
        )
        return replace(packed, impressions=shown), order

    def candidates(self, items: pa.Table) -> tuple[pa.Array, dict[str, PackedColumn]]:
        """Return candidates of a ranker as values of the logs, and their features by name.

        items: columns as in the logs: item, and the features of impressions that the model uses.
        """
        features = self._trained.catalogue.inputs.candidates
        table = self._checked("logs", items, "items", ["item", *_columns("event", features)])
        columns = {f.name: self._encoded("event", f, table.column(f"event.{f.name}")) for f in features}
        return whole(table.column("item")), columns

    def _user_features(self, names: pa.Array, users: pa.Table | None, anonymous: bool) -> dict[str, PackedColumn]:
        """Return the features of users: of the given table, else of the dataset unless `anonymous`, else missing ones."""
        features = self._trained.catalogue.inputs.users
        if not features:
            return {}
        table = None
        place = pa.nulls(len(names), pa.int32())
        if users is not None:
            table = self._checked("users", users, "user_features", ["user", *_columns("user", features)])
            place = pc.index_in(names, value_set=whole(table.column("user")), skip_nulls=True)
        columns = {}
        for feature in features:
            stored = self._contracts["users"].stored(f"user.{feature.name}")
            values = pa.nulls(len(names), stored) if table is None else table.column(f"user.{feature.name}").take(place)
            columns[feature.name] = self._encoded("user", feature, values)
        if anonymous:
            return columns
        rows = np.where(place.is_null().to_numpy(zero_copy_only=False), self._stored.rows_of(names), -1)
        known = np.flatnonzero(rows >= 0)
        if not known.size:
            return columns
        of_dataset = self._stored.user_features(rows[known])
        source = np.arange(len(names))
        source[known] = len(names) + np.arange(known.size)
        return {name: take(concatenate([column, of_dataset[name]]), source) for name, column in columns.items()}

    def _encoded(self, owner: Owner, feature: InputFeature, values: pa.ChunkedArray | pa.Array) -> PackedColumn:
        """Return the values of a feature as the reader of a dataset returns them."""
        spec = self._specs[(owner, feature.name)]
        column = column_of(pa.chunked_array([encode(spec, values, self._ids(spec)).column]))
        decode = self._decoders[f"{owner}.{feature.name}"]
        if isinstance(column, Lists):
            return replace(column, values=decode(column.values))
        return decode(column)

    @cached_property
    def _decoders(self) -> dict[str, Decode]:
        manifest = self._trained.manifest
        ids: Any = None
        if not manifest.ids_are_numbers:
            ids = ids_of_numbers(self._trained.job.dataset_dir, manifest, self._trained.catalogue.scores_unknown)
        return decoder_of(manifest.features, ids)

    @cached_property
    def _vocabularies(self) -> dict[str, pa.Array]:
        """Values by table, of features that the model uses."""
        folder, manifest = self._trained.job.dataset_dir, self._trained.manifest
        return {table: read_values(folder, manifest, table) for table in manifest.vocabularies}

    def _ids(self, spec: FeatureSpec) -> Mapping[str, Ids]:
        if spec.table is None:
            return {}
        config = self._trained.job.config.tables[spec.table].ids
        if spec.table == "item":  # the catalogue has numbers, whatever the item table does with ids
            config = VocabularyIdsConfig()
        return {spec.table: Ids(config, self._vocabularies.get(spec.table))}

    def _checked(
        self, source: SourceName, given: pa.Table, name: str, required: list[str], optional: str | None = None
    ) -> pa.Table:
        """Return columns of a table by their names in the dataset, in the types of the logs.

        Args:
            source: the files that have such columns.
            given: the table.
            name: of the table in messages.
            required: names of the columns in the dataset.
            optional: name of a column that is returned if the table has it.
        """
        contract = self._contracts[source]
        wanted: list[Column] = []
        for column in contract.columns:
            if column.source in given.column_names and column.name in (*required, optional):
                wanted.append(column)
            elif column.name in required:
                raise UserError(
                    f'{name}: no column "{column.source}" ({column.setting}), which the model needs; there are '
                    f"{', '.join(given.column_names)}"
                )
        where = BlockLocation(name, 0)
        raw = {}
        for column in wanted:
            values = whole(given.column(column.source))
            raw[column.name] = pa.chunked_array([plain(values, column, plain_type(values.type), where)])
        own = Contract(tuple(wanted), tuple(column.type for column in raw.values()))
        block = check_rows(pa.table(raw), where, own, Rules(self._logs.negative_ids == "keep"))
        if block.rejected.num_rows:
            first = block.rejected.slice(0, 1).to_pylist()[0]
            raise UserError(
                f"{name} row {first['row']}: {first['reason']} ({block.rejected.num_rows} such rows); leave these rows out"
            )
        for column in wanted:
            _check_type(name, column, block.events.column(column.name).type, contract.stored(column.name))
        return block.events


def _stored_histories(trained: Any) -> "StoredHistories":
    """Return the histories of the dataset of a model. An export needs none of the modules that read them."""
    from trainer.inference.stored import StoredHistories

    return StoredHistories(trained)


def _columns(owner: Owner, features: tuple[InputFeature, ...]) -> list[str]:
    """Return the names of features as columns of the dataset."""
    return [f"{owner}.{feature.name}" for feature in features]


def _check_type(name: str, column: Column, given: pa.DataType, stored: pa.DataType) -> None:
    """Raise UserError if values of a column cannot be compared with those of the dataset."""
    if given != stored and not pa.types.is_null(given) and not pa.types.is_null(stored):
        raise UserError(
            f'{name}: column "{column.source}" ({column.setting}) holds {given}, and the logs of the model hold {stored}, so no '
            "value can match; convert the column"
        )
