"""The layout of jagged batches: every event once, right positions, as little padding as the buckets allow."""

from itertools import combinations

import numpy as np
import pytest
import torch

from models.batches.jagged import MANY_HISTORIES, JaggedLayout, layout_of, padded, padded_parts, unpadded


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64)))).astype(np.int64)


def padded_area(layout: JaggedLayout) -> int:
    return sum(bucket.gather.numel() for bucket in layout.buckets)


def check_layout(layout: JaggedLayout, lengths: list[int], num_buckets: int) -> None:
    """Check every promise of JaggedLayout and Bucket."""
    num_events = sum(lengths)
    assert layout.num_events == num_events
    assert layout.offsets.tolist() == offsets_of(lengths).tolist()
    assert layout.positions.tolist() == [position for length in lengths for position in range(length)]
    assert len(layout.buckets) <= num_buckets
    covered = [event for bucket in layout.buckets for event in bucket.scatter.tolist()]
    assert sorted(covered) == list(range(num_events))
    histories = {start: length for start, length in zip(offsets_of(lengths).tolist(), lengths, strict=False) if length}
    actual = []
    for bucket in layout.buckets:
        rows, longest = bucket.gather.shape
        assert rows > 0
        assert torch.equal(bucket.gather.reshape(-1)[bucket.block_index], bucket.scatter)
        real = torch.zeros(rows * longest, dtype=torch.bool)
        real[bucket.block_index] = True
        real = real.view(rows, longest)
        assert bucket.gather[~real].eq(0).all()
        row_lengths = real.sum(dim=1)
        assert row_lengths.max() == longest
        for row in range(rows):
            length, start = int(row_lengths[row]), int(bucket.gather[row, 0])
            assert real[row, :length].all()  # padding is on the right
            assert bucket.gather[row, :length].tolist() == list(range(start, start + length))
            assert histories[start] == length
            actual.append(start)
    assert sorted(actual) == sorted(histories)


@pytest.mark.parametrize("seed", range(40))
def test_random_batches_are_laid_out_as_promised(seed):
    random = np.random.default_rng(seed)
    num_buckets = int(random.integers(1, 6))
    lengths = random.integers(0, random.choice([2, 5, 60]), size=int(random.integers(0, 90))).tolist()
    check_layout(layout_of(offsets_of(lengths), num_buckets), lengths, num_buckets)


def test_a_batch_by_hand():
    layout = layout_of(np.asarray([0, 2, 2, 5]), num_buckets=1)
    (bucket,) = layout.buckets
    assert layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert bucket.gather.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert bucket.scatter.tolist() == [0, 1, 2, 3, 4]
    assert bucket.block_index.tolist() == [0, 1, 3, 4, 5]
    assert {t.dtype for t in (bucket.gather, bucket.scatter, bucket.block_index, layout.positions)} == {torch.int64}


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_empty_histories_are_in_no_bucket(lengths):
    layout = layout_of(offsets_of(lengths))
    assert layout.buckets == ()
    assert layout.num_events == 0
    assert layout.offsets.tolist() == [0] * (len(lengths) + 1)


def test_buckets_reduce_padding():
    random = np.random.default_rng(0)
    lengths = np.minimum(200, random.geometric(0.03, size=128)).tolist()
    areas = [padded_area(layout_of(offsets_of(lengths), count)) for count in (1, 2, 4, 8)]
    assert areas[0] == 128 * max(lengths)
    assert areas == sorted(areas, reverse=True)
    assert areas[2] < 0.6 * areas[0]
    assert areas[3] >= sum(lengths)


def test_histories_of_two_lengths_need_no_padding():
    lengths = [50, 2, 2, 50, 2, 2, 2]
    assert padded_area(layout_of(offsets_of(lengths), 2)) == sum(lengths)


@pytest.mark.parametrize("seed", range(10))
def test_small_batches_are_cut_where_the_padding_is_smallest(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, size=8).tolist()
    ordered = sorted(lengths)
    areas = []
    for count in range(1, 4):
        for cuts in combinations(range(1, 8), count - 1):
            pieces = zip((0, *cuts), (*cuts, 8), strict=True)
            areas.append(sum((stop - start) * ordered[stop - 1] for start, stop in pieces))
    assert padded_area(layout_of(offsets_of(lengths), 3)) == min(areas)


def test_events_go_into_their_blocks_and_back_as_through_an_index() -> None:
    layout = layout_of(np.asarray([0, 3, 3, 4, 9, 11, 19]), num_buckets=3)
    assert len(layout.buckets) == 3
    packed = torch.randn(19, 2, 5, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(*bucket.gather.shape, 2, 5, dtype=torch.float64) for bucket in layout.buckets]

    def there_and_back(packed: torch.Tensor) -> torch.Tensor:
        return unpadded((block.tanh() * w for block, w in zip(padded(packed, layout), weights, strict=True)), layout)

    def by_index(packed: torch.Tensor) -> torch.Tensor:
        actual = torch.zeros_like(packed)
        for bucket, weight in zip(layout.buckets, weights, strict=True):
            block = (packed[bucket.gather].tanh() * weight).flatten(0, 1)
            actual = actual.index_copy(0, bucket.scatter, block[bucket.block_index])
        return actual

    assert torch.equal(unpadded(padded(packed, layout), layout), packed)
    assert torch.equal(there_and_back(packed), by_index(packed))
    grad = torch.randn(19, 2, 5, dtype=torch.float64)
    left, right = (torch.autograd.grad(f(packed), packed, grad)[0] for f in (there_and_back, by_index))
    assert torch.equal(left, right)
    assert torch.autograd.gradcheck(there_and_back, packed)
    assert torch.autograd.gradgradcheck(there_and_back, packed)


def test_a_large_batch_has_more_buckets_and_less_padding():
    lengths = np.random.default_rng(1).integers(1, 200, MANY_HISTORIES).tolist()
    layout = layout_of(offsets_of(lengths))
    check_layout(layout, lengths, 8)
    assert padded_area(layout) - sum(lengths) < 0.6 * (padded_area(layout_of(offsets_of(lengths), 4)) - sum(lengths))
    fewer = lengths[1:]
    assert padded_area(layout_of(offsets_of(fewer))) == padded_area(layout_of(offsets_of(fewer), 4))


def test_parts_of_one_tensor_are_padded_as_each_part_alone():
    """In values and gradients, bit for bit."""
    layout = layout_of(offsets_of([3, 0, 7, 1, 1, 12]), num_buckets=3)
    generator = torch.Generator().manual_seed(1)
    sizes = (4, 1, 3)
    gradients = []
    values = []
    for together in (True, False):
        joint = torch.randn(24, 8, generator=generator.manual_seed(1), requires_grad=True)
        if together:
            blocks = padded_parts(joint, sizes, layout)
        else:
            blocks = list(zip(*(padded(part, layout) for part in joint.split(sizes, dim=-1)), strict=True))
        values.append([part for block in blocks for part in block])
        weights = [torch.randn(part.shape, generator=generator.manual_seed(2)) for part in values[-1]]
        sum((part * weight).sum() for part, weight in zip(values[-1], weights, strict=True)).backward()
        gradients.append(joint.grad)
    assert len(values[0]) == 9
    assert all(torch.equal(one, other) for one, other in zip(*values, strict=True))
    assert torch.equal(*gradients)
    with torch.no_grad():
        alone = [part for block in padded_parts(joint, sizes, layout) for part in block]
    assert all(torch.equal(one, other) for one, other in zip(values[0], alone, strict=True))
