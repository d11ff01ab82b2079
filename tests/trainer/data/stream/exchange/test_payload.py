"""Examples as bytes: every kind of column arrives as it was sent, from any number of ranks."""

import numpy as np
import pytest

from trainer.data.stream.columns import Lists
from trainer.data.stream.exchange.payload import ExampleEvents, decode, encode


def lists_of(random: np.random.Generator, count: int) -> Lists:
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, 4, size=count))))
    return Lists(random.integers(0, 99, size=int(offsets[-1])).astype(np.int32), offsets)


def examples(seed: int, count: int) -> ExampleEvents:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 5, size=count)
    events = int(sizes.sum())
    return ExampleEvents(
        random.integers(0, 1 << 50, size=count),
        sizes,
        {
            "items": random.integers(0, 99, size=events).astype(np.int32),
            "times": random.integers(0, 1 << 40, size=events),
            "feature vector": random.random((events, 3)).astype(np.float32),
            "feature tags": lists_of(random, events),
            "feature flag": random.random(events) < 0.5,
        },
        {"age": random.random(count).astype(np.float32), "languages": lists_of(random, count)},
    )


def plain(part: ExampleEvents, start: int, stop: int) -> list[object]:
    """Return examples start .. stop - 1 as lists."""
    bounds = np.concatenate(([0], np.cumsum(part.sizes)))
    rows = [(dict(part.users), start, stop), (dict(part.events), int(bounds[start]), int(bounds[stop]))]
    values: list[object] = [part.row_ids[start:stop].tolist(), part.sizes[start:stop].tolist()]
    for columns, first, last in rows:
        for name, column in sorted(columns.items()):
            for entry in range(first, last):
                cut = column.sliced(entry, entry + 1).values if isinstance(column, Lists) else column[entry]
                values.append((name, cut.dtype.str, cut.tolist()))
    return values


@pytest.mark.parametrize("counts", [[7], [3, 4], [0, 7], [2, 0, 0, 5], [0, 0]])
def test_examples_arrive_as_they_were_sent(counts):
    sent = examples(1, sum(counts))
    payload, num_bytes = encode(sent, counts)
    assert sum(num_bytes) == payload.size
    assert [n == 0 for n in num_bytes] == [count == 0 for count in counts]
    bounds = np.cumsum([0, *num_bytes])
    first = 0
    for rank, count in enumerate(counts):
        arrived = decode(
            payload[bounds[rank] : bounds[rank + 1]], [count], sent.sizes[first : first + count], examples(2, 1)
        )
        assert plain(arrived, 0, count) == plain(sent, first, first + count)
        first += count


def test_examples_of_several_ranks_arrive_one_after_another():
    parts = [examples(seed, count) for seed, count in ((1, 3), (2, 0), (3, 2))]
    payload = np.concatenate([encode(part, [part.sizes.size])[0] for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    arrived = decode(payload, [3, 0, 2], sizes, examples(4, 0))
    assert plain(arrived, 0, 3) == plain(parts[0], 0, 3)
    assert plain(arrived, 3, 5) == plain(parts[2], 0, 2)


def test_bytes_of_other_columns_are_not_taken_for_examples():
    payload, _ = encode(examples(1, 3), [3])
    with pytest.raises(AssertionError, match="columns of different types"):
        decode(np.append(payload, np.uint8(0)), [3], examples(1, 3).sizes, examples(2, 1))
