"""Features: conversion from values of the logs to values of a part, and from there to values of a batch.

Categorical values become ids when the dataset is written. Numbers are stored unchanged. Their fit (mean and standard
deviation, or bounds of buckets) is known only after all of the training part has been read. It is stored in the
manifest and applied where a row group is read.

The invariants: a fit uses the training part only. A missing or unknown value gets id 0 or the number 0, and is counted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.config import DynamicIdsConfig, HashIdsConfig, IdsConfig, VocabularyIdsConfig
from trainer.data.dataset.hashing import Hashes, HashSample, hash_ids, whole
from trainer.data.dataset.manifest import UNKNOWN_ID, Feature
from trainer.data.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    NumericFeatureConfig,
    TimestampFeatureConfig,
    VectorFeatureConfig,
)

LOOKED_UP = 1 << 20  # values of a vocabulary in one hash table
MISSING = np.iinfo(np.int64).min  # raw id of a null value in a dynamic table
Decode = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Losses:
    """Counts of values that were lost. In lists, entries count as well."""

    # Values that are null.
    num_missing: int = 0
    # Values that the vocabulary does not contain.
    num_unknown: int = 0
    # Entries beyond max_values.
    num_cut: int = 0

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Encoded:
    """A column ready to be stored, with the counts of lost values."""

    column: pa.Array
    losses: Losses = Losses()


@dataclass(frozen=True)
class Ids:
    """Mapping of the values of one table to ids: by position in `vocabulary`, or by hash.

    Ids of a dynamic table are assigned in training. The dataset stores raw 64-bit ids: integers unchanged, hashes of
    strings, and MISSING for null.
    """

    # Kind of ids.
    config: IdsConfig
    # Values in the order of their ids (int64 or string); None without a vocabulary.
    vocabulary: pa.Array | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the table, including row 0."""
        if isinstance(self.config, VocabularyIdsConfig):
            assert self.vocabulary is not None
            return 1 + len(self.vocabulary)
        return self.config.num_rows

    @property
    def missing(self) -> np.integer[Any]:
        """Id of a null value."""
        return np.int64(MISSING) if isinstance(self.config, DynamicIdsConfig) else np.int32(UNKNOWN_ID)

    def of(self, values: pa.Array) -> npt.NDArray[np.integer[Any]]:
        """Return the ids (n,) of distinct values without nulls; 0 for values that the vocabulary does not contain."""
        match self.config:
            case HashIdsConfig():
                return hash_rows(values, self.config.num_rows)
            case DynamicIdsConfig():
                return raw_ids(values)
            case VocabularyIdsConfig():
                return numbers_of(values, self.vocabulary)


def raw_ids(values: pa.Array) -> npt.NDArray[np.int64]:
    """Return 64-bit ids: integers unchanged, strings as their hash."""
    if pa.types.is_string(values.type):
        return hash_ids(values).view(np.int64)
    ids: npt.NDArray[np.int64] = values.to_numpy()
    return ids


def hash_rows(values: pa.Array, num_rows: int) -> npt.NDArray[np.int32]:
    """Return rows 1 .. num_rows - 1, by the hash of each value."""
    return (hash_ids(values) % np.uint64(num_rows - 1)).astype(np.int32) + np.int32(1)


def numbers_of(values: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.int32]:
    """Return the position of each value in the vocabulary, counted from 1, or 0 if it is not there."""
    numbers = np.zeros(len(values), np.int32)
    if not len(values):  # a column without any value has no type either
        return numbers
    for first in range(0, len(vocabulary), LOOKED_UP):
        places = pc.index_in(values, value_set=vocabulary.slice(first, LOOKED_UP), skip_nulls=True)
        there = places.is_valid()
        numbers[there.to_numpy(zero_copy_only=False)] = places.filter(there).to_numpy() + (first + 1)
    return numbers


def kind_of(spec: FeatureSpec, agreed: pa.DataType) -> str:
    """Return how the feature is stored (trainer/data/dataset/manifest.py), by its settings and the type that reading gives it."""
    match spec.config:
        case CategoricalFeatureConfig():
            return "categorical_list" if pa.types.is_list(agreed) else "categorical"
        case NumericFeatureConfig():
            return "numeric" if spec.config.buckets is None else "bucketized"
        case TimestampFeatureConfig():
            return "timestamp"
        case VectorFeatureConfig():
            return "vector"


