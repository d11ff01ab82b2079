"""Training by days: each training impression once, in the order of days, on any number of workers, stopped and resumed anywhere."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config.run_config import check_config
from tests.contracts.test_ranking import KINDS, job_in
from tests.contracts.test_resume import train as train_and_fingerprint
from tests.contracts.test_world_size import global_batches, losses
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.examples import WINDOW_STEP
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError
from trainer.metrics_log import read_metrics

DAY = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impressions") / "dataset"
    write_world(folder, random_shown())
    return folder


def job_by_days(run_dir: Path, dataset: Path, **sections: Any) -> Job:
    train = {"days": {"length": DAY}, **sections.pop("train", {})}
    return job_in(run_dir, dataset, KINDS["din"], train=train, plan={"measure": False}, **sections)


def rows_on_days(dataset: Path) -> list[set[int]]:
    """Return the rows with training impressions on each day, by brute force."""
    manifest = read_manifest(dataset)
    reader = RowGroupReader(dataset, manifest, ColumnSelection(impressions=True))
    result: list[set[int]] = [set() for _ in range(3)]
    row_id = 0
    for group in range(len(reader.group_rows)):
        packed = reader.read([group])[group]
        shown = packed.impressions
        for row in range(packed.starts.size):
            for time in shown.times[shown.starts[row] : shown.ends[row]].tolist():
                if time < 60:
                    result[time // DAY].add(row_id)
            row_id += 1
    return result


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_row_with_impressions_is_trained_once_a_day_in_the_order_of_days(
    rank_pool, tmp_path, dataset, world_size
):
    expected = rows_on_days(dataset)
    rank_pool.run(world_size, train_and_fingerprint, job_by_days(tmp_path / "run", dataset))
    batches = global_batches(tmp_path / "run", world_size)
    assert [example // WINDOW_STEP for batch in batches for example in batch] == [
        day for day, rows in enumerate(expected) for _ in rows
    ]
    assert all(len({example // WINDOW_STEP for example in batch}) == 1 for batch in batches), "a batch of two days"
    trained = Counter(example for batch in batches for example in batch)
    assert trained == Counter(row + day * WINDOW_STEP for day, rows in enumerate(expected) for row in rows)
    assert len(batches) == sum(-(-len(rows) // 8) for rows in expected)
    of_row = [example for batch in batches for example in batch if example % WINDOW_STEP == min(expected[0])]
    assert len(of_row) <= 3


def test_the_order_losses_and_progressive_metrics_agree_at_every_world_size(rank_pool, tmp_path, dataset):
    for world_size in (1, 3):
        rank_pool.run(world_size, train_and_fingerprint, job_by_days(tmp_path / str(world_size), dataset))
    assert global_batches(tmp_path / "3", 3) == global_batches(tmp_path / "1", 1)
    np.testing.assert_allclose(losses(tmp_path / "3"), losses(tmp_path / "1"), rtol=1e-5)
    one, other = (progressive(tmp_path / str(world_size)) for world_size in (1, 3))
    assert [row["day"] for row in one] == [1, 2, 3], "the last is the first day of the validation period"
    for row, same in zip(one, other, strict=True):
        assert row["popularity"] == same["popularity"]
        assert row["impressions"] == same["impressions"]
        for name in ("logloss/click", "ne/click", "calibration/click", "logloss/buy"):
            assert same[name] == pytest.approx(row[name], abs=1e-4), name


def progressive(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "progressive"]


@pytest.mark.parametrize(("world_size", "then"), [(1, 1), (2, 2), (1, 2)])
def test_a_run_stopped_within_a_day_and_resumed_equals_an_uninterrupted_one(
    rank_pool, tmp_path, dataset, world_size, then
):
    whole = rank_pool.run(world_size, train_and_fingerprint, job_by_days(tmp_path / "whole", dataset))
    pieces = job_by_days(tmp_path / "pieces", dataset)
    stopped = rank_pool.run(world_size, train_and_fingerprint, pieces, 5)
    assert stopped[0][0].reason == "stopped"
    checkpoint = json.loads((tmp_path / "pieces/checkpoints/step_000000005/manifest.json").read_text())
    assert checkpoint["days"]["trained"] > 0, "the stop was to be within a day"
    resumed = rank_pool.run(then, train_and_fingerprint, pieces)
    assert resumed[0][0] == whole[0][0]
    assert (
        global_batches(tmp_path / "pieces", 2) == global_batches(tmp_path / "whole", world_size) if then > 1 else True
    )
    if then == world_size:
        assert resumed == whole
        one, other = ([{**row, "seconds": 0} for row in progressive(tmp_path / name)] for name in ("whole", "pieces"))
        assert one == other
        assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()
    else:
        np.testing.assert_allclose(losses(tmp_path / "pieces"), losses(tmp_path / "whole"), rtol=1e-5)


def test_there_is_a_checkpoint_at_the_end_of_each_day(rank_pool, tmp_path, dataset):
    job = job_by_days(tmp_path / "run", dataset, checkpoint={"keep": 10})
    rank_pool.run(1, train_and_fingerprint, job)
    actual = [
        json.loads((path / "manifest.json").read_text())["days"]
        for path in sorted((tmp_path / "run/checkpoints").glob("step_*"))
    ]
    assert [(days["day"], days["trained"]) for days in actual] == [(1, 0), (2, 0), (3, 0)]
    assert [row["kind"] for row in read_metrics(tmp_path / "run/metrics.jsonl")].count("validation") == 1


def test_the_model_is_trained_before_it_is_evaluated_and_a_fresh_one_knows_no_later_day(rank_pool, tmp_path):
    """Labels of days from the second on are turned round: the first day's losses stay, to the bit."""
    shown = random_shown()
    turned = [(*one[:3], 1.0 - one[3], 0.0) if one[2] >= DAY else one for one in shown]
    for name, written in (("as it was", shown), ("turned", turned)):
        write_world(tmp_path / name / "dataset", written)
        rank_pool.run(1, train_and_fingerprint, job_by_days(tmp_path / name / "run", tmp_path / name / "dataset"))
    num_steps = -(-len(rows_on_days(tmp_path / "as it was" / "dataset")[0]) // 8)
    before, after = (losses(tmp_path / name / "run") for name in ("as it was", "turned"))
    assert before[:num_steps].tolist() == after[:num_steps].tolist()
    assert before[num_steps] != after[num_steps]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"epochs": 3}}, "epochs = 3: daily training has no epochs"),
        ({"train": {"schedule": "linear"}}, "schedule = 'linear' needs a last step"),
        ({"train": {"early_stopping": {"metric": "auc/click"}}}, "early_stopping returns to an earlier epoch"),
        ({"train": {"days": {"length": "a day"}}}, "write a number and one of s, m, h, d, w"),
    ],
)
def test_settings_that_exclude_days_are_refused(tmp_path, sections, expected):
    with pytest.raises(UserError, match=expected):
        job_by_days(tmp_path / "run", tmp_path / "dataset", **sections)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({}, "train.days trains on impressions, and model.task = 'next_item' has none"),
        ({"labels": ["click"], "history_label": "click"}, 'train.days needs split.kind = "global_time"'),
    ],
)
def test_days_need_impressions_and_a_time_that_splits_them(logs, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        check_config({"logs": {"path": "unused", **logs}, "train": {"days": {}}}, "test")
