"""Prepare that was stopped continues where it stopped, and ends with the same bytes; killed for good, or from within."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config.run_config import Config
from cluster.data.prepare import Progress, prepare
from tests.support.prepared import config_at, made, refusal, rejected_rows, write_events, write_table
from trainer.data.dataset import card
from trainer.data.dataset.folder import attempt
from trainer.data.dataset.manifest import Manifest, read_manifest, verify_dataset

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_SECONDS = 90.0
EVENTS = [(user, (user * 7 + n * n) % 23, n, f"c{n % 5}") for n in range(12) for user in range(60)]


class StoppedHere(BaseException):
    """Neither an Exception nor anything that prepare knows, as a KeyboardInterrupt is."""


@pytest.fixture(autouse=True)
def _small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 130)


def write_logs(tmp_path: Path, first: int, last: int) -> None:
    """Write files of sixty events, one chunk each; one row of the first is bad, and one occurs twice."""
    for number in range(first, last):
        rows: list[Any] = EVENTS[60 * number : 60 * number + 60]
        rows = rows if number else [*rows, (None, 1, 1, "c1"), rows[3]]
        write_events(tmp_path / f"logs/{number:02d}.parquet", rows, "color")


def config_of(tmp_path: Path, dataset: str = "dataset", **logs: Any) -> Config:
    features = {"color": {"kind": "categorical"}, "raw": {"kind": "categorical", "column": "color"}}
    tables = {"raw": {"ids": {"kind": "hash", "num_rows": 9}}}
    items = {"path": str(tmp_path / "items.parquet"), "features": {"price": {"kind": "numeric"}}}
    write_table(tmp_path / "items.parquet", {"item_id": [1, 2, 1], "price": [0.5, 2.0, 1.0]})
    os.utime(tmp_path / "items.parquet", ns=(0, 0))  # rewritten by each call, and still the same
    return config_at(tmp_path, dataset, 1, logs={"features": features, "items": items, **logs}, tables=tables)


def stop_at(stage: str, done: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            raise StoppedHere

    return on_progress


def results_in(config: Config) -> dict[str, int]:
    """Return the time at which each recorded task was completed."""
    return {path.name: path.stat().st_mtime_ns for path in config.dataset_dir.glob(".work-*/*.done")}


def finished(config: Config) -> tuple[Manifest, list[Progress], list[dict[str, int]]]:
    """Run to the end: the manifest, all progress, and what was done at each."""
    progress: list[Progress] = []
    done: list[dict[str, int]] = []

    def on_progress(now: Progress) -> None:
        progress.append(now)
        done.append(results_in(config))

    return prepare(config, on_progress), progress, done


def content_of(config: Config) -> dict[str, bytes]:
    """Return the bytes of a dataset's files. The page names its folder and the moment of its making, which are masked."""
    content = {path.name: path.read_bytes() for path in config.dataset_dir.iterdir() if path.name != "manifest.json"}
    page = content["card.html"].replace(
        f"Data card of {card.name_of(config.dataset_dir)}".encode(), b"Data card of NAME"
    )
    return {**content, "card.html": re.sub(rb"(?<=Prepared</dt><dd>)\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"MOMENT", page)}


def first_of(stage: str, progress: list[Progress]) -> Progress:
    return next(p for p in progress if p.stage == stage)


@pytest.mark.parametrize(("stage", "done"), [("read", 0), ("read", 4), ("read", 12), ("group", 0), ("group", 3)])
@pytest.mark.parametrize("appended", [False, True], ids=["made", "appended"])
def test_completed_work_is_not_repeated(tmp_path: Path, appended: bool, stage: str, done: int) -> None:
    if appended:
        write_logs(tmp_path, 0, 4)
        for name in ("dataset", "reference"):
            made(config_of(tmp_path, name, max_rejected_fraction=0.1))
    write_logs(tmp_path, 4 if appended else 0, 12)
    reference, config = (config_of(tmp_path, name, max_rejected_fraction=0.1) for name in ("reference", "dataset"))
    expected = made(reference)
    before = read_manifest(config.dataset_dir) if appended else None

    done = {12: 9, 3: 1}.get(done, done) if appended else done  # eight new files and the items again, two partitions
    with pytest.raises(StoppedHere):
        prepare(config, stop_at(stage, done))
    left = results_in(config)
    if before is not None:
        assert read_manifest(config.dataset_dir) == before
        verify_dataset(config.dataset_dir, before)
    manifest, progress, results = finished(config)
    assert first_of(stage, progress).done == done
    assert all(left.items() <= now.items() for now in results)
    assert manifest == expected
    assert manifest.digest == expected.digest
    assert content_of(config) == content_of(reference)
    assert rejected_rows(config)[-1][2] in ("duplicate", "duplicate item")


def test_stopped_while_moving_out_nothing_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_logs(tmp_path, 0, 12)
    reference, config = (config_of(tmp_path, name) for name in ("reference", "dataset"))
    expected = made(reference)

    def stop(*_: Any) -> None:
        raise StoppedHere

    with monkeypatch.context() as patched:
        patched.setattr("cluster.data.prepare.write_manifest", stop)
        with pytest.raises(StoppedHere):
            made(config)
    parts = sorted(config.dataset_dir.glob("part-*"))
    assert len(parts) > 4
    [work] = config.dataset_dir.glob(".work-*")
    for part in parts[::2]:  # as if it had been stopped half-way
        part.rename(work / part.name)
    written = {
        part.name: part.stat().st_mtime_ns for part in [*work.glob("part-*"), *config.dataset_dir.glob("part-*")]
    }
    manifest, progress, _ = finished(config)
    assert [(p.stage, p.done) for p in progress] == [("read", 13), ("group", first_of("group", progress).total)]
    assert manifest == expected
    assert content_of(config) == content_of(reference)
    assert written == {path.name: path.stat().st_mtime_ns for path in config.dataset_dir.glob("part-*")}


def test_stopped_after_the_manifest_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_logs(tmp_path, 0, 12)
    config = config_of(tmp_path)

    def stop_at_the_end(folder: Path, keep: str = "") -> None:
        if (folder / "manifest.json").exists():
            raise StoppedHere

    with monkeypatch.context() as patched:
        patched.setattr("trainer.data.dataset.folder._clean", stop_at_the_end)
        with pytest.raises(StoppedHere):
            made(config)
    assert list(config.dataset_dir.glob(".work-*"))
    assert (config.dataset_dir / "card.html").exists()
    manifest, progress, _ = finished(config)
    assert progress == []
    verify_dataset(config.dataset_dir, manifest)
    assert not list(config.dataset_dir.glob(".work-*"))


def test_a_part_that_is_missing_or_cut_off_is_made_again(tmp_path: Path) -> None:
    write_logs(tmp_path, 0, 12)
    reference, config = (config_of(tmp_path, name) for name in ("reference", "dataset"))
    expected = made(reference)
    with pytest.raises(StoppedHere):
        prepare(config, stop_at("group", 3))
    parts = sorted(config.dataset_dir.glob(".work-*/part-*"))
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    manifest, progress, _ = finished(config)
    assert first_of("group", progress).done == 1
    assert manifest == expected


def test_work_for_other_settings_or_files_is_removed(tmp_path: Path) -> None:
    write_logs(tmp_path, 0, 12)
    with pytest.raises(StoppedHere):
        prepare(config_of(tmp_path), stop_at("group", 2))
    [old] = (tmp_path / "dataset").glob(".work-*")
    config = config_of(tmp_path, duplicates="keep")
    with pytest.raises(StoppedHere):
        prepare(config, stop_at("read", 0))
    [new] = (tmp_path / "dataset").glob(".work-*")
    assert new.name != old.name
    assert results_in(config) == {}
    write_events(tmp_path / "logs/99.parquet", [(1, 1, 1, "c1")], "color")
    assert made(config).counts.rows_read == 12 * 60 + 3
    assert not list((tmp_path / "dataset").glob(".work-*"))


def test_after_a_mistake_of_the_user_nothing_is_left(tmp_path: Path) -> None:
    write_logs(tmp_path, 0, 12)
    with pytest.raises(StoppedHere):
        prepare(config_of(tmp_path), stop_at("group", 2))
    write_events(tmp_path / "logs/98.parquet", [(None, 1, 1, "c1")] * 200, "color")
    assert "null user" in refusal(config_of(tmp_path))
    assert list((tmp_path / "dataset").iterdir()) == []
    (tmp_path / "logs/98.parquet").unlink()
    before = made(config_of(tmp_path))
    write_events(tmp_path / "logs/98.parquet", [(1, 5, 0, "c1")] * 200, "color")
    assert "1 late" in refusal(config_of(tmp_path, max_rejected_fraction=0.001))  # found while grouping
    assert read_manifest(tmp_path / "dataset") == before
    files = {"manifest.json", "card.html", "card.json", "rejected-000.parquet", *(file.path for file in before.files)}
    assert {path.name for path in (tmp_path / "dataset").iterdir()} == files


def test_another_command_may_have_extended_the_dataset_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_logs(tmp_path, 0, 10)
    made(config_of(tmp_path, duplicates="keep"))
    write_logs(tmp_path, 10, 11)
    config = config_of(tmp_path, duplicates="keep")
    write_logs(tmp_path, 11, 12)
    both = config_of(tmp_path, duplicates="keep")
    entered = []

    def attempt_after_another(folder: Path, key: str) -> Any:
        if not entered:
            entered.append(True)
            (tmp_path / "logs/11.parquet").rename(tmp_path / "later.parquet")
            made(config)
            (tmp_path / "later.parquet").rename(tmp_path / "logs/11.parquet")
        return attempt(folder, key)

    monkeypatch.setattr("cluster.data.prepare.attempt", attempt_after_another)
    manifest = made(both)
    assert (manifest.generation, manifest.counts.rows_read, manifest.counts.rejected) == (2, 722, {"null user": 1})


# Killed for good

KILLED = """
import os, signal, sys
from pathlib import Path
import cluster.data.prepare
from cluster.config.run_config import load_config
from cluster.ray_cluster.session import ray_session

config, stage, done = load_config(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if stage == "manifest":
    cluster.data.prepare.write_manifest = kill
cluster.data.prepare.EVENTS_PER_PARTITION = 130
with ray_session(config.cluster):
    cluster.data.prepare.prepare(config, lambda p: kill() if (p.stage, p.done) == (stage, done) else None)
"""


def run_until_killed(config_file: Path, stage: str, done: int) -> None:
    """Run the same command in its own process, on the Ray of the tests; the process kills itself."""
    command = [sys.executable, "-c", KILLED, str(config_file), stage, str(done)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_killed_in_both_passes_and_before_the_manifest(tmp_path: Path) -> None:
    write_logs(tmp_path, 0, 12)
    reference, config = (config_of(tmp_path, name) for name in ("reference", "dataset"))
    expected = made(reference)
    config_file = tmp_path / "config.json"
    values = config.model_dump(mode="json")
    values["cluster"]["address"] = ray.get_runtime_context().gcs_address
    config_file.write_text(json.dumps(values))
    for stage, done in (("read", 5), ("group", 2), ("manifest", 0)):
        run_until_killed(config_file, stage, done)
        left = results_in(config)
        assert len([name for name in left if name.startswith("read-")]) >= (5 if stage == "read" else 13)
        assert not (config.dataset_dir / "manifest.json").exists()
    manifest, progress, results = finished(config)
    assert first_of("group", progress).done == first_of("group", progress).total
    assert all(left.items() <= now.items() for now in results)
    assert manifest == expected
    assert content_of(config) == content_of(reference)
