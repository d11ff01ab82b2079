"""Features from the logs' values to what a part holds, and from there to what a batch holds.

Categorical values become ids when the dataset is written. Numbers stay as they are: what is fitted to them (mean and standard
deviation, or the bounds of buckets) is known only when all of the training part has been seen, goes into the manifest, and
is applied where a row group is read.

The invariants: what is fitted has seen the training part only; a value that is missing or unknown gets id 0 or the number 0
and is counted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.config import DynamicIdsConfig, HashIdsConfig, IdsConfig, VocabularyIdsConfig
from trainer.data.dataset.hashing import Hashes, Sample, hash_ids, whole
from trainer.data.dataset.manifest import UNKNOWN_ID, Feature
from trainer.data.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    NumericFeatureConfig,
    TimestampFeatureConfig,
    VectorFeatureConfig,
)

MISSING = np.iinfo(np.int64).min  # the raw id of a dynamic table's value that is null
Decode = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Losses:
    """Values (of lists: entries too) that are null, those that are unknown, and entries beyond max_values."""

    num_missing: int = 0
    num_unknown: int = 0
    num_cut: int = 0

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Encoded:
    """A column ready to be stored, with what it lost."""

    column: pa.Array
    losses: Losses = Losses()


@dataclass(frozen=True)
class Ids:
    """How the values of one table become ids: by their place in `vocabulary` (int64 or string), or by their hash.

    Ids of a dynamic table are settled in training: what is stored are raw 64-bit ids, integers as they stand and hashes of
    strings, and MISSING for null.
    """

    config: IdsConfig
    vocabulary: pa.Array | None = None

    @property
    def num_rows(self) -> int:
        """Of the table, row 0 included."""
        if isinstance(self.config, VocabularyIdsConfig):
            assert self.vocabulary is not None
            return 1 + len(self.vocabulary)
        return self.config.num_rows

    @property
    def missing(self) -> np.integer[Any]:
        """The id of a value that is null."""
        return np.int64(MISSING) if isinstance(self.config, DynamicIdsConfig) else np.int32(UNKNOWN_ID)

    def of(self, values: pa.Array) -> npt.NDArray[np.integer[Any]]:
        """(n,) ids of distinct values without nulls; 0 for what the vocabulary does not have."""
        match self.config:
            case HashIdsConfig():
                return hash_rows(values, self.config.num_rows)
            case DynamicIdsConfig():
                return raw_ids(values)
            case VocabularyIdsConfig():
                return numbers_of(values, self.vocabulary)


def raw_ids(values: pa.Array) -> npt.NDArray[np.int64]:
    """64-bit ids: integers as they stand, strings by their hash."""
    if pa.types.is_string(values.type):
        return hash_ids(values).view(np.int64)
    ids: npt.NDArray[np.int64] = values.to_numpy()
    return ids


def hash_rows(values: pa.Array, num_rows: int) -> npt.NDArray[np.int32]:
    """Rows 1 .. num_rows - 1 by the hash of the value."""
    return (hash_ids(values) % np.uint64(num_rows - 1)).astype(np.int32) + np.int32(1)


def numbers_of(values: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.int32]:
    """Place in the vocabulary counted from 1, or 0."""
    if not len(values):  # a column without any value has no type either
        return np.zeros(0, np.int32)
    places = pc.fill_null(pc.index_in(values, value_set=vocabulary, skip_nulls=True), UNKNOWN_ID - 1).to_numpy()
    numbers: npt.NDArray[np.int32] = (places + 1).astype(np.int32)
    return numbers


def kind_of(spec: FeatureSpec, agreed: pa.DataType) -> str:
    """How the feature is stored (trainer/data/dataset/manifest.py), from its settings and the type that reading gives it."""
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
    """A column of the logs as it is stored: int32 ids (or lists of them), float32, int64, or vectors of float32."""
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
    """Entries that are null, and those beyond the first `max_values`, are left out."""
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
    """Missing vectors, and those with a number that is not finite, become zeros."""
    present = np.asarray(column.is_valid())
    values = np.zeros((len(column), dim), np.float32)
    values[present] = column.filter(pa.array(present)).flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    broken = ~np.isfinite(values).all(axis=1)
    values[broken] = 0.0
    stored = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    return Encoded(stored, Losses(int((~present | broken).sum())))


# What is fitted to numbers


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from it, merged as in Chan, Golub & LeVeque 1979."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Moments":
        if not values.size:
            return cls()
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        return cls(values.size, mean, float(((wide - mean) ** 2).sum()))

    def merged(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not other.count or not self.count:
            return other if other.count else self
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.squares + other.squares + delta**2 * self.count * other.count / count)


@dataclass(frozen=True)
class NumericFit:
    """What one partition's training part says of a number after its transform; merged in the order of the partitions."""

    moments: Moments
    sample: Sample

    @classmethod
    def of(cls, config: NumericFeatureConfig, values: npt.NDArray[np.floating[Any]], keys: Hashes) -> "NumericFit":
        """values: those of training events, items or users; keys: a hash of each of these."""
        transformed = _transformed(values, config.transform)
        present = np.isfinite(transformed)
        transformed = transformed[present]
        sample = Sample.of(keys[present], transformed) if config.buckets else Sample.of(keys[:0], transformed[:0])
        return cls(Moments.of(transformed), sample)

    @classmethod
    def merged(cls, pieces: Iterable["NumericFit"]) -> "NumericFit":
        pieces = list(pieces)
        moments = Moments()
        for piece in pieces:
            moments = moments.merged(piece.moments)
        return cls(moments, Sample.merged([piece.sample for piece in pieces]))

    def fitted(self, config: NumericFeatureConfig) -> dict[str, Any]:
        """What goes into the manifest. Without any value in the training part, mean 0 and deviation 1, or a single bucket."""
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


# From what is stored to what a batch holds


def decoder_of(features: Iterable[Feature], item_ids: npt.NDArray[np.int32] | None) -> dict[str, Decode]:
    """For each feature's column, the function of its stored values (of lists: entries). `item_ids`: see ids_are_numbers."""
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
    """Bucket k (from 1) holds values from bound k - 1 on and below bound k; 0 is missing."""
    found = np.searchsorted(bounds, _transformed(values, transform).astype(np.float32), side="right") + 1
    return np.where(np.isnan(values), 0, found).astype(np.int32)


def with_fit(feature: Feature, fitted: dict[str, Any] | None) -> Feature:
    """The feature with what was fitted, and the rows that a table of its buckets has."""
    if fitted is None:
        return feature
    num_rows = len(fitted["bounds"]) + 2 if "bounds" in fitted else None
    return replace(feature, fitted=fitted, num_rows=num_rows)


def feature_of(spec: FeatureSpec, kind: str, ids: Mapping[str, Ids]) -> Feature:
    """What the manifest says of a feature, before anything is counted or fitted."""
    dim = spec.config.dim if isinstance(spec.config, VectorFeatureConfig) else None
    num_rows = ids[spec.table].num_rows if spec.table and kind.startswith("categorical") else None
    return Feature(spec.owner, spec.name, kind, spec.table, num_rows, dim)
