"""The metrics of the next day: scikit-learn's on the scores of its impressions, on any number of ranks; nothing of test is seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from sharding.world import World
from tests.trainer.evaluation.ranking.worlds import (
    MAX_HISTORY,
    NUM_ITEMS,
    KnowsItems,
    Shown,
    evaluator_of,
    logits_of,
    random_shown,
    write_world,
)
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.days import Calendar, count_days
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.evaluation.ranking.judged import probabilities
from trainer.evaluation.ranking.names import PRIOR_IMPRESSIONS
from trainer.evaluation.ranking.progressive import ProgressiveEvaluator

CALENDAR = Calendar(origin=0, length=7, earliest=None, stop=8, end=58, ticks=None)  # day 7 begins at 49, day 8 at 56


@pytest.fixture(scope="module")
def shown() -> Shown:
    return [one for one in random_shown() if not 35 <= one[2] < 42]  # day 5 has nothing


def days_after(world: World, folder: Path, numbers: list[int]) -> list[dict[str, Any] | None]:
    torch.set_num_threads(1)
    manifest = read_manifest(folder)
    reader = RowGroupReader(folder, manifest, ColumnSelection(impressions=True))
    days = count_days(reader, CALENDAR, world)
    evaluator = ProgressiveEvaluator(evaluator_of(folder, manifest, world), days)
    reported: list[tuple[int, int]] = []
    metrics = [evaluator.metrics(KnowsItems(), number, lambda *of: reported.append(of)) for number in numbers]
    evaluated = [of_day for of_day in metrics if of_day is not None]
    assert sum(done == total for done, total in reported) == len(evaluated), "each day reports its last batch"
    return metrics


def scores(shown: Shown, of_day: Shown) -> np.ndarray:
    seen = [
        min(MAX_HISTORY, sum(1 for other in shown if other[0] == user and other[2] < time and other[3] > 0))
        for user, _, time, _, _ in of_day
    ]
    columns = (torch.tensor([one[place] for one in of_day]) for place in (1, 2))
    found: np.ndarray = logits_of(*columns, torch.tensor(seen)).double().numpy()
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_metrics_of_the_next_day_are_scikit_learns(rank_pool, tmp_path, shown, world_size):
    write_world(tmp_path / "dataset", shown)
    found = rank_pool.run(world_size, days_after, tmp_path / "dataset", [1, 2, 5, 7, 8])
    assert all(repr(of_rank) == repr(found[0]) for of_rank in found)
    assert [entry["day"] for entry in found[0]] == [1, 2, 6, 7, 8], "a day without impressions is passed over"
    assert [entry["begins"] for entry in found[0]] == ["7", "14", "42", "49", "56"]
    for entry in found[0]:
        begin, end = entry["day"] * 7, min(58, entry["day"] * 7 + 7)
        of_day = [one for one in shown if begin <= one[2] < end]
        click = np.asarray([one[3] for one in of_day])
        logits = scores(shown, of_day)
        assert entry["impressions"] == {"click": len(of_day), "buy": len(of_day)}
        assert entry["metrics"]["auc/click"] == pytest.approx(roc_auc_score(click, logits), abs=1e-12)
        assert entry["metrics"]["logloss/click"] == pytest.approx(log_loss(click, probabilities(logits)), abs=1e-7)
        expected = probabilities(logits).sum() / click.sum()
        assert entry["metrics"]["calibration/click"] == pytest.approx(expected, abs=1e-6)
        assert entry["popularity"]["auc/click"] == pytest.approx(roc_auc_score(click, rates(shown, of_day, begin)))


def rates(shown: Shown, of_day: Shown, begin: int) -> np.ndarray:
    """Of the items on all days before, by brute force."""
    before = [one for one in shown if one[2] < begin]
    overall = sum(one[3] for one in before) / len(before)
    by_item = {}
    for item in range(1, NUM_ITEMS + 1):
        clicks = [one[3] for one in before if one[1] == item]
        by_item[item] = (sum(clicks) + PRIOR_IMPRESSIONS * overall) / (len(clicks) + PRIOR_IMPRESSIONS)
    return np.asarray([by_item[one[1]] for one in of_day])


def test_events_after_the_next_day_change_nothing(rank_pool, tmp_path, shown):
    """Nor do the labels of the next day change what stands against it: they change what it is judged by alone."""
    later = [
        (user, NUM_ITEMS + 1 - item, *rest) if rest[0] >= 28 else (user, item, *rest) for user, item, *rest in shown
    ]
    write_world(tmp_path / "as it was", shown)
    write_world(tmp_path / "changed", later)
    before, after = (
        rank_pool.run(1, days_after, tmp_path / name, [1, 2, 3, 4])[0] for name in ("as it was", "changed")
    )
    assert before[:3] == after[:3]
    assert before[3] != after[3]


def test_there_is_no_day_after_the_first_of_the_validation_period(rank_pool, tmp_path, shown):
    write_world(tmp_path / "dataset", [one for one in shown if one[2] < 56])
    assert rank_pool.run(1, days_after, tmp_path / "dataset", [7, 8])[0][1] is None


def test_files_of_impressions_tell_how_many_rows_each_day_has(tmp_path, shown):
    write_world(tmp_path / "dataset", shown)
    reader = RowGroupReader(
        tmp_path / "dataset", read_manifest(tmp_path / "dataset"), ColumnSelection(impressions=True)
    )
    one = World(0, 1, torch.device("cpu"))
    days = count_days(reader, replace(CALENDAR, earliest=14, origin=14, stop=6), one)
    assert (days.first, days.stop) == (0, 6)
    for day in range(7):
        begin, end = 14 + day * 7, min(58, 21 + day * 7)
        of_day = [one for one in shown if begin <= one[2] < end]
        assert days.num_rows(day) == len({one[0] for one in of_day})
        assert days.impressions[day] == len(of_day)
