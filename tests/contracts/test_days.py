"""Training by days: each training impression once, in the order of days, on any number of workers, stopped and resumed anywhere."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contracts.test_ranking import KINDS, job_in
from tests.contracts.test_resume import train as train_and_fingerprint
from tests.contracts.test_world_size import global_batches, losses
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.dataset.manifest import read_manifest
from trainer.job import Job
from trainer.log import read_metrics
from trainer.stream.examples import WINDOW_STEP
from trainer.stream.row_groups import RowGroupReader, Wanted

DAY = 20
SGD: dict[str, Any] = {"epochs": 10, "days": {"length": DAY}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impressions") / "dataset"
    write_world(folder, random_shown())
    return folder


def job_by_days(run_dir: Path, dataset: Path, **sections: Any) -> Job:
    train = {"days": {"length": DAY}, **sections.pop("train", {})}
    return job_in(run_dir, dataset, KINDS["din"], train=train, **sections)


def rows_on_days(dataset: Path) -> list[set[int]]:
    """By brute force: the rows with training impressions on each day."""
    manifest = read_manifest(dataset)
    reader = RowGroupReader(dataset, manifest, Wanted(impressions=True))
    found: list[set[int]] = [set() for _ in range(3)]
    row_id = 0
    for group in range(len(reader.group_rows)):
        packed = reader.read([group])[group]
        shown = packed.impressions
        for row in range(packed.starts.size):
            for time in shown.times[shown.starts[row] : shown.ends[row]].tolist():
                if time < 60:
                    found[time // DAY].add(row_id)
            row_id += 1
    return found


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


@pytest.mark.parametrize(("world_size", "then"), [(1, 1), (2, 2), (1, 2)])
def test_stopped_within_a_day_and_resumed_it_is_as_if_nothing_had_happened(
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
        assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()
    else:
        np.testing.assert_allclose(losses(tmp_path / "pieces"), losses(tmp_path / "whole"), rtol=1e-5)


def test_there_is_a_checkpoint_at_the_end_of_each_day(rank_pool, tmp_path, dataset):
    job = job_by_days(tmp_path / "run", dataset, checkpoint={"keep": 10})
    rank_pool.run(1, train_and_fingerprint, job)
    found = [
        json.loads((path / "manifest.json").read_text())["days"]
        for path in sorted((tmp_path / "run/checkpoints").glob("step_*"))
    ]
    assert [(days["day"], days["trained"]) for days in found] == [(1, 0), (2, 0), (3, 0)]
    assert [row["kind"] for row in read_metrics(tmp_path / "run/metrics.jsonl")].count("validation") == 1
