"""Encoding columns whatever their shape in memory, fitting piece by piece, and decoding what was stored."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sharding.config import DynamicIdsConfig, HashIdsConfig, VocabularyIdsConfig
from trainer.data.dataset.features import (
    MISSING,
    Encoded,
    Ids,
    Losses,
    Moments,
    NumericFit,
    decoder_of,
    encode,
    hash_rows,
    numbers_of,
)
from trainer.data.dataset.hashing import HashSample, hash_ids, mix
from trainer.data.dataset.manifest import Feature
from trainer.data.logs.config import (
    CategoricalFeatureConfig,
    FeatureConfig,
    FeatureSpec,
    NumericFeatureConfig,
    TimestampFeatureConfig,
    VectorFeatureConfig,
)

WORDS = Ids(VocabularyIdsConfig(), pa.array(["a", "b", "c"]))
NUMBERS = Ids(VocabularyIdsConfig(), pa.array([5, 3, 8]))
HASHED = Ids(HashIdsConfig(kind="hash", num_rows=4))
DYNAMIC = Ids(DynamicIdsConfig(num_rows=4))


def encoded(config: FeatureConfig, values: pa.Array | pa.ChunkedArray, ids: Ids = WORDS) -> Encoded:
    return encode(FeatureSpec("event", "f", config), values, {"f": ids, "t": ids})


def shapes(values: pa.Array) -> list[pa.Array | pa.ChunkedArray]:
    """Return the same column as one array, as a slice of a longer one, and in chunks, an empty one among them."""
    padded = pa.concat_arrays([values, values, values]).slice(len(values), len(values))
    return [values, padded, pa.chunked_array([values.slice(0, 1), values.slice(0, 0), padded.slice(1)])]


CATEGORICAL = CategoricalFeatureConfig(max_values=2)
CASES: list[tuple[FeatureConfig, pa.Array, Ids, list[Any], Losses]] = [
    (CATEGORICAL, pa.array(["b", None, "z", "a"]), WORDS, [2, 0, 0, 1], Losses(1, 1)),
    (CATEGORICAL, pa.array([8, 3, None, -1]), NUMBERS, [3, 2, 0, 0], Losses(1, 1)),
    (CATEGORICAL, pa.array([[8, None, 3, 5], None, [], [7]]), NUMBERS, [[3, 2], [], [], [0]], Losses(2, 1, 1)),
    (CATEGORICAL, pa.array([["a"], ["z", "z", "z"], None]), WORDS, [[1], [0, 0], []], Losses(1, 2, 1)),
    (CATEGORICAL, pa.array([7, None, MISSING]), DYNAMIC, [7, MISSING, MISSING], Losses(1, 1)),
    (CATEGORICAL, pa.array([None, None], pa.int64()), WORDS, [0, 0], Losses(2)),  # a column without any value has no type
    (CATEGORICAL, pa.array([None, None], pa.int64()), DYNAMIC, [MISSING] * 2, Losses(2)),
    (CATEGORICAL, pa.array([None, None], pa.list_(pa.string())), WORDS, [[], []], Losses(2)),
    (TimestampFeatureConfig(kind="timestamp"), pa.array([5, None, -5]), WORDS, [5, 0, -5], Losses(1)),
    (VectorFeatureConfig(kind="vector", dim=2), pa.array([[1.0, 2.0], None, [None, 1.0], [np.inf, 0.0]], pa.list_(pa.float32())),
     WORDS, [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], Losses(3)),
]  # fmt: skip


@pytest.mark.parametrize(("config", "values", "ids", "expected", "losses"), CASES)
@pytest.mark.parametrize("shape", range(3))
def test_a_column_of_any_shape_is_encoded(
    shape: int, config: FeatureConfig, values: pa.Array, ids: Ids, expected: list[Any], losses: Losses
) -> None:
    actual = encoded(config, shapes(values)[shape], ids)
    assert actual.column.to_pylist() == expected
    assert actual.losses == losses
    nothing = encoded(config, values.slice(0, 0), ids)
    assert (nothing.column.to_pylist(), nothing.losses) == ([], Losses())


@pytest.mark.parametrize("shape", range(3))
def test_numbers_are_stored_as_they_are_and_missing_as_nan(shape: int) -> None:
    values = pa.array([1.5, None, float("nan"), float("inf")], pa.float32())
    actual = encoded(NumericFeatureConfig(kind="numeric"), shapes(values)[shape])
    assert actual.column.type == pa.float32()
    np.testing.assert_array_equal(actual.column.to_numpy(), [1.5, np.nan, np.nan, np.nan])
    assert actual.losses == Losses(3)


def test_hashes_have_rows_in_range_and_collide_as_counted_by_brute_force() -> None:
    for values in (pa.array(range(-50, 50)), pa.array([f"value {n}" for n in range(100)])):
        for num_rows in (2, 3, 50, 2**31 - 1):
            rows = hash_rows(values, num_rows)
            assert rows.dtype == np.int32
            assert rows.min() >= 1
            assert rows.max() <= num_rows - 1
            assert rows.tolist() == [int(h) % (num_rows - 1) + 1 for h in hash_ids(values)]
    assert encoded(CATEGORICAL, pa.array(["x", None, "y"]), HASHED).column.to_pylist() == [
        int(hash_rows(pa.array(["x"]), 4)[0]), 0, int(hash_rows(pa.array(["y"]), 4)[0]),
    ]  # fmt: skip


@pytest.mark.parametrize("looked_up", [1, 3, 4, 100])
@pytest.mark.parametrize("vocabulary", [pa.array(["b", "a", "d", "c"]), pa.array([7, -1, 5, 0]), pa.array(["b"])])
def test_numbers_are_places_in_a_vocabulary_that_is_looked_up_in_pieces(
    monkeypatch: pytest.MonkeyPatch, vocabulary: pa.Array, looked_up: int
) -> None:
    monkeypatch.setattr("trainer.data.dataset.features.LOOKED_UP", looked_up)
    other = pa.array(["x"]) if pa.types.is_string(vocabulary.type) else pa.array([99])
    values = pa.concat_arrays([other, vocabulary.slice(1), vocabulary.slice(0, 1)])
    size = len(vocabulary)
    assert numbers_of(values, vocabulary).tolist() == [0, *range(2, size + 1), 1]
    assert numbers_of(values.slice(0, 0), vocabulary).tolist() == []
    assert numbers_of(values, vocabulary.slice(0, 0)).tolist() == [0] * (size + 1)


def test_raw_ids_are_integers_as_they_stand_and_hashes_of_text() -> None:
    assert encoded(CATEGORICAL, pa.array([2**63 - 1, -5]), DYNAMIC).column.to_pylist() == [2**63 - 1, -5]
    assert (
        encoded(CATEGORICAL, pa.array(["x"]), DYNAMIC).column.to_pylist()
        == hash_ids(pa.array(["x"])).view(np.int64).tolist()
    )


# What is fitted


def random_numbers(count: int) -> np.ndarray:
    numbers = np.random.default_rng(1).lognormal(3.0, 2.0, count).astype(np.float32)
    numbers[::17] = np.nan
    return numbers


@pytest.mark.parametrize("transform", ["none", "log1p"])
def test_moments_of_pieces_are_those_of_the_whole(transform: Any) -> None:
    numbers = random_numbers(10_000)
    config = NumericFeatureConfig(kind="numeric", transform=transform)
    keys = mix(np.arange(numbers.size, dtype=np.uint64))
    cut = [0, 10, 7000]  # the first piece is empty
    pairs = zip(np.split(numbers, cut), np.split(keys, cut), strict=True)
    pieces = [NumericFit.of(config, values, their_keys) for values, their_keys in pairs]
    fitted = NumericFit.merged(pieces).fitted(config)
    plain = numbers[~np.isnan(numbers)].astype(np.float64)
    plain = np.log1p(plain) if transform == "log1p" else plain
    assert fitted["mean"] == pytest.approx(plain.mean())
    assert fitted["std"] == pytest.approx(plain.std())


def test_moments_keep_small_deviations_of_large_numbers() -> None:
    numbers = 1e9 + np.arange(1000.0)
    merged = Moments()
    for piece in np.split(numbers, 10):
        merged = merged.merged(Moments.of(piece))
    assert (merged.squares / merged.count) ** 0.5 == pytest.approx(numbers.std(), rel=1e-6)


def test_bounds_of_buckets_are_quantiles_for_any_pieces() -> None:
    numbers, config = random_numbers(5_000), NumericFeatureConfig(kind="numeric", buckets=10)
    keys = mix(np.arange(numbers.size, dtype=np.uint64))
    whole = NumericFit.of(config, numbers, keys).fitted(config)
    expected = np.quantile(numbers[~np.isnan(numbers)].astype(np.float64), np.linspace(0, 1, 11)[1:-1])
    np.testing.assert_allclose(whole["bounds"], expected, rtol=1e-6)
    pieces = [NumericFit.of(config, numbers[k::7], keys[k::7]) for k in range(7)]
    assert NumericFit.merged(pieces).fitted(config) == NumericFit.merged(pieces[::-1]).fitted(config) == whole


def test_bounds_of_more_numbers_than_are_kept_are_near_the_quantiles() -> None:
    numbers = np.random.default_rng(2).random(3 * HashSample.SIZE).astype(np.float32)
    config = NumericFeatureConfig(kind="numeric", buckets=4)
    bounds = NumericFit.of(config, numbers, mix(np.arange(numbers.size, dtype=np.uint64))).fitted(config)["bounds"]
    np.testing.assert_allclose(bounds, [0.25, 0.5, 0.75], atol=5 * 0.5 / HashSample.SIZE**0.5)


def test_equal_numbers_have_one_bound_and_deviation_one() -> None:
    alike, keys = np.full(9, 4.0, np.float32), mix(np.arange(9, dtype=np.uint64))
    buckets, plain = NumericFeatureConfig(kind="numeric", buckets=5), NumericFeatureConfig(kind="numeric")
    assert NumericFit.of(buckets, alike, keys).fitted(buckets)["bounds"] == [4.0]
    assert NumericFit.of(plain, alike, keys).fitted(plain) == {"transform": "none", "mean": 4.0, "std": 1.0}
    assert NumericFit.of(plain, alike[:0], keys[:0]).fitted(plain) == {"transform": "none", "mean": 0.0, "std": 1.0}


# Decoding


def test_numbers_are_standardized_and_put_into_buckets() -> None:
    standard = Feature("event", "s", "numeric", fitted={"transform": "log1p", "mean": 1.0, "std": 2.0})
    bucketized = Feature("event", "b", "bucketized", "b", fitted={"transform": "none", "bounds": [1.0, 3.0]})
    decode = decoder_of([standard, bucketized], None)
    values = np.array([np.e - 1, 1 - np.e, np.nan, 0.0], np.float32)
    np.testing.assert_allclose(decode["event.s"](values), [0.0, -1.0, 0.0, -0.5], atol=1e-6)
    assert decode["event.b"](np.array([0.5, 1.0, 2.9, 3.0, 99.0, np.nan], np.float32)).tolist() == [1, 2, 2, 3, 3, 0]
    assert decode["event.b"](values[:0]).tolist() == []


def test_items_of_a_feature_are_taken_from_numbers_to_ids() -> None:
    related, other = Feature("event", "r", "categorical_list", "item"), Feature("event", "o", "categorical", "other")
    decode = decoder_of([related, other], np.array([0, 2, 0, 1], np.int32))
    assert decode["event.r"](np.array([3, 1, 0, 2], np.int32)).tolist() == [1, 2, 0, 0]
    assert decode["event.o"](np.array([3, 1], np.int32)).tolist() == [3, 1]