def encode(spec: FeatureSpec, values: pa.ChunkedArray | pa.Array, ids: Mapping[str, Ids]) -> Encoded:
    """Encode a column of the logs for storage: int32 ids (or lists of them), float32, int64, or vectors of float32."""
    column = whole(values)
    match spec.config:
        case CategoricalFeatureConfig():
            assert spec.table is not None
            if pa.types.is_list(column.type):
                return _encode_lists(column, ids[spec.table], spec.config.max_values)
            return _encode_values(column, ids[spec.table])
        case VectorFeatureConfig():
            return _encode_vectors(column, spec.config.dim)
        case NumericFeatureConfig():
            numbers = column.to_numpy(zero_copy_only=False).astype(np.float32)
            numbers[~np.isfinite(numbers)] = np.nan
            return Encoded(pa.array(numbers), Losses(int(np.isnan(numbers).sum())))
        case TimestampFeatureConfig():
            return Encoded(pc.fill_null(column, 0), Losses(column.null_count))


def _encode_values(column: pa.Array, ids: Ids) -> Encoded:
    encoded = column.dictionary_encode()
    # One more entry, which the codes of nulls point at.
    of_value = np.append(ids.of(encoded.dictionary), ids.missing)
    codes = pc.fill_null(encoded.indices, len(of_value) - 1).to_numpy()
    unknown = of_value[:-1] == ids.missing  # never of a hash; of a dynamic table only the integer that stands for null
    num_unknown = int(np.append(unknown, False)[codes].sum()) if unknown.any() else 0
    return Encoded(pa.array(of_value[codes]), Losses(column.null_count, num_unknown))


def _encode_lists(column: pa.Array, ids: Ids, max_values: int) -> Encoded:
    """Encode lists, without null entries and without entries beyond the first `max_values`."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    entries = column.flatten()
    present = np.asarray(entries.is_valid())
    starts = np.concatenate(([0], np.cumsum(lengths)))
    # The place of each entry among those of its list that are present.
    before = np.concatenate(([0], np.cumsum(present)))
    place = before[:-1] - np.repeat(before[starts[:-1]], lengths)
    kept = present & (place < max_values)
    kept_before = np.concatenate(([0], np.cumsum(kept)))
    offsets = pa.array(kept_before[starts].astype(np.int32))
    encoded = _encode_values(entries.filter(pa.array(kept)), ids)
    losses = Losses(column.null_count + entries.null_count, encoded.losses.num_unknown, int((present & ~kept).sum()))
    return Encoded(pa.ListArray.from_arrays(offsets, encoded.column), losses)


def _encode_vectors(column: pa.Array, dim: int) -> Encoded:
    """Encode vectors. Missing ones, and those with a non-finite number, become zeros."""
    present = np.asarray(column.is_valid())
    values = np.zeros((len(column), dim), np.float32)
    values[present] = column.filter(pa.array(present)).flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    broken = ~np.isfinite(values).all(axis=1)
    values[broken] = 0.0
    stored = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    return Encoded(stored, Losses(int((~present | broken).sum())))


# Fit of numbers


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from the mean, merged as in Chan, Golub & LeVeque 1979."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Moments":
        """Compute the moments of values."""
        if not values.size:
            return cls()
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        return cls(values.size, mean, float(((wide - mean) ** 2).sum()))

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together."""
        count = self.count + other.count
        if not other.count or not self.count:
            return other if other.count else self
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.squares + other.squares + delta**2 * self.count * other.count / count)


