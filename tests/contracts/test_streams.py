"""The contract of a training stream: from every position, on any number of ranks, the identical remainder."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.config import FullSoftmaxConfig, ModelConfig, SampledSoftmaxConfig
from models.item_features import Catalogue
from tests.datasets import tiny_dataset
from trainer.dataset.manifest import Manifest
from trainer.stream import global_batches
from trainer.stream import shares as shares_module
from trainer.stream.examples import WINDOW_STEP, examples_of
from trainer.stream.global_batches import GlobalBatches
from trainer.stream.histories import Step, TrainStream
from trainer.stream.order import Position, position_of
from trainer.stream.row_groups import RowGroupReader
from trainer.stream.shares import EMPTY_ROW

BATCH, MAX_HISTORY, EPOCHS, SEED = 7, 6, 2, 11
History = tuple[int, tuple[int, ...], tuple[int, ...]]  # row id, input items, target items
OBJECTIVES = {"full": FullSoftmaxConfig(), "sampled": SampledSoftmaxConfig(num_negatives=5)}


@dataclass(frozen=True)
class Mode:
    """How examples are made of histories, and global batches of examples."""

    long_histories: Literal["recent", "windows"] = "recent"
    batch_tokens: int | None = None


MODES = {
    "recent": Mode(),
    "windows": Mode("windows"),
    "tokens": Mode(batch_tokens=31),
    "windows and tokens": Mode("windows", 20),
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@dataclass(frozen=True)
class Data:
    folder: Path
    manifest: Manifest

    def stream(
        self,
        rank: int,
        world_size: int,
        mode: Mode = MODES["recent"],
        objective: str = "full",
        cache_bytes: int = 1 << 20,
        seed: int = SEED,
    ) -> TrainStream:
        reader = RowGroupReader(self.folder, self.manifest, cache_bytes=cache_bytes)
        model = ModelConfig(max_history=MAX_HISTORY, objective=OBJECTIVES[objective])
        examples = examples_of(reader, MAX_HISTORY, mode.long_histories, mode.batch_tokens is not None)
        batches = GlobalBatches(examples, BATCH, mode.batch_tokens, seed, rank, world_size)
        return TrainStream(reader, batches, model, Catalogue(self.manifest.num_item_rows, self.manifest.num_item_rows))

    def histories(self, mode: Mode = MODES["recent"]) -> list[History]:
        """What each example should teach, read plainly: the last events of a row's training part, or all of it in windows."""
        rows = [row for part in self.manifest.parts for row in pq.read_table(self.folder / part.path).to_pylist()]
        found = []
        for number, row in enumerate(rows):
            trains, window = row["item"][: row["train_end"]], 0
            while window == 0 or (mode.long_histories == "windows" and len(trains) > 1):
                piece = trains[-(MAX_HISTORY + 1) :]
                found.append((number + window * WINDOW_STEP, tuple(piece[:-1]), tuple(piece[1:])))
                trains, window = trains[: max(0, len(trains) - MAX_HISTORY)], window + 1
        return sorted(found)


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


def global_steps(
    data: Data, start: Position, world_size: int, mode: Mode = MODES["recent"], objective: str = "full"
) -> list[GlobalStep]:
    """All ranks' streams side by side. Checks what every rank owes the others on the way."""
    streams = [list(data.stream(rank, world_size, mode, objective).steps(start, EPOCHS)) for rank in range(world_size)]
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
@every_mode
def test_every_position_of_two_epochs_gives_the_identical_remainder(data, mode, objective, world_size):
    whole = global_steps(data, Position(0, 0), 1, mode, objective)
    batches = data.stream(0, 1, mode).batches
    assert len(whole) == sum(batches.num_steps(epoch) for epoch in range(EPOCHS))
    starts = [Position(0, 0), *(step.after for step in whole)]
    for number, start in enumerate(starts):
        resumed = global_steps(data, start, world_size, mode, objective)
        assert [step.content for step in resumed] == [step.content for step in whole[number:]]


@pytest.mark.parametrize("world_size", [1, 3])
@every_mode
def test_any_number_of_trained_examples_can_be_gone_on_from(data, mode, world_size):
    """Not only where a batch ends: the remainder of the epoch holds the same examples, each once."""
    num_examples = data.stream(0, 1, mode).num_examples
    by_position = data.stream(
        0, 1, Mode(mode.long_histories)
    )  # of fixed batches the one rank's order is the global one
    order = [h for step in by_position.steps(Position(0, 0), EPOCHS) for h in histories_of(step)]
    for number in range(0, EPOCHS * num_examples, 3):
        rest = global_steps(data, position_of(number, num_examples), world_size, mode)
        found = Counter(h for step in rest for share in step.shares for h in share)
        assert found == Counter(order[number:])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@every_mode
