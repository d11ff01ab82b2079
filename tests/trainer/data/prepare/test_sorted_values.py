"""Values that are sorted in temporary files: those of a plain sum and sort, and their memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.data.prepare import sorted_values
from trainer.data.prepare.sorted_values import CountedValues
from trainer.storage.mapped import ArrayWriter

ALPHABET = ("a", "B", "é", "ß", "\uff5a", "𝄞", "10", "9", "~")


def chunk_values(seed: int, kind: str, size: int, num_distinct: int) -> pa.Table:
    """Return the distinct values of one chunk, in no order, with their counts."""
    random = np.random.default_rng(seed)
    numbers = random.permutation(num_distinct)[:size]
    values = numbers - num_distinct // 2 if kind == "integers" else [_text(number) for number in numbers.tolist()]
    kind_of = pa.int64() if kind == "integers" else pa.string()
    return pa.table({"value": pa.array(values, kind_of), "count": random.integers(0, 5, len(values))})


def _text(number: int) -> str:
    letters = []
    while number or not letters:
        number, digit = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[digit])
    return "".join(letters)


@pytest.mark.parametrize("kind", ["integers", "text"])
@pytest.mark.parametrize(
    ("most_values", "least_rows", "num_chunks", "size", "num_distinct"),
    [
        (10_000, 1024, 3, 50, 100),  # no run
        (20, 4, 1, 100, 100),  # one run
        (20, 4, 30, 50, 400),  # runs that overlap
        (20, 1, 40, 60, 60),  # the same values in all runs
        (300, 1024, 20, 100, 100_000),  # hardly any value repeats
    ],
)
def test_values_are_those_of_a_plain_sum_and_sort(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    most_values: int,
    least_rows: int,
    num_chunks: int,
    size: int,
    num_distinct: int,
) -> None:
    monkeypatch.setattr(sorted_values, "MOST_VALUES", most_values)
    monkeypatch.setattr(sorted_values, "LEAST_ROWS", least_rows)
    chunks = [chunk_values(seed, kind, size, num_distinct) for seed in range(num_chunks)]
    plain: Counter[int | str] = Counter()
    counted = CountedValues(tmp_path)
    for chunk in chunks:
        counted.add(chunk)
        for value, count in zip(*(chunk.column(name).to_pylist() for name in ("value", "count")), strict=True):
            plain[value] += count
    blocks = list(counted.ascending())
    rows = [row for block in blocks for row in zip(*block.to_pydict().values(), strict=True)]
    order = sorted(plain, key=lambda value: value.encode() if isinstance(value, str) else value)
    assert rows == [(value, plain[value]) for value in order]
    if most_values < size:
        assert max(block.num_rows for block in blocks) <= max(most_values, least_rows * num_chunks)
    assert list(tmp_path.iterdir()) == [], "the files have no name"


def test_no_values_have_no_blocks(tmp_path: Path) -> None:
    assert list(CountedValues(tmp_path).ascending()) == []


def peak_bytes(folder: Path, num_values: int) -> int:
    """Return the most memory of Arrow while values are added, sorted and written into one array."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert sorted_array_length(folder, num_values) == num_values
        return int(pool.max_memory() or 0)
    finally:
        pa.set_memory_pool(before)


def sorted_array_length(folder: Path, num_values: int) -> int:
    counted = CountedValues(folder)
    for first in range(0, num_values, 500):
        numbers = (np.arange(first, first + 500) * 7919) % num_values
        values = pa.array([f"{number:020d}" for number in numbers.tolist()])
        counted.add(pa.table({"value": values, "count": np.ones(500, np.int64)}))
    writer = ArrayWriter(pa.string(), folder, most_values=2_000)
    for block in counted.ascending():
        writer.add(block.column("value").chunk(0))
    return len(writer.array())


def test_memory_does_not_grow_with_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_values, "MOST_VALUES", 2_000)
    monkeypatch.setattr(sorted_values, "LEAST_ROWS", 10)
    few, many = (peak_bytes(tmp_path, count) for count in (20_000, 100_000))
    assert (many - few) / 80_000 < 3, "a value has 20 letters, a count and a place"
