"""The catalogue of a dataset as a model needs it: which table row an item has, and its features by id.

Ids: 1 and up are the items that the training part knows; behind them, where features can say what they are, come the others.
Of tables with dynamic ids the features have raw ids, which become rows when a batch is trained (trainer.dynamic_tables).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from models.item_features import Catalogue, IdColumn, ItemFeature
from sharding.config import DynamicIdsConfig, HashIdsConfig, TableConfig
from trainer.dataset.features import MISSING, decoder_of, hash_rows
from trainer.dataset.manifest import UNKNOWN_ID, Feature, Manifest, used_features
from trainer.dataset.vocabulary import ids_of_numbers, read_vocabulary
from trainer.stream.columns import Lists, take
from trainer.stream.row_groups import column_of


def read_catalogue(folder: Path, manifest: Manifest, tables: dict[str, TableConfig]) -> Catalogue:
    """Read the catalogue; without features of items and with a row for every id there is nothing to read."""
    features = used_features(manifest)
    hashed = isinstance(tables["item"].ids, HashIdsConfig)
    num_known = manifest.num_item_rows
    if not features and not hashed:
        return Catalogue(num_known, num_known)
    ids = ids_of_numbers(folder, manifest, with_unknown=bool(features))
    num_ids = int(ids.max(initial=0)) + 1
    rows = np.arange(num_ids)
    rows[num_known:] = 0
    if isinstance(tables["item"].ids, HashIdsConfig):
        rows[1:num_known] = hash_rows(read_vocabulary(folder, manifest).values, tables["item"].ids.num_rows)
    number_of_id = np.zeros(num_ids, np.int64)
    number_of_id[ids] = np.arange(ids.size)
    number_of_id[0] = 0
    return Catalogue(
        num_known=num_known,
        num_ids=num_ids,
        rows=rows if hashed or num_ids > num_known else None,
        has_row=np.arange(num_ids) < num_known if num_ids > num_known else None,
        features=tuple(_item_feature(feature, tables) for feature in features),
        columns=_read_columns(folder, manifest, tables, features, ids, number_of_id),
    )


def _item_feature(feature: Feature, tables: dict[str, TableConfig]) -> ItemFeature:
    if feature.kind in ("numeric", "vector"):
        return ItemFeature(feature.name, None, feature.dim or 1)
    assert feature.table is not None
    return ItemFeature(feature.name, feature.table, tables[feature.table].dim)


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
    table = pq.read_table(
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
            dynamic = isinstance(tables[feature.table].ids, DynamicIdsConfig)
            missing = MISSING if dynamic else UNKNOWN_ID
            columns[feature.name] = _without_missing(decode[feature.column](column), missing)
    return columns


def _without_missing(values: np.ndarray, missing: int) -> IdColumn:
    """A single id per item; that of a missing value, or of one that the vocabulary does not have, says nothing."""
    present = values != missing
    return IdColumn(values[present], np.concatenate(([0], np.cumsum(present))))
