"""Hashes, numbers of distinct values and samples: the same whatever the pieces, their order, and the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.data.dataset.hashing import Distinct, HashSample, hash_ids, mix

ROOT = Path(__file__).resolve().parents[4]


def hashes(count: int, first: int = 0) -> np.ndarray:
    return hash_ids(pa.array(range(first, first + count)))


@pytest.mark.parametrize("count", [0, 1, 1000, Distinct.SIZE - 1, Distinct.SIZE, 4 * Distinct.SIZE])
def test_distinct_values_of_pieces_are_those_of_the_whole(count: int) -> None:
    values = hashes(count)
    order = np.random.default_rng(3).permutation(np.repeat(np.arange(count), 2))
    whole = Distinct.of(values[order])
    pieces = [Distinct.of(piece) for piece in np.array_split(values[order], 7)]
    nested = Distinct.merged([Distinct.merged(pieces[:3]), *pieces[3:]])
    for merged in (Distinct.merged(pieces), Distinct.merged(pieces[::-1]), nested):
        assert merged.smallest.tolist() == whole.smallest.tolist()
        assert merged.count == whole.count
    if count < Distinct.SIZE:
        assert whole.count == count
    assert Distinct.merged([]).count == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_number_of_many_distinct_values_is_estimated_within_its_error(seed: int) -> None:
    count = 600_000
    estimate = Distinct.of(hashes(count, seed * 10**9)).count
    assert abs(estimate - count) / count < 4 / Distinct.SIZE**0.5  # four standard deviations, 1.6 %


def test_a_sample_of_pieces_is_that_of_the_whole() -> None:
    count = 3 * HashSample.SIZE
    keys, values = hashes(count), np.arange(count)
    whole = HashSample.of(keys, values)
    pieces = [HashSample.of(keys[k::5], values[k::5]) for k in range(5)]
    for merged in (HashSample.merged(pieces), HashSample.merged(pieces[::-1])):
        assert merged.keys.tolist() == whole.keys.tolist()
        assert merged.values.tolist() == whole.values.tolist()
    assert whole.keys.size == HashSample.SIZE
    assert whole.values.tolist() == np.argsort(keys)[: HashSample.SIZE].tolist()


def test_a_sample_favours_no_row() -> None:
    count = 4 * HashSample.SIZE
    chosen = HashSample.of(hashes(count), np.arange(count)).values
    tenths = np.bincount(chosen * 10 // count, minlength=10)
    expected = HashSample.SIZE / 10
    assert abs(tenths - expected).max() < 5 * expected**0.5


def test_a_small_sample_is_everything_in_the_order_of_its_keys() -> None:
    sample = HashSample.of(np.array([3, 1, 2], np.uint64), np.array([[30.0], [10.0], [20.0]]))
    assert sample.values.tolist() == [[10.0], [20.0], [30.0]]
    assert HashSample.of(sample.keys[:0], sample.values[:0]).keys.size == 0


def test_the_finaliser_is_a_bijection_and_changes_nothing_that_is_given() -> None:
    values = np.arange(100_000, dtype=np.uint64)
    assert np.unique(mix(values)).size == values.size
    assert values.tolist() == list(range(100_000))


def test_hashes_do_not_depend_on_the_shape_of_the_array() -> None:
    text = pa.array(["a", "bcd", "ü", "bcd"])
    whole = hash_ids(text).tolist()
    assert hash_ids(pa.concat_arrays([text, text]).slice(4)).tolist() == whole
    assert hash_ids(pa.chunked_array([text.slice(0, 1), text.slice(0, 0), text.slice(1)])).tolist() == whole
    assert [hash_ids(text.slice(k, 1)).tolist()[0] for k in range(4)] == whole
    assert hash_ids(pa.chunked_array([], pa.string())).tolist() == []


def test_hashes_are_the_same_in_every_process() -> None:
    program = (
        "import pyarrow as pa; from trainer.data.dataset.hashing import hash_ids; "
        "print([*hash_ids(pa.array(['x', 'yz'])), *hash_ids(pa.array([1, -7]))])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{[*hash_ids(pa.array(['x', 'yz'])), *hash_ids(pa.array([1, -7]))]}\n"}
