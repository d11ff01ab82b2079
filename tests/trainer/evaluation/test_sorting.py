"""Sorting of arrays in temporary files: numpy's order, whatever the blocks, with memory for a few of them."""

import tracemalloc

import numpy as np
import pytest

from trainer.evaluation import spooled
from trainer.evaluation.sorting import at_shares, sorted_with_places


def values_of(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(size)
    if kind == "one value":
        return np.zeros(size)
    if kind == "few values":
        return random.integers(0, 3, size).astype(np.float64)
    if kind == "mostly one value":
        return np.where(random.random(size) < 0.9, 0.5, random.random(size))
    if kind == "ascending":
        return np.arange(size, dtype=np.float64)
    return np.where(random.random(size) < 0.1, -np.inf, random.normal(size=size))


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 500])
@pytest.mark.parametrize("kind", ["one value", "few values", "mostly one value", "ascending", "all differ"])
def test_the_order_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch, kind: str, size: int, block: int) -> None:
    monkeypatch.setattr(spooled, "BLOCK", block)
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)
    values = values_of(kind, size)
    ordered, places = sorted_with_places(values)
    assert (places == np.argsort(values, kind="stable")).all()
    assert (ordered == np.sort(values)).all()


@pytest.mark.parametrize("kind", ["one value", "mostly one value", "ascending", "all differ"])
def test_memory_is_that_of_a_few_blocks(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(spooled, "BLOCK", 4096)
    monkeypatch.setattr(spooled, "LEAST_BYTES", 0)
    values = spooled.kept(values_of(kind, 40 * 4096))
    sorted_with_places(values[: 3 * 4096])  # what numpy imports at its first use is not counted
    tracemalloc.start()
    sorted_with_places(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * 4096, "the values alone are 40 blocks of 8 bytes each"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 19, 20, 100, 1001])
def test_values_at_shares_are_numpys_quantiles(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size)
    shares = np.concatenate((np.linspace(0, 1, 21), [0.25, 1 / 3, 0.75]))
    assert (at_shares(np.sort(values), shares) == np.quantile(values, shares, method="inverted_cdf")).all()