def test_every_example_is_trained_exactly_once_per_epoch_on_the_right_events(data, mode, world_size):
    steps = global_steps(data, Position(0, 0), world_size, mode)
    for epoch in range(EPOCHS):
        found = sorted(h for step in steps if step.epoch == epoch for share in step.shares for h in share)
        assert found == data.histories(mode)


@every_mode
def test_the_world_may_change_at_every_step(data, mode):
    """A run of which every step is made by another number of ranks is the run of one rank."""
    whole = global_steps(data, Position(0, 0), 1, mode)
    position, found = Position(0, 0), []
    for number in range(len(whole)):
        step = global_steps(data, position, 1 + number % 4, mode)[0]
        found.append(step.content)
        position = step.after
    assert found == [step.content for step in whole]


def test_histories_are_cut_to_the_most_recent_events(data):
    longest = max(len(inputs) for _, inputs, _ in data.histories())
    assert longest == MAX_HISTORY  # some history of the dataset is longer, or this would test nothing
    assert min(len(inputs) for _, inputs, _ in data.histories()) == 0


def test_windows_train_every_target_once(data):
    rows = [row for part in data.manifest.parts for row in pq.read_table(data.folder / part.path).to_pylist()]
    targets = [item for row in rows for item in row["item"][1 : row["train_end"]]]
    found = data.histories(MODES["windows"])
    assert Counter(item for _, _, learned in found for item in learned) == Counter(targets)
    assert max(len(inputs) for _, inputs, _ in found) == MAX_HISTORY
    assert len(found) > len(rows)
    assert len({number for number, _, _ in found}) == len(found)


@pytest.mark.parametrize("mode", [MODES["tokens"], MODES["windows and tokens"]], ids=["recent", "windows"])
def test_a_batch_is_as_large_as_its_budget_allows_and_ranks_share_it_evenly(data, mode):
    assert mode.batch_tokens is not None
    one = global_steps(data, Position(0, 0), 1, mode)
    sizes = [sum(len(inputs) for share in step.shares for _, inputs, _ in share) for step in one]
    assert max(sizes) <= mode.batch_tokens
    # Where the next example would still fit, the batch would have taken it, but at the end of an epoch.
    ends = [step.after.trained == 0 for step in one]
    assert all(size > mode.batch_tokens - MAX_HISTORY for size, end in zip(sizes, ends, strict=True) if not end)
    for step in global_steps(data, Position(0, 0), 2, mode):
        loads = [sum(len(inputs) for _, inputs, _ in share) for share in step.shares]
        assert abs(loads[0] - loads[1]) <= MAX_HISTORY


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
    steps = global_steps(data, Position(0, 0), 1, objective="sampled")
    drawn = [step.negatives for step in steps]
    assert len(set(drawn)) == len(drawn)
    every = {item for negatives in drawn for item in negatives}
    assert every <= set(range(1, data.manifest.num_item_rows))
    assert all(step.negatives == () for step in global_steps(data, Position(0, 0), 1))


def test_negatives_reach_both_ends_of_the_catalogue(tmp_path):
    data = Data(tmp_path, tiny_dataset(tmp_path, num_items=4, num_parts=1))
    steps = global_steps(data, Position(0, 0), 1, objective="sampled")
    assert {item for step in steps for item in step.negatives} == {1, 2, 3, 4}


@pytest.mark.parametrize("size", [1, 20, 75])
@every_mode
def test_the_size_of_chunks_blocks_and_cache_changes_nothing(data, monkeypatch, mode, size):
    whole = [histories_of(step) for step in data.stream(1, 2, mode).steps(Position(0, 0), EPOCHS)]
    monkeypatch.setattr(global_batches, "CHUNK_EVENTS", size)
    monkeypatch.setattr(global_batches, "MAX_CHUNK_EXAMPLES", size)
    monkeypatch.setattr(shares_module, "BLOCK_EVENTS", size)
    assert [histories_of(s) for s in data.stream(1, 2, mode, cache_bytes=0).steps(Position(0, 0), EPOCHS)] == whole


def test_any_two_iterations_of_one_stream_agree(data):
    stream = data.stream(0, 2)
    first = stream.steps(Position(0, 0), EPOCHS)
    next(first)
    second = [histories_of(step) for step in stream.steps(Position(0, 0), EPOCHS)]
    assert [histories_of(step) for step in first] == second[1:]


def test_the_order_depends_on_the_seed(data):
    def rows(seed: int) -> list[int]:
        steps = data.stream(0, 1, seed=seed).steps(Position(0, 0), 1)
        return np.concatenate([step.batch.row_ids.numpy() for step in steps]).tolist()

    assert rows(1) != rows(2)
    assert sorted(rows(1)) == sorted(rows(2))
