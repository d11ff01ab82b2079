"""Slices by features of users, items and impressions: which features, and the values of ids as people know them. No torch."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.features import MISSING, decoder_of
from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import UNKNOWN_ID, Feature, Manifest
from trainer.data.dataset.vocabulary import ids_of_numbers, read_values, read_vocabulary
from trainer.data.stream.columns import Column, Lists
from trainer.errors import UserError
from trainer.evaluation.slices import Slice, quarters
from trainer.evaluation.spooled import Spool, spooled
from trainer.storage.parquet import read_parquet

MOST_VALUES = 32  # of a feature of users that is sliced by default
MOST_SLICES = 24  # of one feature: the values with the most users
KINDS = ("categorical", "categorical_list", "bucketized", "numeric")
MISSING_VALUE = "missing or unknown"


def slice_features(
    manifest: Manifest, names: list[str] | None, built_in: tuple[str, ...], impressions: bool = False
) -> tuple[Feature, ...]:
    """Return the features to slice by.

    Args:
        manifest: the dataset's.
        names: the setting evaluate.slices: "user.NAME", "item.NAME", "impression.NAME" and names of built-in slices. None: the
            features of users and impressions with few values.
        built_in: names of built-in slices.
        impressions: whether impressions have features. Their columns are those of events.

    Raises:
        UserError: for a name that does not exist, or a kind of column without slices.
    """
    owners = ("user", "item", "event") if impressions else ("user", "item")
    features = {slice_name(f): f for f in manifest.features if f.owner in owners and f.kind in KINDS}
    if names is None:
        few = (f for f in features.values() if f.owner != "item" and f.num_rows is not None)
        return tuple(f for f in few if f.num_rows is not None and f.num_rows <= MOST_VALUES)
    known = [*built_in, *features]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"evaluate.slices: the dataset has no slices {name!r}; {hint}")
    return tuple(features[name] for name in names if name in features)


def slice_name(feature: Feature) -> str:
    """Return the name of the slices by a feature. Impressions have the features of events."""
    return f"impression.{feature.name}" if feature.owner == "event" else feature.column


def arrow_columns(prefix: str, features: Mapping[str, Column]) -> dict[str, Any]:
    """Return the columns of features by `prefix` and name, as feature_slices takes them; vectors have no slices."""
    columns: dict[str, Any] = {}
    for name, values in features.items():
        if isinstance(values, Lists):
            columns[prefix + name] = pa.ListArray.from_arrays(
                pa.array(values.offsets.astype(np.int32)), pa.array(values.values)
            )
        elif values.ndim == 1:
            columns[prefix + name] = values
    return columns


def feature_slices(
    feature: Feature, blocks: Callable[[], Iterable[pa.Array]], folder: Path, manifest: Manifest
) -> Iterator[Slice]:
    """Yield the slices of one feature; a row with several values is in several slices.

    Args:
        feature: the feature.
        blocks: returns the values of blocks of rows: ids, numbers, or lists of ids, as a row group reader returns them; null where
            there is no item.
        folder: the dataset.
        manifest: its manifest.
    """
    if feature.kind == "numeric":
        numbers = Spool(np.float64)
        for values in blocks():
            numbers.append(in_unit_of_logs(feature, values.to_numpy(zero_copy_only=False)))
        yield from quarters(slice_name(feature), numbers.array(), _range_text)
        return
    all_ids = np.zeros(0, np.int64)
    counts = np.zeros(0, np.int64)
    num_rows = 0
    for values in blocks():
        _, ids = _unique_values_of_rows(values)
        all_ids, place = np.unique(np.concatenate((all_ids, ids)), return_inverse=True)
        weight = np.concatenate((counts, np.ones(ids.size, np.int64)))
        counts = np.bincount(place, weight, all_ids.size).astype(np.int64)
        num_rows += len(values)
    shown = all_ids[np.sort(np.argsort(-counts, kind="stable")[:MOST_SLICES])]
    masks = spooled((shown.size, num_rows), np.bool_)  # one file: a process may have few open
    start = 0
    for values in blocks():
        owners, ids = _unique_values_of_rows(values)
        for number, inside in zip(shown, masks, strict=True):
            inside[start + owners[ids == number]] = True
        start += len(values)
    for label, inside in zip(labels_of(feature, shown, folder, manifest), masks, strict=True):
        yield Slice(slice_name(feature), label, inside)


def _unique_values_of_rows(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and the ids that they have. An id that repeats in a list is once there."""
    is_list = pa.types.is_list(values.type)
    owners = pc.list_parent_indices(values).to_numpy() if is_list else np.arange(len(values))
    ids = pc.fill_null(pc.list_flatten(values) if is_list else values, UNKNOWN_ID).to_numpy()
    pairs = np.unique(np.stack((owners, ids), axis=1).astype(np.int64), axis=0) if is_list else None
    return (owners, ids.astype(np.int64)) if pairs is None else (pairs[:, 0], pairs[:, 1])


