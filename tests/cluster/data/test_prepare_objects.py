"""Datasets on an object storage: the files of a local one, also after a death at any upload, and appended to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import Config
from cluster.data import prepare as preparing
from cluster.ray_cluster.task_pool import TaskLimit
from tests.support.object_store import Store, memory_store
from tests.support.prepared import config_at, made, write_events
from trainer.data.dataset.manifest import Manifest, read_manifest, verify_dataset
from trainer.data.logs.files import find_files
from trainer.data.prepare import work
from trainer.data.stream import part_files
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError
from trainer.storage import parquet
from trainer.storage.objects.paths import path_of
from trainer.storage.retries import Retries

DATASET = "s3://bucket/dataset"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tasks in this process, which alone has the storage."""

    def run_tasks(
        task: Callable[[Any, int], Any], job: Any, numbers: list[int], limit: TaskLimit
    ) -> Iterator[tuple[int, Any]]:
        for number in numbers:
            yield number, task(job, number)

    monkeypatch.setattr(preparing, "run_tasks", run_tasks)
    monkeypatch.setattr(preparing, "EVENTS_PER_PARTITION", 60)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with memory_store(monkeypatch) as one:
        yield one


def write_logs(folder: Path, first: int, last: int) -> None:
    events = [(f"user-{n % 23}", f"item-{n * 7 % 31}", n, float(n % 5)) for n in range(first, last)]
    write_events(folder / f"logs/events-{first}.parquet", [*events, (None, "item-1", last, 0.0)], "price")


def config_of(folder: Path, dataset: str) -> Config:
    config = config_at(folder, tasks=1, logs={"max_rejected_fraction": 0.5})
    return config.model_copy(update={"run": config.run.model_copy(update={"dataset": dataset})})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_logs(tmp_path, 0, 150)
    return config_of(tmp_path, DATASET)


def local_files(tmp_path: Path) -> dict[str, bytes]:
    """Return the files of the same dataset on a local disk."""
    made(config_of(tmp_path, str(tmp_path / "dataset")))
    return {path.name: path.read_bytes() for path in (tmp_path / "dataset").iterdir() if path.name != "card.html"}


def check_same(store: Store, expected: dict[str, bytes]) -> None:
    assert [name for name in store.names("bucket/dataset/") if name != "card.html"] == sorted(expected)
    assert [n for n, data in expected.items() if store.objects[f"bucket/dataset/{n}"][0] != data] == []


@pytest.mark.parametrize("least_bytes", [work.LEAST_BYTES, 0])
def test_the_files_are_those_of_a_local_dataset(
    config: Config, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_bytes: int
) -> None:
    monkeypatch.setattr(work, "LEAST_BYTES", least_bytes)  # of a vocabulary in an object
    manifest = made(config)
    assert any("values-item.arrow" in line for line in store.log) == (least_bytes == 0)
    assert len(manifest.parts) > 1
    check_same(store, local_files(tmp_path))
    puts = [line.removeprefix("put bucket/dataset/") for line in store.log if line.startswith("put bucket/dataset/")]
    assert puts[puts.index("manifest.json") + 1 :] == ["card.html", "card.json"]  # the commit is last
    assert made(config) == manifest
    verify_dataset(path_of(DATASET), manifest)


def test_logs_on_the_storage_give_the_same_dataset(config: Config, store: Store, tmp_path: Path) -> None:
    expected = made(config)
    for path in (tmp_path / "logs").iterdir():
        (path_of("s3://bucket/logs") / path.name).write_bytes(path.read_bytes())
    logs = config.logs.model_copy(update={"path": "s3://bucket/logs/*.parquet"})
    run = config.run.model_copy(update={"dataset": "s3://bucket/other"})
    manifest = made(config.model_copy(update={"logs": logs, "run": run}))
    assert manifest.digest == expected.digest
    (entry,) = manifest.source["files"]
    assert entry["path"] == "s3://bucket/logs/events-0.parquet"
    (file,) = find_files("s3://bucket/logs/*.parquet")
    store.failures = [OSError("AWS Error ACCESS_DENIED during GetObject operation: Access Denied.")]
    with pytest.raises(UserError, match="credentials in the environment"):
        file.content_hash()