@dataclass(frozen=True)
class NumericFit:
    """Statistics of a number in one partition's training part, after its transform; merged in the order of the partitions."""

    # Count, mean and variance.
    moments: Moments
    # A fair sample of the values; empty unless the feature has buckets.
    sample: HashSample

    @classmethod
    def of(cls, config: NumericFeatureConfig, values: npt.NDArray[np.floating[Any]], keys: Hashes) -> "NumericFit":
        """Compute the statistics of one partition.

        Args:
            config: the settings of the feature.
            values: values of training events, items or users.
            keys: a hash of each event, item or user.
        """
        transformed = _transformed(values, config.transform)
        present = np.isfinite(transformed)
        transformed = transformed[present]
        kept = slice(None) if config.buckets else slice(0)
        sample = HashSample.of(keys[present][kept], transformed[kept])
        return cls(Moments.of(transformed), sample)

    @classmethod
    def merged(cls, pieces: Iterable["NumericFit"]) -> "NumericFit":
        """Merge the statistics of partitions, in their order."""
        pieces = list(pieces)
        moments = Moments()
        for piece in pieces:
            moments = moments.merged(piece.moments)
        return cls(moments, HashSample.merged([piece.sample for piece in pieces]))

    def fitted(self, config: NumericFeatureConfig) -> dict[str, Any]:
        """Return the fit for the manifest. Without values in the training part: mean 0 and deviation 1, or a single bucket."""
        if config.buckets is not None:
            quantiles = np.linspace(0.0, 1.0, config.buckets + 1)[1:-1]
            values = self.sample.values
            bounds = np.unique(np.quantile(values, quantiles)) if values.size else np.zeros(0)
            return {"transform": config.transform, "bounds": bounds.astype(np.float32).tolist()}
        std = (self.moments.squares / self.moments.count) ** 0.5 if self.moments.count else 1.0
        if config.scale == "none":
            return {"transform": config.transform, "mean": 0.0, "std": 1.0}
        return {"transform": config.transform, "mean": self.moments.mean, "std": std if std > 0.0 else 1.0}


def _transformed(values: npt.NDArray[Any], transform: str) -> npt.NDArray[np.float64]:
    wide: npt.NDArray[np.float64] = values.astype(np.float64)
    return np.sign(wide) * np.log1p(np.abs(wide)) if transform == "log1p" else wide


# From stored values to values of a batch


def decoder_of(features: Iterable[Feature], item_ids: npt.NDArray[np.int32] | None) -> dict[str, Decode]:
    """Return for each feature's column the function from stored to used values (in lists: of entries).

    Args:
        features: the features.
        item_ids: id of every number of the catalogue, or None if they are equal (Manifest.ids_are_numbers).
    """
    return {feature.column: _decoder(feature, item_ids) for feature in features}


def _decoder(feature: Feature, item_ids: npt.NDArray[np.int32] | None) -> Decode:
    fitted = feature.fitted or {}
    match feature.kind:
        case "numeric":
            return lambda values: _standardized(values, fitted)
        case "bucketized":
            bounds = np.asarray(fitted["bounds"], np.float32)
            return lambda values: _buckets(values, fitted["transform"], bounds)
        case "categorical" | "categorical_list" if feature.table == "item" and item_ids is not None:
            return lambda numbers: item_ids[numbers]
        case _:
            return lambda values: values


def _standardized(values: npt.NDArray[Any], fitted: dict[str, Any]) -> npt.NDArray[np.float32]:
    scaled = (_transformed(values, fitted["transform"]) - fitted["mean"]) / fitted["std"]
    standardized: npt.NDArray[np.float32] = np.nan_to_num(scaled, nan=0.0).astype(np.float32)
    return standardized


def _buckets(values: npt.NDArray[Any], transform: str, bounds: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the bucket of each value: bucket k (from 1) has values from bound k - 1 to below bound k; 0 means missing."""
    buckets = np.searchsorted(bounds, _transformed(values, transform).astype(np.float32), side="right") + 1
    return np.where(np.isnan(values), 0, buckets).astype(np.int32)


def with_fit(feature: Feature, fitted: dict[str, Any] | None) -> Feature:
    """Return the feature with its fit, and with the number of rows that a table of its buckets has."""
    if fitted is None:
        return feature
    num_rows = len(fitted["bounds"]) + 2 if "bounds" in fitted else None
    return replace(feature, fitted=fitted, num_rows=num_rows)


def feature_of(spec: FeatureSpec, kind: str, ids: Mapping[str, Ids]) -> Feature:
    """Return the manifest's entry of a feature, before anything is counted or fitted."""
    dim = spec.config.dim if isinstance(spec.config, VectorFeatureConfig) else None
    num_rows = ids[spec.table].num_rows if spec.table and kind.startswith("categorical") else None
    return Feature(spec.owner, spec.name, kind, spec.table, num_rows, dim)
