"""The contract of a training stream: from every position, on any number of ranks, the identical remainder.

All streams keep it: histories cut to their most recent events or into windows, batches of a number of histories or within a
budget of events, and impressions; on datasets written at once and on those that later days were appended to.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.support.datasets import tiny_dataset
from tests.support.plain_dataset import plain_rows
from tests.support.streams import BATCH, EPOCHS, KINDS, MAX_HISTORY, TOKENS, Data, examples_in, global_steps
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream import global_batches as stream_module
from trainer.data.stream.examples import WINDOW_STEP
from trainer.data.stream.order import Position, position_of, steps_per_epoch


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], Data]:
    """Return the data of each kind, written once."""

    @cache
    def dataset(write: Callable[[Path], Manifest]) -> tuple[Path, Manifest]:
        folder = tmp_path_factory.mktemp("dataset")
        return folder, write(folder)

    @cache
    def data_of(kind: str) -> Data:
        return Data(*dataset(KINDS[kind].write), KINDS[kind])

    return data_of


@pytest.fixture
def data(written) -> Data:
    return written("recent")


kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_position_gives_the_identical_remainder(written, kind, world_size):
    data = written(kind)
    whole = global_steps(data, Position(0, 0), 1)
    starts = [Position(0, 0), *(step.after for step in whole)]
    for number, start in enumerate(starts):
        if start.epoch == 0 or start.trained == 0 or number % 5 == 0:  # all of an epoch, and some of the others
            resumed = global_steps(data, start, world_size)
            assert [step.content for step in resumed] == [step.content for step in whole[number:]]


@kinds
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_example_is_trained_exactly_once_per_epoch_on_the_right_events(written, kind, world_size):
    data = written(kind)
    steps = global_steps(data, Position(0, 0), world_size)
    expected = data.examples
    assert len({example[0] for example in expected}) == len(expected)
    for epoch in range(EPOCHS):
        actual = sorted(e for step in steps if step.epoch == epoch for share in step.shares for e in share)
        assert actual == expected


@kinds
def test_epochs_have_orders_of_their_own(written, kind):
    steps = global_steps(written(kind), Position(0, 0), 1)
    orders = [[e[0] for step in steps if step.epoch == epoch for e in step.shares[0]] for epoch in range(EPOCHS)]
    assert len({tuple(order) for order in orders}) == EPOCHS


@kinds
@pytest.mark.parametrize("world_sizes", [(2, 3, 1), (1, 4, 2), (3, 2, 4)])
def test_resizing_within_an_epoch_and_at_its_end_loses_and_repeats_nothing(written, kind, world_sizes):
    data = written(kind)
    whole = [step.ids for step in global_steps(data, Position(0, 0), 1)]
    position, trained = Position(0, 0), []
    for world_size, stop_in in zip(world_sizes, ("the middle of an epoch", "its end", "the end"), strict=True):
        for step in global_steps(data, position, world_size):
            trained.append(step.ids)
            position = step.after
            if stop_in == "the middle of an epoch" and len(trained) == 4:
                break
            if stop_in == "its end" and position.trained == 0:
                break
    assert trained == whole
    num_examples = data.stream().batches.examples.num_examples
    assert Counter(i for ids in trained for i in ids) == Counter({e[0]: EPOCHS for e in data.examples})
    assert position == Position(EPOCHS, 0)
    assert position.as_number(num_examples) == EPOCHS * len(data.examples)


@kinds
@pytest.mark.parametrize("world_size", [1, 3])
def test_training_can_resume_from_any_number_of_trained_examples(written, kind, world_size):
    """Not only where a step ended: the remainder of the epoch holds the same examples, each once."""
    data = written(kind)
    num_examples = len(data.examples)
    order = [e for step in global_steps(data, Position(0, 0), 1) for e in step.shares[0]]
    for number in range(0, EPOCHS * num_examples, 11):
        rest = global_steps(data, position_of(number, num_examples), world_size)
        actual = Counter(e for step in rest for share in step.shares for e in share)
        assert actual == Counter(order[number:])


@kinds
def test_a_rank_keeps_its_order_within_a_batch(written, kind):
    """So that a rank's numbers are added in one order, whenever it was started."""
    whole = global_steps(written(kind), Position(0, 0), 3)
    resumed = global_steps(written(kind), whole[4].after, 3)
    assert [step.shares for step in resumed] == [step.shares for step in whole[5:]]


@kinds
@pytest.mark.parametrize("limit", [1, 20, 100])
def test_the_size_of_chunks_and_of_the_cache_changes_nothing(written, kind, monkeypatch, limit):
    data = written(kind)
    whole = [examples_in(step) for step in data.stream(1, 2).steps(Position(0, 0), EPOCHS)]
    monkeypatch.setattr(stream_module, "CHUNK_EVENTS", limit)
    monkeypatch.setattr("trainer.data.stream.shares.BLOCK_EVENTS", limit)
    stream = data.stream(1, 2, reader=data.new_reader(cache_bytes=0))
    assert [examples_in(step) for step in stream.steps(Position(0, 0), EPOCHS)] == whole


@kinds
def test_any_two_iterations_of_one_stream_agree(written, kind):
    stream = written(kind).stream(0, 2)
    first = stream.steps(Position(0, 0), EPOCHS)
    next(first)
    second = [examples_in(step) for step in stream.steps(Position(0, 0), EPOCHS)]
    assert [examples_in(step) for step in first] == second[1:]


