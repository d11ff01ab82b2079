"""Days: every training impression once, in the order of days, with what lay before it; from any position, on any ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.ranking.config import RankingConfig
from sharding.world import World
from tests.support.grown_datasets import DAY, ranking_dataset
from tests.trainer.data.stream.test_impressions import (
    BATCH,
    CATALOGUE,
    MAX_HISTORY,
    NUM_ITEMS,
    REACH,
    Data,
    Logs,
    random_logs,
)
from tests.trainer.data.stream.test_impressions import content as content_of
from tests.trainer.data.stream.test_impressions import seen_in as seen_of
from trainer.config.train import DaysConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.day_examples import DayExamples, day_examples
from trainer.data.stream.days import Calendar, calendar_of, count_days
from trainer.data.stream.examples import WINDOW_STEP
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.impressions import ImpressionStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import Step
from trainer.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))
CALENDAR = Calendar(origin=0, length=13, earliest=None, stop=4, end=100, ticks=None)  # times below 52 train
MODEL = RankingConfig(task="ranking")


def stream_of(data: Data, rank: int = 0, world_size: int = 1, calendar: Calendar = CALENDAR) -> ImpressionStream:
    reader = data.reader()
    examples = day_examples(reader, count_days(data.reader(), calendar, ALONE), MAX_HISTORY)
    batches = GlobalBatches(examples, BATCH, None, 3, rank, world_size)
    return ImpressionStream(reader, batches, REACH, CATALOGUE, calendar=calendar)


def steps_of(data: Data, world_size: int, start: Position | None = None) -> list[tuple[Any, ...]]:
    """Of every step all that its ranks are given, and the position after it."""
    streams = [stream_of(data, rank, world_size) for rank in range(world_size)]
    first = start or Position(0, 0)
    shares = [list(stream.steps(first, CALENDAR.stop)) for stream in streams]
    assert len({len(of_rank) for of_rank in shares}) == 1
    return [content_of(step) for step in zip(*shares, strict=True)]


def seen_on(data: Data, step: Step[Any]) -> dict[Any, Any]:
    """Return what a step teaches, by impression; the ids of its examples are rows and the day."""
    rows = step.batch.row_ids % WINDOW_STEP
    assert set((step.batch.row_ids // WINDOW_STEP).tolist()) == {step.epoch}
    return seen_of(replace(step.batch, row_ids=rows), data.users)


@pytest.fixture(scope="module")
def logs() -> Logs:
    return random_logs()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, logs: Logs) -> Data:
    return logs.write(tmp_path_factory.mktemp("days"))


def test_each_training_impression_comes_once_on_its_day_with_its_earlier_history(data: Data, logs: Logs) -> None:
    found: list[dict[Any, Any]] = [{} for _ in range(CALENDAR.stop)]
    days = []
    for step in stream_of(data).steps(Position(0, 0), CALENDAR.stop):
        new = seen_on(data, step)
        assert not new.keys() & found[step.epoch].keys()
        assert (step.batch.candidate_offsets.diff() > 0).all(), "an example without an impression"
        found[step.epoch] |= new
        days.append(step.epoch)
    assert days == sorted(days)
    assert found[0] == logs.visible(-1000, 13)
    assert found[1:] == [logs.visible(13 * day, 13 * day + 13) for day in (1, 2, 3)]
    assert all(found)


@pytest.mark.parametrize("world_size", [2, 3, 13])
def test_the_steps_are_the_same_on_any_ranks(data: Data, world_size: int) -> None:
    assert steps_of(data, world_size) == steps_of(data, 1)


def test_every_position_has_the_identical_rest(data: Data) -> None:
    whole = steps_of(data, 1)
    for number, (_, _, after) in enumerate(whole, start=1):
        assert steps_of(data, 1 + number % 3, after) == whole[number:]


def test_later_events_do_not_change_a_day(tmp_path: Path, logs: Logs) -> None:
    """Impressions and events from day 2 on are moved and added: days 0 and 1 stay, order and all."""
    past = [(u, NUM_ITEMS + 1 - i, t + 7) if t >= 26 else (u, i, t) for u, i, t in logs.past]
    shown = [(u, NUM_ITEMS + 1 - i, t, c) if t >= 26 else (u, i, t, c) for u, i, t, c in logs.shown]
    before, after = logs.write(tmp_path / "a"), Logs(shown, past).write(tmp_path / "b")
    kept = [step for step in steps_of(before, 1) if step[1] < 2]
    assert len(kept) > 4
    assert [step for step in steps_of(after, 1) if step[1] < 2] == kept
    assert steps_of(after, 1) != steps_of(before, 1)


def test_an_append_changes_neither_order_nor_content_of_the_days_before(tmp_path: Path) -> None:
    """Later generations bring row groups of new users, and more of known ones."""
    calendar = Calendar(0, DAY // 4, None, 4, 10 * DAY, None)
    chosen, num_groups = [], []
    for num_days in (1, 3):
        manifest = ranking_dataset(tmp_path / str(num_days), num_days)
        reader = RowGroupReader(tmp_path / str(num_days), manifest, ColumnSelection(impressions=True))
        days = count_days(reader, calendar, ALONE)
        batches = GlobalBatches(day_examples(reader, days, 5), 7, None, 1, 0, 1)
        chosen.append(
            [
                (chunk.epoch, chunk.bounds.tolist(), batches.examples.ids(chunk.chosen).tolist())
                for chunk in batches.chunks(Position(0, 0), 4)
            ]
        )
        num_groups.append(len(reader.group_rows))
        assert days.numbers == range(4)
    assert num_groups[1] > num_groups[0]
    assert chosen[0] == chosen[1]


def test_impressions_before_the_start_are_history_only(data: Data, logs: Logs) -> None:
    calendar = Calendar(origin=20, length=13, earliest=20, stop=2, end=100, ticks=None)
    found: dict[Any, Any] = {}
    for step in stream_of(data, calendar=calendar).steps(Position(0, 0), 2):
        found |= seen_on(data, step)
    assert found == logs.visible(20, 46)
    assert count_days(data.reader(), calendar, ALONE).first == 0


def test_a_position_as_a_number_counts_examples(data: Data) -> None:
    examples = stream_of(data).batches.examples
    assert isinstance(examples, DayExamples)
    sizes = [examples.of(day).num_examples for day in range(4)]
    assert [examples.number_of(Position(day, 3)) for day in range(4)] == [sum(sizes[:day]) + 3 for day in range(4)]


def manifest_with(time: dict[str, Any], validation: Any, test: Any) -> Manifest:
    split = {"kind": "global_time", "validation_time": validation, "test_time": test}
    return Manifest("none", {"time": time}, split, None, {}, ())  # type: ignore[arg-type]


SECONDS = {"kind": "integer", "first": 1_700_000_000, "last": 1_702_500_000}
STAMPS = {"kind": "timestamp", "first": 1_700_000_000_000_000, "last": 1_702_500_000_000_000}
PLACES = {"kind": "integer", "first": 0, "last": 100}


@pytest.mark.parametrize(
    ("config", "time", "validation", "length", "name"),
    [
        ({}, SECONDS, 1_702_080_000, 86400, "2023-12-09"),
        ({"length": "12h"}, SECONDS, 1_702_080_000 + 43200, 43200, "2023-12-09 12:00:00"),
        ({}, STAMPS, "2023-12-09", 86400 * 10**6, "2023-12-09"),
        ({"start": "2023-11-20T06:00"}, STAMPS, "2023-12-09T06:00", 86400 * 10**6, "2023-12-09 06:00:00"),
        ({"length": 20}, PLACES, 60, 20, "60"),
        ({"length": 86400}, SECONDS, 1_702_080_000, 86400, "2023-12-09"),
    ],
)
def test_calendars(config: dict[str, Any], time: dict[str, Any], validation: Any, length: int, name: str) -> None:
    end = validation + 1000 if isinstance(validation, int) else "2024-01-01"
    calendar = calendar_of(DaysConfig(**config), manifest_with(time, validation, end), MODEL)
    assert (calendar.length, calendar.name_of(calendar.stop)) == (length, name)


@pytest.mark.parametrize(
    ("config", "time", "validation", "expected"),
    [
        ({}, SECONDS, 1_702_080_001, "days begin at 2023-12-09 and 2023-12-10"),
        ({"length": 86400}, STAMPS, "2023-12-09", "is a plain number"),
        ({}, PLACES, 60, "do not look like those of a clock"),
        ({"start": 5}, STAMPS, "2023-12-09", "train.days.start = 5 is an integer"),
    ],
)
def test_calendars_that_do_not_fit_are_refused(
    config: dict[str, Any], time: dict[str, Any], validation: Any, expected: str
) -> None:
    end = validation + 1000 if isinstance(validation, int) else "2024-01-01"
    with pytest.raises(UserError, match=expected):
        calendar_of(DaysConfig(**config), manifest_with(time, validation, end), MODEL)


def test_too_many_days_and_none_are_refused(data: Data) -> None:
    with pytest.raises(UserError, match="nothing can be trained"):
        count_days(data.reader(), Calendar(-1000, 13, -1000, 0, 100, None), ALONE)
    far = replace(CALENDAR, length=1, stop=20_000, end=10**6)
    with pytest.raises(UserError, match="the limit is 10,000"):
        count_days(data.reader(), far, ALONE)