@pytest.mark.parametrize("nth", [0, 2, 4, 7, 9, 11])
def test_a_preparation_that_dies_at_any_upload_is_continued(
    config: Config, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    class Killed(BaseException):
        pass

    before, uploads = store.put, 0

    def put(key: str, data: bytes) -> None:
        nonlocal uploads
        if key.startswith("bucket/dataset/"):
            uploads += 1
            if uploads > nth:
                raise Killed
        before(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", put)
        with pytest.raises(Killed):
            made(config)
    assert "manifest.json" not in store.names("bucket/dataset/")
    with pytest.raises(UserError, match="no finished dataset"):
        read_manifest(path_of(DATASET))
    for lease in path_of("s3://bucket/.dataset.lease").iterdir():  # of the dead process
        lease.unlink()
    made(config)
    check_same(store, local_files(tmp_path))


def test_later_logs_are_appended(config: Config, store: Store, tmp_path: Path) -> None:
    first = made(config)
    local_files(tmp_path)
    write_logs(tmp_path, 150, 220)
    second = made(config)
    assert [part.path for part in second.parts[: len(first.parts)]] == [part.path for part in first.parts]
    assert second.generation == 1
    check_same(store, local_files(tmp_path))


def test_a_folder_in_use_or_with_other_objects_is_refused(config: Config, store: Store) -> None:
    (path_of(DATASET) / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="in use by something else"):
        made(config)
    assert store.names("bucket/dataset/") == ["notes.txt"]


def rows(manifest: Manifest, **options: Any) -> RowGroupReader:
    return RowGroupReader(path_of(DATASET), manifest, ColumnSelection(times=True), **options)


def test_footers_are_read_once_although_files_are_opened_again(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = made(config)
    opened: list[bool] = []

    def open_parquet(path: Path, **options: Any) -> Any:
        opened.append(options["metadata"] is None)
        return parquet.open_parquet(path, **options)

    monkeypatch.setattr(part_files, "MAX_OPEN", 1)
    monkeypatch.setattr(part_files, "open_parquet", open_parquet)
    reader = rows(manifest, cache_bytes=0)
    groups = list(range(len(manifest.group_rows)))
    for group in groups:
        reader.read([group])
    assert sum(opened) == len(manifest.parts)
    store.log.clear()
    for group in groups:
        reader.read([group])
    assert sum(opened) == len(manifest.parts) < len(opened)
    assert not [line for line in store.log if line.startswith("head")]


def test_a_storage_that_does_not_answer_is_asked_again(config: Config, store: Store) -> None:
    manifest = made(config)
    reader = rows(manifest, cache_bytes=0, retries=Retries(2, 0.0))
    expected = reader.read([0])[0].items.tolist()
    store.failures = [OSError("AWS Error NETWORK_CONNECTION during GetObject operation")] * 2
    again = rows(manifest, cache_bytes=0, retries=Retries(2, 0.0))
    assert again.read([0])[0].items.tolist() == expected
    store.failures = [OSError("AWS Error NETWORK_CONNECTION during GetObject operation")] * 9
    with pytest.raises(UserError, match="the storage does not answer"):
        rows(manifest, cache_bytes=0, retries=Retries(2, 0.0)).read([0])


def test_a_part_of_another_size_is_named(config: Config, store: Store) -> None:
    manifest = made(config)
    key = f"bucket/dataset/{manifest.parts[0].path}"
    store.objects[key] = (store.objects[key][0][:-1], 0.0)
    with pytest.raises(UserError, match=r"s3://bucket/dataset/part-000-00000\.parquet: has [\d,]+ bytes"):
        rows(manifest).read([0])
