"""The contract of a training stream: from every position, on any number of ranks, the identical remainder."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.config import FullSoftmaxConfig, ModelConfig, SampledSoftmaxConfig
from tests.datasets import tiny_dataset
from trainer.dataset.manifest import Manifest
from trainer.stream import histories as stream_module
from trainer.stream.histories import EMPTY_ROW, Step, TrainStream
from trainer.stream.order import Position, position_of, steps_per_epoch
from trainer.stream.row_groups import RowGroupReader

BATCH, MAX_HISTORY, EPOCHS, SEED = 7, 6, 2, 11
History = tuple[int, tuple[int, ...], tuple[int, ...]]  # row id, input items, target items
OBJECTIVES = {"full": FullSoftmaxConfig(), "sampled": SampledSoftmaxConfig(num_negatives=5)}


@dataclass(frozen=True)
class Data:
    folder: Path
    manifest: Manifest

    def stream(self, rank: int, world_size: int, objective: str = "full", cache_bytes: int = 1 << 20) -> TrainStream:
        reader = RowGroupReader(self.folder, self.manifest, cache_bytes=cache_bytes)
        model = ModelConfig(max_history=MAX_HISTORY, objective=OBJECTIVES[objective])
        return TrainStream(reader, model, self.manifest.num_item_rows, BATCH, SEED, rank, world_size)

    @property
    def histories(self) -> list[History]:
        """What each row should teach, read plainly: the last events of its training part."""
        rows = [row for part in self.manifest.parts for row in pq.read_table(self.folder / part.path).to_pylist()]
        windows = [row["item"][: row["train_end"]][-(MAX_HISTORY + 1) :] for row in rows]
        return [(number, tuple(window[:-1]), tuple(window[1:])) for number, window in enumerate(windows)]


@dataclass(frozen=True)
class GlobalStep:
    """One step of all ranks together; `shares`: histories of each rank, in its order."""

    shares: tuple[tuple[History, ...], ...]
    negatives: tuple[int, ...]
    epoch: int
    after: Position

    @property
    def content(self) -> tuple[tuple[History, ...], tuple[int, ...], int, Position]:
        return tuple(sorted(h for share in self.shares for h in share)), self.negatives, self.epoch, self.after


def histories_of(step: Step) -> tuple[History, ...]:
    batch = step.batch
    offsets = batch.layout.offsets.tolist()
    inputs, targets = batch.lookup_ids[batch.history_index].tolist(), batch.lookup_ids[batch.target_index].tolist()
    assert targets == batch.target_ids.tolist()
    assert len(inputs) == len(targets) == offsets[-1]
    return tuple(
        (row, tuple(inputs[start:end]), tuple(targets[start:end]))
        for row, start, end in zip(batch.row_ids.tolist(), offsets[:-1], offsets[1:], strict=True)
    )


def global_steps(data: Data, start: Position, world_size: int, objective: str = "full") -> list[GlobalStep]:
    """All ranks' streams side by side. Checks what every rank owes the others on the way."""
    streams = [list(data.stream(rank, world_size, objective).steps(start, EPOCHS)) for rank in range(world_size)]
    assert len({len(steps) for steps in streams}) == 1, "ranks yield different numbers of steps"
    steps = []
    for shares in zip(*streams, strict=True):
        assert len({(step.epoch, step.after) for step in shares}) == 1, "ranks disagree on the position"
        negatives = {tuple(step.batch.negative_ids.tolist()) for step in shares}
        assert len(negatives) == 1, "ranks draw different negatives"
        kept = []
        for step in shares:
            found = histories_of(step)
            if any(row == EMPTY_ROW for row, _, _ in found):
                assert found == ((EMPTY_ROW, (), ()),), "an empty share is one empty history and nothing else"
                found = ()
            kept.append(found)
        steps.append(GlobalStep(tuple(kept), negatives.pop(), shares[0].epoch, shares[0].after))
    return steps


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    folder = tmp_path_factory.mktemp("dataset")
    return Data(folder, tiny_dataset(folder))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_position_of_two_epochs_gives_the_identical_remainder(data, objective, world_size):
    whole = global_steps(data, Position(0, 0), 1, objective)
    assert len(whole) == EPOCHS * steps_per_epoch(data.manifest.num_rows, BATCH)
    starts = [Position(0, 0), *(step.after for step in whole)]
    for number, start in enumerate(starts):
        resumed = global_steps(data, start, world_size, objective)
        assert [step.content for step in resumed] == [step.content for step in whole[number:]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_number_of_trained_histories_can_be_gone_on_from(data, world_size):
    """Not only multiples of the batch size: the remainder of the epoch holds the same histories, each once."""
    num_rows = data.manifest.num_rows
    order = [h for step in global_steps(data, Position(0, 0), 1) for h in step.shares[0]]
    for number in range(0, EPOCHS * num_rows, 3):
        rest = global_steps(data, position_of(number, num_rows), world_size)
        found = Counter(h for step in rest for share in step.shares for h in share)
        assert found == Counter(order[number:])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_history_is_trained_exactly_once_per_epoch_on_the_right_events(data, world_size):
    steps = global_steps(data, Position(0, 0), world_size)
    for epoch in range(EPOCHS):
        found = sorted(h for step in steps if step.epoch == epoch for share in step.shares for h in share)
        assert found == data.histories


def test_histories_are_cut_to_the_most_recent_events(data):
    longest = max(len(inputs) for _, inputs, _ in data.histories)
    assert longest == MAX_HISTORY  # some history of the dataset is longer, or this would test nothing
    assert min(len(inputs) for _, inputs, _ in data.histories) == 0


def test_a_rank_keeps_its_order_within_a_batch(data):
    """So that a rank's numbers are added in one order, whenever it was started."""
    whole = global_steps(data, Position(0, 0), 3)
    resumed = global_steps(data, whole[4].after, 3)
    assert [step.shares for step in resumed] == [step.shares for step in whole[5:]]


def test_ranks_without_a_share_take_part_with_an_empty_history(tmp_path):
    """More ranks than row groups: some never have a row, and every rank has the same number of steps."""
    data = Data(tmp_path, tiny_dataset(tmp_path, num_users=9, num_parts=1, groups_per_part=2))
    steps = global_steps(data, Position(0, 0), 4)
    assert len(steps) == EPOCHS * 2
    assert any(share == () for step in steps for share in step.shares)
    assert [s.content for s in steps] == [s.content for s in global_steps(data, Position(0, 0), 1)]


def test_negatives_are_known_items_and_change_from_step_to_step(data):
    steps = global_steps(data, Position(0, 0), 1, "sampled")
    drawn = [step.negatives for step in steps]
    assert len(set(drawn)) == len(drawn)
    every = {item for negatives in drawn for item in negatives}
    assert every <= set(range(1, data.manifest.num_item_rows))
    assert all(step.negatives == () for step in global_steps(data, Position(0, 0), 1))


def test_negatives_reach_both_ends_of_the_catalogue(tmp_path):
    data = Data(tmp_path, tiny_dataset(tmp_path, num_items=4, num_parts=1))
    steps = global_steps(data, Position(0, 0), 1, "sampled")
    assert {item for step in steps for item in step.negatives} == {1, 2, 3, 4}


@pytest.mark.parametrize("chunk_rows", [1, 20, 35])
def test_the_size_of_chunks_and_of_the_cache_changes_nothing(data, monkeypatch, chunk_rows):
    whole = [histories_of(step) for step in data.stream(1, 2).steps(Position(0, 0), EPOCHS)]
    monkeypatch.setattr(stream_module, "CHUNK_ROWS", chunk_rows)
    assert [histories_of(s) for s in data.stream(1, 2, cache_bytes=0).steps(Position(0, 0), EPOCHS)] == whole


def test_any_two_iterations_of_one_stream_agree(data):
    stream = data.stream(0, 2)
    first = stream.steps(Position(0, 0), EPOCHS)
    next(first)
    second = [histories_of(step) for step in stream.steps(Position(0, 0), EPOCHS)]
    assert [histories_of(step) for step in first] == second[1:]


def test_the_order_depends_on_the_seed(data):
    def rows(seed: int) -> list[int]:
        stream = data.stream(0, 1)
        other = TrainStream(stream.reader, stream.model, stream.num_item_rows, BATCH, seed, 0, 1)
        return np.concatenate([step.batch.row_ids.numpy() for step in other.steps(Position(0, 0), 1)]).tolist()

    assert rows(1) != rows(2)
    assert sorted(rows(1)) == sorted(rows(2))
