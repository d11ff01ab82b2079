"""Timetables of epochs and days, and the state that the loop carries, without ranks or a model."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sharding.world import World
from tests.support.datasets import tiny_dataset
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.config.train import EarlyStoppingConfig, TrainConfig
from trainer.data.stream.days import Calendar, Days
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position
from trainer.errors import CheckpointError
from trainer.loop.days import DailyTimetable
from trainer.loop.early_stopping import after_validation, out_of_patience
from trainer.loop.epochs import EpochTimetable
from trainer.loop.state import Best, State, saved_state
from trainer.loop.timetable import Due, Timetable

ALONE = cast(World, SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"), sum=lambda tensor: tensor))
TRAINED = State(11, Position(1, 24), Best(0.5, 8, 1), skipped_steps=2, skipped_in_a_row=1, extra_steps=3)


def batches_of(steps: int) -> GlobalBatches:
    """Return batches of which every epoch has as many steps, counted up to a limit."""

    def count(epoch: int | None, limit: int | None) -> int:
        return steps if limit is None else min(steps, limit)

    counted = SimpleNamespace(count_steps=count)
    return cast(GlobalBatches, counted)


def checkpoint_of(state: State, days: dict[str, Any] | None = None, position: int = 0) -> StoredCheckpoint:
    """Return a checkpoint of a state in a dataset of 60 examples."""
    manifest = CheckpointManifest(state.step, position, 60, {}, {}, {}, "digest", state.to_saved(), {}, {}, days)
    return StoredCheckpoint(Path("step"), manifest)


@pytest.fixture
def days() -> Days:
    """Return days 2, 3 and 4 to train, with 10, 0 and 7 rows, and the first day of the validation period."""
    calendar = Calendar(origin=0, length=100, earliest=None, stop=5, end=700, ticks=None)
    rows = np.array([[6, 4], [0, 0], [7, 0], [1, 1]], dtype=np.int32)
    return Days(calendar, 2, rows, np.array([20, 0, 9, 4]), np.array([111, 0, 222, 333]))


@pytest.fixture
def daily(days: Days, tmp_path: Path) -> DailyTimetable:
    manifest = tiny_dataset(tmp_path / "dataset")
    return DailyTimetable(TrainConfig(batch_size=4), days, manifest)


def test_the_state_is_saved_and_restored() -> None:
    checkpoint = checkpoint_of(TRAINED)
    assert saved_state(checkpoint.manifest, TRAINED.position) == TRAINED
    del checkpoint.manifest.metrics["extra_steps"]  # as in checkpoints of earlier versions
    assert saved_state(checkpoint.manifest, TRAINED.position) == replace(TRAINED, extra_steps=0)


def test_non_finite_steps_are_counted_in_all_and_in_a_row() -> None:
    state = TRAINED.moved_to(Position(1, 32)).after_result(trained=False)
    assert (state.step, state.position, state.skipped_steps, state.skipped_in_a_row) == (12, Position(1, 32), 3, 2)
    state = state.moved_to(Position(2, 0)).after_result(trained=True)
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (13, 3, 0)


def test_patience_counts_evaluations_without_improvement() -> None:
    stopping = EarlyStoppingConfig(metric="ndcg@10", patience=2)
    state = replace(TRAINED, best=Best(), skipped_in_a_row=0)
    for value in (0.4, math.nan, 0.3):
        assert not out_of_patience(state, stopping)
        state = after_validation(state, {"ndcg@10": value}, stopping)
    assert state.best == Best(0.4, TRAINED.step, 2)
    assert out_of_patience(state, stopping)
    assert not out_of_patience(state, None)
    assert after_validation(state, {"ndcg@10": 0.9}, None) == state


def test_a_model_without_a_finite_loss_is_never_the_best() -> None:
    stopping = EarlyStoppingConfig(metric="ndcg@10", patience=2)
    assert after_validation(TRAINED, {"ndcg@10": 0.9}, stopping).best == Best(0.5, 8, 2)


@pytest.mark.parametrize(("max_steps", "ends"), [(None, [8, 16, 24]), (20, [8, 16, 20]), (16, [8, 16]), (5, [5])])
def test_epochs_end_after_their_steps_or_at_max_steps(max_steps: int | None, ends: list[int]) -> None:
    timetable = EpochTimetable(TrainConfig(epochs=3, max_steps=max_steps), grew=False)
    computed, state = timetable.epoch_ends(State(), batches_of(8), ALONE)
    assert computed.tolist() == ends
    assert state == State()
    assert timetable.end == 3


def test_an_epoch_of_a_grown_dataset_starts_again_and_earlier_steps_stay_counted() -> None:
    timetable = EpochTimetable(TrainConfig(epochs=3), grew=True)
    state, warning = timetable.resumed(checkpoint_of(replace(TRAINED, extra_steps=0), position=84))
    assert warning is None
    assert (state.step, state.position, state.best) == (11, Position(1, 0), Best())
    ends, state = timetable.epoch_ends(state, batches_of(10), ALONE)
    assert state.extra_steps == 11 - 10
    assert ends.tolist() == [11, 21, 31]


def test_epochs_of_an_unchanged_dataset_resume_at_the_position() -> None:
    state, _ = EpochTimetable(TrainConfig(epochs=3), grew=False).resumed(checkpoint_of(TRAINED, position=84))
    assert state == TRAINED


def test_a_validation_is_due_at_the_end_of_every_nth_epoch() -> None:
    timetable: Timetable = EpochTimetable(TrainConfig(epochs=6, evaluate_every_epochs=2), grew=False)
    assert [timetable.due_at(Position(epoch, 0)) for epoch in (1, 2, 3, 4)] == [Due(), Due(True), Due(), Due(True)]
    assert timetable.due_at(Position(2, 8)) == Due()
    assert timetable.record_at(Position(2, 8)) is None
    assert timetable.progress_of(2) == {}


def test_days_end_after_their_steps(daily: DailyTimetable) -> None:
    assert daily.end == 5
    assert daily.fresh().position == Position(2, 0)
    ends, state = daily.epoch_ends(daily.fresh(), batches_of(99), ALONE)
    assert ends.tolist() == [0, 3, 5]
    assert state == daily.fresh()
    within = State(step=2, position=Position(2, 8))
    assert daily.epoch_ends(within, batches_of(99), ALONE)[0].tolist() == [2, 3, 5]
    limited = replace(daily, train=TrainConfig(batch_size=4, max_steps=4))
    assert limited.epoch_ends(within, batches_of(99), ALONE)[0].tolist() == [2, 3, 4]


def test_the_next_day_is_evaluated_at_the_end_of_each_day(daily: DailyTimetable) -> None:
    assert daily.due_at(Position(3, 0)) == Due(next_day=True)
    assert daily.due_at(Position(3, 4)) == Due()
    assert daily.progress_of(4) == {"day": "400"}


def test_a_day_is_resumed_where_its_checkpoint_is(daily: DailyTimetable) -> None:
    position = Position(4, 4)
    record = daily.record_at(position)
    assert (record["day"], record["begins"], record["trained"]) == (4, "400", 4)
    assert (record["content"], record["impressions"]) == (222, 20)
    state, warning = daily.resumed(checkpoint_of(TRAINED, record))
    assert state == replace(TRAINED, position=position)
    assert warning is None


def test_late_impressions_of_trained_days_are_reported(daily: DailyTimetable) -> None:
    record = {**daily.record_at(Position(4, 0)), "impressions": 18}
    _, warning = daily.resumed(checkpoint_of(TRAINED, record))
    assert warning == "2 impressions were added to days before 400, which were trained already; they are not trained"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": 5}, "is within the day that begins at 400, and impressions of that day were added"),
        ({"day": 5, "trained": 1}, "was trained up to 500 and beyond, and split.validation_time is now 500"),
    ],
)
def test_days_that_changed_are_refused(daily: DailyTimetable, changes: dict[str, int], message: str) -> None:
    record = {**daily.record_at(Position(4, 4)), **changes}
    with pytest.raises(CheckpointError) as error:
        daily.resumed(checkpoint_of(TRAINED, record))
    assert message in str(error.value)
