"""Stochastic length: who keeps which events, what they predict, and how often each event is a target."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.histories import Histories
from tests.support.datasets import tiny_dataset
from trainer.costing.next_item import shortened_histories
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.examples import examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.histories import JaggedHistories, TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.stochastic_length import (
    expected_lengths,
    kept_events,
    shortened_length,
    target_probabilities,
    whole_probabilities,
)

MAX_HISTORY, ALPHA, SEED = 9, 1.3, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("stochastic")
    return folder, tiny_dataset(folder, num_users=80, num_items=12, mean_events=20)


def stream_of(
    dataset: tuple[Path, Manifest], rank: int = 0, world_size: int = 1, windows: bool = False, **model: Any
) -> TrainStream:
    config = NextItemConfig.model_validate({"max_history": MAX_HISTORY, **model})
    reader = RowGroupReader(*dataset)
    examples = examples_of(reader, MAX_HISTORY, "windows" if windows else "recent", False)
    batches = GlobalBatches(examples, 7, None, SEED, rank, world_size)
    return TrainStream(reader, batches, config, Catalogue(dataset[1].num_item_rows, dataset[1].num_item_rows))


def pairs_of(batch: HistoryBatch) -> dict[int, list[tuple[int, int]]]:
    """Return (input, target) of every event by example."""
    items = batch.lookup_ids[batch.history_index].tolist()
    targets = batch.target_ids.tolist()
    offsets = batch.layout.offsets.tolist()
    return {
        row: list(zip(items[start:stop], targets[start:stop], strict=True))
        for row, start, stop in zip(batch.row_ids.tolist(), offsets, offsets[1:], strict=False)
        if stop > start
    }


def epoch_of(dataset: tuple[Path, Manifest], epoch: int, world_size: int = 1, **given: Any) -> dict[int, Any]:
    whole: dict[int, Any] = {}
    for rank in range(world_size):
        for step in stream_of(dataset, rank, world_size, **given).steps(Position(epoch, 0), epoch + 1):
            whole |= pairs_of(step.batch)
    return whole


def is_part(part: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(entry in rest for entry in part)


@pytest.mark.parametrize("windows", [False, True])
def test_a_history_keeps_all_events_or_some_with_their_targets(dataset: tuple[Path, Manifest], windows: bool) -> None:
    whole = epoch_of(dataset, 1, windows=windows)
    kept = epoch_of(dataset, 1, windows=windows, stochastic_length=ALPHA)
    shortened = shortened_length(MAX_HISTORY, ALPHA)
    assert shortened == 4
    assert kept.keys() == whole.keys()
    sizes = {(len(whole[row]), len(kept[row])) for row in whole}
    assert {(MAX_HISTORY, MAX_HISTORY), (MAX_HISTORY, shortened)} <= sizes
    assert all(few in (many, shortened) and few <= many for many, few in sizes)
    assert all(is_part(kept[row], whole[row]) for row in whole)


def test_what_is_kept_follows_from_seed_epoch_and_example_alone(dataset: tuple[Path, Manifest]) -> None:
    alone = epoch_of(dataset, 2, stochastic_length=ALPHA)
    assert epoch_of(dataset, 2, world_size=3, stochastic_length=ALPHA) == alone
    assert epoch_of(dataset, 3, stochastic_length=ALPHA) != alone
    # From the middle of an epoch, as after a resume.
    later: dict[int, Any] = {}
    for step in stream_of(dataset, stochastic_length=ALPHA).steps(Position(2, 35), 3):
        later |= pairs_of(step.batch)
    assert later
    assert all(alone[row] == pairs for row, pairs in later.items())


def test_shares_are_those_of_the_paper() -> None:
    shortened, length, epochs = 4, 9, 4000
    offsets = np.asarray([0, length, length + 3])
    kept = np.stack([kept_events(np.asarray([5, 6]), offsets, shortened, SEED, epoch) for epoch in range(epochs)])
    assert kept[:, length:].all()  # a history that is short enough
    counts = kept[:, :length].sum(axis=1)
    assert set(counts.tolist()) == {shortened, length}
    whole = whole_probabilities(np.asarray([length]), shortened)[0]
    assert whole == pytest.approx((shortened / length) ** 2)
    assert (counts == length).mean() == pytest.approx(whole, abs=4 * np.sqrt(whole / epochs))
    assert counts.mean() == pytest.approx(expected_lengths(np.asarray([length]), shortened)[0], rel=0.05)
    short = kept[counts == shortened, :length].mean(axis=0)
    np.testing.assert_allclose(short, shortened / length, atol=4 * np.sqrt(0.25 / (counts == shortened).sum()))


@pytest.mark.parametrize("newest", [None, 1, 3, 4, 20])
def test_probabilities_of_targets_are_their_shares(newest: int | None) -> None:
    shortened, epochs = 4, 6000
    lengths = np.asarray([9, 4, 2, 6])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    rows = np.arange(4)
    from_end = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1])
    counted = np.zeros(offsets[-1])
    for epoch in range(epochs):
        kept = kept_events(rows, offsets, shortened, SEED, epoch)
        # How many kept events come after each, and itself.
        behind = np.asarray([kept[n : offsets[1:][np.searchsorted(offsets, n, "right") - 1]].sum() for n in range(21)])
        counted += kept & (behind <= (newest or 99))
    expected = target_probabilities(np.repeat(lengths, lengths), from_end, shortened, newest)
    np.testing.assert_allclose(counted / epochs, expected, atol=4 * np.sqrt(0.25 / epochs))


def test_costs_know_the_lengths_of_an_average_epoch() -> None:
    model = NextItemConfig.model_validate({"max_history": MAX_HISTORY, "stochastic_length": ALPHA})
    histories = Histories(np.asarray([2, 4, 9]), np.asarray([5, 1, 2]))
    short = shortened_histories(histories, model)
    assert short.lengths.tolist() == [2, 4, 9]
    whole = (4 / 9) ** 2
    np.testing.assert_allclose(short.counts, [5, 1 + 2 * (1 - whole), 2 * whole])
    same = shortened_histories(histories, model.model_copy(update={"stochastic_length": None}))
    assert same is histories


def test_features_and_times_stay_with_their_events() -> None:
    histories = JaggedHistories(
        np.asarray([7, 8]),
        np.asarray([0, 3, 5]),
        np.asarray([1, 2, 3, 4, 5], np.int32),
        np.asarray([2, 3, 9, 5, 9], np.int32),
        np.asarray([10, 20, 30, 40, 50]),
        np.asarray([20, 30, 35, 50, 55]),
    )
    kept = histories.kept(np.asarray([True, False, True, False, False]))
    assert kept.offsets.tolist() == [0, 2, 2]
    assert (kept.items.tolist(), kept.targets.tolist()) == ([1, 3], [2, 9])
    assert kept.times is not None
    assert kept.target_times is not None
    assert (kept.times.tolist(), kept.target_times.tolist()) == ([10, 30], [20, 35])


def test_masked_items_need_whole_histories() -> None:
    with pytest.raises(ValueError, match="stochastic_length leaves out events"):
        NextItemConfig.model_validate({"stochastic_length": 1.5, "encoder": {"kind": "bert4rec"}})