@kinds
def test_the_steps_of_an_epoch_are_known_before(written, kind, monkeypatch):
    data = written(kind)
    steps = Counter(step.epoch for step in global_steps(data, Position(0, 0), 1))
    batches = data.batches()
    assert [batches.num_steps(epoch) for epoch in range(EPOCHS)] == [steps[epoch] for epoch in range(EPOCHS)]
    monkeypatch.setattr(stream_module, "MAX_CHUNK_EXAMPLES", 9)
    assert [batches.num_steps(epoch) for epoch in range(EPOCHS)] == [steps[epoch] for epoch in range(EPOCHS)]
    assert batches.num_steps(0, limit=2) in range(2, steps[0] + 1)


@kinds
def test_the_order_depends_on_the_seed(written, kind):
    def ids(seed: int) -> list[int]:
        stream = written(kind).stream()
        other = replace(stream, batches=replace(stream.batches, seed=seed))
        return np.concatenate([step.batch.row_ids.numpy() for step in other.steps(Position(0, 0), 1)]).tolist()

    assert ids(1) != ids(2)
    assert sorted(ids(1)) == sorted(ids(2))


# Batches of a number of histories


@pytest.mark.parametrize("kind", ["recent", "windows", "ranking"])
def test_batches_have_the_wanted_number_of_examples(written, kind):
    steps = global_steps(written(kind), Position(0, 0), 2)
    num_examples = len(written(kind).examples)
    assert len(steps) == EPOCHS * steps_per_epoch(num_examples, BATCH)
    assert {len(step.ids) for step in steps} <= {BATCH, num_examples % BATCH}


def test_histories_are_cut_to_the_most_recent_events(data):
    longest = max(len(inputs) for _, inputs, _ in data.examples)
    assert longest == MAX_HISTORY  # some history of the dataset is longer, or this would test nothing
    assert min(len(inputs) for _, inputs, _ in data.examples) == 0


def test_windows_train_every_target_exactly_once(written):
    """Of users and places in their histories, not only of ids."""
    data = written("windows")
    rows = plain_rows(data.folder, data.manifest)
    targets = Counter()
    for step in data.stream().steps(Position(0, 0), 1):
        for number, _, value in examples_in(step):
            window, row = divmod(number, WINDOW_STEP)
            stop = max(0, rows[row]["train_end"] - 1 - window * MAX_HISTORY)
            targets.update((row, place) for place in range(stop - len(value) + 1, stop + 1))
            assert rows[row]["item"][stop - len(value) + 1 : stop + 1] == list(value)
    assert targets == Counter((n, place) for n, row in enumerate(rows) for place in range(1, row["train_end"]))
    assert max(number // WINDOW_STEP for number, _, _ in data.examples) >= 2


def test_ranks_without_a_share_take_part_with_an_empty_history(tmp_path):
    """More ranks than row groups: some never have a row, and every rank has the same number of steps."""
    manifest = tiny_dataset(tmp_path, num_users=9, num_parts=1, groups_per_part=2)
    data = Data(tmp_path, manifest, KINDS["recent"])
    steps = global_steps(data, Position(0, 0), 4)
    assert len(steps) == EPOCHS * 2
    assert any(share == () for step in steps for share in step.shares)
    assert [s.content for s in steps] == [s.content for s in global_steps(data, Position(0, 0), 1)]


# Batches within a budget of events


@pytest.mark.parametrize("kind", ["token budget", "windows in a token budget"])
def test_a_batch_is_the_longest_run_that_the_budget_holds(written, kind):
    data = written(kind)
    steps = global_steps(data, Position(0, 0), 1)
    for epoch in range(EPOCHS):
        actual = [step.shares[0] for step in steps if step.epoch == epoch]
        order = [example for share in actual for example in share]
        expected, batch = [], []
        for example in order:  # the rule, as plainly as possible
            if batch and sum(len(e[1]) for e in [*batch, example]) > TOKENS:
                expected.append(tuple(batch))
                batch = []
            batch.append(example)
        assert actual == [*expected, tuple(batch)]
        assert len(actual) > 5


@pytest.mark.parametrize("kind", ["token budget", "windows in a token budget"])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_get_about_the_same_number_of_events(written, kind, world_size):
    """Dealt by length, no rank has more than a history above another."""
    for step in global_steps(written(kind), Position(0, 0), world_size):
        events = [sum(len(example[1]) for example in share) for share in step.shares]
        assert max(events) - min(events) <= MAX_HISTORY


# Negatives


@pytest.mark.parametrize("kind", ["recent", "token budget"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_negatives_resume_with_the_position(written, kind, world_size):
    whole = global_steps(written(kind), Position(0, 0), 1, "sampled")
    for number in (0, 3, 9, len(whole) - 2):
        resumed = global_steps(written(kind), whole[number].after, world_size, "sampled")
        assert [step.content for step in resumed] == [step.content for step in whole[number + 1 :]]


def test_negatives_are_known_items_and_change_from_step_to_step(data):
    steps = global_steps(data, Position(0, 0), 1, "sampled")
    drawn = [step.negatives for step in steps]
    assert len(set(drawn)) == len(drawn)
    every = {item for negatives in drawn for item in negatives}
    assert every <= set(range(1, data.manifest.num_item_rows))
    assert all(step.negatives == () for step in global_steps(data, Position(0, 0), 1))


def test_negatives_reach_both_ends_of_the_catalogue(tmp_path):
    data = Data(tmp_path, tiny_dataset(tmp_path, num_items=4, num_parts=1), KINDS["recent"])
    steps = global_steps(data, Position(0, 0), 1, "sampled")
    assert {item for step in steps for item in step.negatives} == {1, 2, 3, 4}
