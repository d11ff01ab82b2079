"""Vocabularies with more values than the driver holds: the same dataset, byte for byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.data import prepare
from tests.support.prepared import config_at, made, write_table
from trainer.data.dataset.manifest import Manifest, verify_dataset
from trainer.data.prepare import sorted_values, vocabularies, work
from trainer.data.prepare.totals import Totals
from trainer.data.prepare.work import GroupJob

pytestmark = pytest.mark.usefixtures("ray_session")


def write_logs(folder: Path, name: str, seed: int, first_time: int, num_items: int, text: bool) -> None:
    """Write a log in which many items occur only in the held-out period, or only once."""
    random = np.random.default_rng(seed)
    items = np.minimum(random.geometric(0.01, 3000), num_items)
    columns = {
        "user_id": pa.array([f"u{number}" for number in random.integers(0, 80, 3000)]),
        "item_id": pa.array([f"é{number}" if number % 2 else f"item {number}" for number in items] if text else items),
        "time": pa.array(first_time + np.sort(random.integers(0, 1000, 3000))),
        "shop": pa.array([f"s{number}" for number in random.geometric(0.02, 3000)]),
        "y": pa.array((random.random(3000) < 0.3).astype(np.float32)),
    }
    write_table(folder / name, columns, row_group_size=250)


def prepared(tmp_path: Path, name: str, logs: dict[str, Any]) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest, and the bytes of all Parquet files."""
    config = config_at(tmp_path, name, logs=logs)
    manifest = made(config)
    verify_dataset(config.dataset_dir, manifest)
    return manifest, {path.name: path.read_bytes() for path in config.dataset_dir.glob("*.parquet")}


@pytest.mark.parametrize("ranking", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_a_dataset_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranking: bool, text: bool
) -> None:
    monkeypatch.setattr(prepare, "EVENTS_PER_PARTITION", 700)
    write_logs(tmp_path / "logs", "a.parquet", 1, 0, 400, text)
    logs: dict[str, Any] = {"features": {"shop": {"kind": "categorical"}}}
    if ranking:
        logs |= {"labels": ["y"], "history_label": "y"}
    expected = [prepared(tmp_path, "whole", logs)]
    write_logs(tmp_path / "logs", "b.parquet", 2, 1000, 700, text)
    expected.append(prepared(tmp_path, "whole", logs))
    (tmp_path / "logs/b.parquet").rename(tmp_path / "b.parquet")  # its time of change is in the manifest

    monkeypatch.setattr(sorted_values, "MOST_VALUES", 30)
    monkeypatch.setattr(sorted_values, "LEAST_ROWS", 3)
    monkeypatch.setattr(work, "LEAST_BYTES", 0)
    monkeypatch.setattr(vocabularies, "_BLOCK", 40)
    assert prepared(tmp_path, "files", logs) == expected[0]
    (tmp_path / "b.parquet").rename(tmp_path / "logs/b.parquet")
    assert prepared(tmp_path, "files", logs) == expected[1]
    assert expected[0][0].vocabulary.num_rows > 200
    assert len(expected[0][0].parts) > 3


def test_the_driver_holds_no_counts_of_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as many as the different items of each partition."""
    held: list[Totals] = []

    def totals(*arguments: Any) -> Totals:
        held.append(Totals(*arguments))
        return held[-1]

    monkeypatch.setattr(prepare, "Totals", totals)
    monkeypatch.setattr(prepare, "EVENTS_PER_PARTITION", 700)
    write_logs(tmp_path / "logs", "a.parquet", 1, 0, 400, text=False)
    manifest, _ = prepared(tmp_path, "one", {"labels": ["y"], "history_label": "y"})
    [one] = held
    assert len(one.grouped) > 3
    assert all(not result.items.numbers.size and result.history_items is None for result in one.grouped)
    assert not one.values.values
    assert int(one.events_of_items[0].sum()) == manifest.counts.rows_kept


def test_tasks_receive_the_files_of_large_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[GroupJob] = []
    run_tasks = prepare.run_tasks

    def spy(task: Any, job: Any, *arguments: Any) -> Iterator[tuple[int, Any]]:
        sent.extend([job] if isinstance(job, GroupJob) else [])
        return run_tasks(task, job, *arguments)

    monkeypatch.setattr(prepare, "run_tasks", spy)
    monkeypatch.setattr(work, "LEAST_BYTES", 3000)
    write_logs(tmp_path / "logs", "a.parquet", 1, 0, 400, text=True)
    prepared(tmp_path, "one", {"features": {"shop": {"kind": "categorical"}}})
    [job] = sent
    assert set(job.stored) == {"item"}
    assert job.plan.ids["item"].vocabulary is None
    assert job.plan.ids["shop"].vocabulary is not None  # small ones are part of the job
    assert not job.stored["item"].path.exists()  # with the work folder
