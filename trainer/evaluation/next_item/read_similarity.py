"""Reader of what the similarity of items is computed from: their categories, or the users that they share. No torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.data.dataset.features import MISSING
from trainer.data.dataset.manifest import UNKNOWN_ID, Feature, Manifest, used_features
from trainer.data.dataset.vocabulary import ids_of_numbers
from trainer.data.stream.columns import Lists, gather
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader, column_of
from trainer.evaluation.next_item.similarity import Similarity, similarity_of_categories, similarity_of_users
from trainer.storage.parquet import read_parquet

MOST_EVENTS = 2_000_000  # training events that similarity by users reads


def read_similarity(folder: Path, manifest: Manifest, num_items: int) -> Similarity:
    """Return the similarity of items by their categories where items have categorical features, else by shared users.

    Args:
        folder: the dataset.
        manifest: its manifest.
        num_items: the number of candidates; ids are 1 .. num_items.
    """
    features = [feature for feature in used_features(manifest) if _names_categories(feature)]
    if features:
        return similarity_of_categories(_read_categories(folder, manifest, features), num_items + 1)
    return similarity_of_users(_training_histories(folder, manifest), num_items + 1)


def _names_categories(feature: Feature) -> bool:
    """Return whether the values of a feature group items; other items that it names are no categories."""
    return feature.kind in ("categorical", "categorical_list") and feature.table != "item"


def _read_categories(
    folder: Path, manifest: Manifest, features: list[Feature]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids of items, their values) of each feature, without missing and unknown values."""
    assert manifest.items is not None
    table = read_parquet(
        folder / manifest.items.path,
        columns=[feature.column for feature in features],
        page_checksum_verification=True,
    )
    ids = ids_of_numbers(folder, manifest, with_unknown=True)  # of number 0, no item, too
    for feature in features:
        column = column_of(table.column(feature.column))
        lists = column if isinstance(column, Lists) else Lists(column, np.arange(column.shape[0] + 1))
        owner = np.repeat(ids, np.diff(lists.offsets))
        known = (owner > 0) & (lists.values != UNKNOWN_ID) & (lists.values != MISSING)
        yield owner[known], lists.values[known]


def _training_histories(folder: Path, manifest: Manifest) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training histories of whole row groups at even distances in the dataset, up to about MOST_EVENTS events."""
    reader = RowGroupReader(folder, manifest, ColumnSelection(unknown=bool(used_features(manifest))))
    num_groups = len(reader.group_rows)
    per_group = max(1.0, manifest.counts.train_events / max(1, num_groups))
    wanted = min(num_groups, max(1, int(MOST_EVENTS / per_group)))
    for group in np.unique(np.linspace(0, num_groups - 1, wanted).astype(np.int64)).tolist():
        packed = reader.read([group])[group]
        yield gather(packed.items, packed.starts, packed.starts + packed.train_end)
