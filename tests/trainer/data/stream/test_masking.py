"""Choice of masked events: by brute force, by share, and with any others in the batch."""

import itertools

import numpy as np
import pytest

from models.config import MaskingConfig
from trainer.data.stream.masking import masked_events

PLAIN = MaskingConfig(probability=0.3, last_probability=0.0)


def histories(seed: int, num: int, longest: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, offsets) of some examples, empty ones among them."""
    random = np.random.default_rng(seed)
    ids = random.choice(10**6, size=num, replace=False) + (random.integers(0, 3, num) << 40)
    return ids, np.concatenate(([0], np.cumsum(random.integers(0, longest, num))))


def by_example(ids: np.ndarray, offsets: np.ndarray, **arguments) -> dict[int, list[bool]]:
    masked = masked_events(ids, offsets, **arguments)
    assert masked.size == offsets[-1]
    return {int(i): masked[a:b].tolist() for i, (a, b) in zip(ids, itertools.pairwise(offsets), strict=True)}


@pytest.mark.parametrize("masking", [PLAIN, MaskingConfig(), MaskingConfig(probability=0.01)])
def test_the_mask_of_an_example_does_not_depend_on_its_batch(masking):
    ids, offsets = histories(1, 300)
    together = by_example(ids, offsets, masking=masking, seed=5, epoch=2)
    lengths = np.diff(offsets)
    for part in np.array_split(np.random.default_rng(2).permutation(ids.size), 7):
        bounds = np.concatenate(([0], np.cumsum(lengths[part])))
        alone = by_example(ids[part], bounds, masking=masking, seed=5, epoch=2)
        assert alone == {int(i): together[int(i)] for i in ids[part]}


def test_seed_epoch_and_example_decide():
    ids, offsets = histories(3, 200)
    first = by_example(ids, offsets, masking=PLAIN, seed=5, epoch=2)
    for seed, epoch in ((6, 2), (5, 3)):
        assert by_example(ids, offsets, masking=PLAIN, seed=seed, epoch=epoch) != first
    same_length = np.arange(200), np.arange(201) * 9
    assert len({tuple(m) for m in by_example(*same_length, masking=PLAIN, seed=1, epoch=0).values()}) > 100


def test_every_history_with_events_has_a_masked_one():
    ids, offsets = histories(4, 500)
    rare = MaskingConfig(probability=1e-6, last_probability=0.0)
    for masked in by_example(ids, offsets, masking=rare, seed=1, epoch=0).values():
        assert sum(masked) == min(1, len(masked))


def test_the_share_masked_is_the_probability_everywhere_in_a_history():
    ids, offsets = np.arange(20_000), np.arange(20_001) * 20
    places = np.asarray(list(by_example(ids, offsets, masking=PLAIN, seed=9, epoch=0).values())).mean(axis=0)
    # Of 20 events at least one is masked: which one is forced where none was is as likely to be any.
    expected = 0.3 + 0.7**20 / 20
    np.testing.assert_allclose(places, expected, atol=5 * (0.21 / 20_000) ** 0.5)


def test_the_last_event_alone_is_masked_with_its_own_probability():
    ids, offsets = np.arange(20_000), np.arange(20_001) * 20
    masking = MaskingConfig(probability=0.5, last_probability=0.25)
    masked = np.asarray(list(by_example(ids, offsets, masking=masking, seed=9, epoch=0).values()))
    only_last = masked[:, -1] & (masked.sum(axis=1) == 1)
    assert only_last.mean() == pytest.approx(0.25, abs=0.02)
    assert masked[~only_last].mean() == pytest.approx(0.5, abs=0.01)
    always = MaskingConfig(last_probability=1.0)
    masked = np.asarray(list(by_example(ids, offsets, masking=always, seed=9, epoch=0).values()))
    assert masked[:, -1].all()
    assert not masked[:, :-1].any()


def test_without_events_nothing_is_masked():
    assert masked_events(np.asarray([-1]), np.asarray([0, 0]), PLAIN, 1, 0).size == 0