def item_values(feature: Feature, items: np.ndarray, folder: Path, manifest: Manifest, unknown: bool) -> pa.Array:
    """Return the values of a feature of items (n,), as feature_slices takes them; null for id 0 (reader_of_items)."""
    return reader_of_items(feature, folder, manifest, unknown)(items)


def reader_of_items(
    feature: Feature, folder: Path, manifest: Manifest, unknown: bool
) -> Callable[[np.ndarray], pa.Array]:
    """Read a feature of all items, and return the function that returns its values of some ids.

    Args:
        feature: a feature of items.
        folder: the dataset.
        manifest: its manifest.
        unknown: whether items that the training part does not know have ids after the known ones.
    """
    assert manifest.items is not None
    column = whole(
        read_parquet(folder / manifest.items.path, columns=[feature.column], page_checksum_verification=True).column(0)
    )
    ids = ids_of_numbers(folder, manifest, with_unknown=unknown)
    number_of_id = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    number_of_id[ids] = np.arange(ids.size)
    decode = decoder_of([feature], None if manifest.ids_are_numbers else ids)[feature.column]

    def values(items: np.ndarray) -> pa.Array:
        taken = column.take(pa.array(number_of_id[items], mask=np.asarray(items == UNKNOWN_ID)))
        if pa.types.is_list(taken.type):
            flat = pa.array(decode(taken.flatten().to_numpy()))
            lengths = pc.fill_null(pc.list_value_length(taken), 0).to_numpy()
            return pa.ListArray.from_arrays(pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)), flat)
        absent = taken.is_null().to_numpy(zero_copy_only=False)
        return pa.array(decode(pc.fill_null(taken, 0).to_numpy()), mask=absent)

    return values


def labels_of(feature: Feature, ids: np.ndarray, folder: Path, manifest: Manifest) -> list[str]:
    """Return the values of ids as people know them."""
    if feature.kind == "bucketized":
        return [_bucket_text(feature, int(number)) for number in ids]
    values = None
    if feature.table == "item":
        values = read_vocabulary(folder, manifest).values
    elif feature.table in manifest.vocabularies:
        values = read_values(folder, manifest, feature.table)
    return [
        MISSING_VALUE
        if number in (UNKNOWN_ID, MISSING)
        else f"id {number}"
        if values is None
        else str(values[int(number) - 1].as_py())
        for number in ids.tolist()
    ]


def _bucket_text(feature: Feature, bucket: int) -> str:
    """Return the range of a bucket: bucket k (from 1) has values from bound k - 1 to below bound k."""
    assert feature.fitted is not None
    bounds = _untransformed(np.asarray(feature.fitted["bounds"], np.float64), feature.fitted["transform"])
    if bucket == 0:
        return MISSING_VALUE
    if not bounds.size:
        return "all"
    if bucket == 1:
        return f"below {bounds[0]:.4g}"
    if bucket > bounds.size:
        return f"{bounds[-1]:.4g} or more"
    return f"{bounds[bucket - 2]:.4g} to below {bounds[bucket - 1]:.4g}"


def in_unit_of_logs(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Return standardised numbers as they are in the logs."""
    fitted = feature.fitted or {"mean": 0.0, "std": 1.0, "transform": "none"}
    scaled = values.astype(np.float64) * fitted["std"] + fitted["mean"]
    return _untransformed(scaled, fitted["transform"])


def _untransformed(values: np.ndarray, transform: str) -> np.ndarray:
    whole_range: np.ndarray = np.sign(values) * np.expm1(np.abs(values)) if transform == "log1p" else values
    return whole_range


def _range_text(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"
