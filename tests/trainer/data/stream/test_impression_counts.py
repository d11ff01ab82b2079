"""The counts of a ranker's training examples are those of the batches that it trains on, in epochs and by days."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.ranking.batch import RankingBatch
from models.ranking.costs import candidate_pairs
from models.ranking.reach import Reach
from tests.trainer.data.stream.test_day_examples import CALENDAR, stream_of
from tests.trainer.data.stream.test_impressions import MAX_HISTORY, REACH, Data, random_logs
from trainer.data.stream.days import Calendar
from trainer.data.stream.impression_counts import ImpressionCounts, count_impressions
from trainer.data.stream.order import Position

FROM_15_ON = Calendar(origin=15, length=12, earliest=15, stop=3, end=100, ticks=None)  # times from 15 to 50 train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return random_logs().write(tmp_path_factory.mktemp("counts"))


def counted(batches: Iterable[RankingBatch], reach: Reach) -> ImpressionCounts:
    """Count what batches hold, history by history."""
    lengths: list[int] = []
    num_examples, impressions, pairs = 0, 0, 0.0
    for batch in batches:
        counts = batch.candidate_offsets.diff().numpy()
        lengths += batch.layout.offsets.diff()[counts > 0].tolist()
        pairs += candidate_pairs(counts, batch.history_end.numpy(), reach.attended)
        num_examples += counts.size
        impressions += int(counts.sum())
    return ImpressionCounts(num_examples, impressions, np.asarray(lengths), pairs)


def batches_of(data: Data, calendar: Calendar | None) -> Iterator[RankingBatch]:
    """All batches of an epoch, or of all days."""
    stream = data.stream() if calendar is None else stream_of(data, calendar=calendar)
    return (step.batch for step in stream.steps(Position(0, 0), 1 if calendar is None else calendar.stop))


@pytest.mark.parametrize("calendar", [None, CALENDAR, FROM_15_ON], ids=["epochs", "days", "days from a start on"])
def test_counts_are_those_of_the_batches(data: Data, calendar: Calendar | None) -> None:
    assert REACH.receptive > REACH.attended == MAX_HISTORY
    trained = counted(batches_of(data, calendar), REACH)
    found = count_impressions(data.reader(), REACH, calendar)
    assert (found.num_examples, found.impressions) == (trained.num_examples, trained.impressions)
    assert sorted(found.lengths.tolist()) == sorted(trained.lengths.tolist())
    assert found.lengths.max() > MAX_HISTORY
    assert found.pairs == trained.pairs


def test_rows_without_training_impressions_are_examples_of_an_epoch_but_of_no_day(data: Data, tmp_path: Path) -> None:
    in_epochs, by_days = (count_impressions(data.reader(), REACH, calendar) for calendar in (None, CALENDAR))
    assert in_epochs.num_examples == data.manifest.num_rows > in_epochs.lengths.size
    assert by_days.num_examples == by_days.lengths.size
