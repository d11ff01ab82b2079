"""Reader of a dataset's catalogue for a model: table rows of items, their features by id, and further inputs.

Ids from 1 on are the items that the training part knows. If items have features, the other items follow. For tables
with dynamic ids the features hold raw ids, which get rows when a batch is trained (trainer.global_batch.dynamic_ids).
"""

from pathlib import Path
from typing import Any

import numpy as np

from models.config import ModelConfig
from models.features.catalogue import Catalogue, IdColumn
from models.features.inputs import ModelInputs
from models.features.time import Clock
from models.features.values import InputFeature
from sharding.config import DynamicIdsConfig, HashIdsConfig, TableConfig
from trainer.data.dataset.features import MISSING, decoder_of, hash_rows
from trainer.data.dataset.manifest import UNKNOWN_ID, Feature, Manifest
from trainer.data.dataset.vocabulary import ids_of_numbers, iterate_values
from trainer.data.inputs import UsedFeatures, features_of, ticks_per_second
from trainer.data.stream.columns import Lists, take
from trainer.data.stream.row_groups import ColumnSelection, column_of
from trainer.storage.parquet import read_parquet


def read_catalogue(folder: Path, manifest: Manifest, tables: dict[str, TableConfig], model: ModelConfig) -> Catalogue:
    """Read the catalogue. Without item features, and with a row for every id, nothing is read.

    Raises UserError if the model needs something that the dataset does not have.
    """
    used = features_of(manifest, model.inputs)
    features = used.items
    inputs = _inputs(manifest, used, tables, model)
    hashed = isinstance(tables["item"].ids, HashIdsConfig)
    num_known = manifest.num_item_rows
    if not features and not hashed:
        return Catalogue(num_known, num_known, inputs=inputs)
    ids = ids_of_numbers(folder, manifest, with_unknown=bool(features))
    num_ids = int(ids.max(initial=0)) + 1
    rows = np.arange(num_ids)
    rows[num_known:] = 0
    if isinstance(tables["item"].ids, HashIdsConfig):
        for first, values in iterate_values(folder, manifest, "item"):
            of_values = ids[first : first + len(values)]
            known = (of_values > 0) & (of_values < num_known)
            rows[of_values[known]] = hash_rows(values, tables["item"].ids.num_rows)[known]
    number_of_id = np.zeros(num_ids, np.int64)
    number_of_id[ids] = np.arange(ids.size)
    number_of_id[0] = 0
    return Catalogue(
        num_known=num_known,
        num_ids=num_ids,
        rows=rows if hashed or num_ids > num_known else None,
        has_row=np.arange(num_ids) < num_known if num_ids > num_known else None,
        features=tuple(_input_feature(feature, tables) for feature in features),
        columns=_read_columns(folder, manifest, tables, features, ids, number_of_id),
        inputs=inputs,
    )


def columns_for(catalogue: Catalogue, users: bool = False) -> ColumnSelection:
    """Return the columns that a reader must read for this model.

    Args:
        catalogue: the catalogue.
        users: whether the raw ids of users are read too.
    """
    inputs = catalogue.inputs
    owned = (("event", inputs.events), ("user", inputs.users), ("impression", inputs.candidates))
    columns = [f"{owner}.{feature.name}" for owner, features in owned for feature in features]
    return ColumnSelection(
        users=users,
        times=inputs.clock is not None,
        features=frozenset(columns),
        unknown=catalogue.scores_unknown,
    )


def _inputs(manifest: Manifest, used: UsedFeatures, tables: dict[str, TableConfig], model: ModelConfig) -> ModelInputs:
    clock = None
    if model.uses_time:
        clock = Clock(ticks_per_second(manifest, model), tuple(model.inputs.time), model.inputs.request_time)
    events, users, candidates = (
        tuple(_input_feature(f, tables) for f in features) for features in (used.events, used.users, used.candidates)
    )
    return ModelInputs(events, users, clock, candidates)


def _input_feature(feature: Feature, tables: dict[str, TableConfig]) -> InputFeature:
    if feature.kind in ("numeric", "vector"):
        return InputFeature(feature.name, None, feature.dim or 1)
    assert feature.table is not None
    table = tables[feature.table]
    missing = _missing(feature.table, tables)
    return InputFeature(feature.name, feature.table, table.dim, missing, table.pooling, table.lookup == "bags")


def _missing(table: str, tables: dict[str, TableConfig]) -> int:
    return int(MISSING) if isinstance(tables[table].ids, DynamicIdsConfig) else UNKNOWN_ID


def _read_columns(
    folder: Path,
    manifest: Manifest,
    tables: dict[str, TableConfig],
    features: tuple[Feature, ...],
    ids: np.ndarray,
    number_of_id: np.ndarray,
) -> dict[str, Any]:
    if not features:
        return {}
    assert manifest.items is not None
    table = read_parquet(
        folder / manifest.items.path, columns=[f.column for f in features], page_checksum_verification=True
    )
    decode = decoder_of(features, ids)
    columns: dict[str, Any] = {}
    for feature in features:
        column = take(column_of(table.column(feature.column)), number_of_id)
        if isinstance(column, Lists):
            columns[feature.name] = IdColumn(decode[feature.column](column.values), column.offsets)
        elif feature.kind in ("numeric", "vector"):
            columns[feature.name] = decode[feature.column](column).reshape(len(number_of_id), -1)
        else:
            assert feature.table is not None
            missing = _missing(feature.table, tables)
            columns[feature.name] = _without_missing(decode[feature.column](column), missing)
    return columns


def _without_missing(values: np.ndarray, missing: int) -> IdColumn:
    """Return a single id per item, or none for a missing or unknown value, which then has no embedding."""
    present = values != missing
    return IdColumn(values[present], np.concatenate(([0], np.cumsum(present))))
