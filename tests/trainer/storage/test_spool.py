"""Files that grow: whole on an object storage after each upload, and plain files on a local disk."""

import time
from pathlib import Path

from tests.support.object_store import Store
from trainer.storage.objects.paths import path_of
from trainer.storage.objects.spool import Spool, append_text


def test_a_local_folder_has_no_copy(tmp_path: Path) -> None:
    with Spool(tmp_path, "metrics") as spool:
        assert spool.folder == tmp_path
        assert spool.fetch("a.jsonl") == spool.continued("a.jsonl") == tmp_path / "a.jsonl"


def test_a_file_is_uploaded_on_a_schedule_on_request_and_at_the_end(store: Store) -> None:
    run = path_of("s3://bucket/run")
    with Spool(run, "metrics", seconds=0.02) as spool, spool.fetch("metrics.jsonl").open("a") as file:
        file.write("one\n")
        file.flush()
        end = time.monotonic() + 5.0
        while not (run / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert (run / "metrics.jsonl").read_text() == "one\n"
    with Spool(run, "metrics", seconds=60.0) as spool:
        path = spool.fetch("metrics.jsonl")
        path.write_text(path.read_text() + "two\n")
        spool.sync()
        assert (run / "metrics.jsonl").read_text() == "one\ntwo\n"
        (spool.folder / "tensorboard").mkdir()
        (spool.folder / "tensorboard/events").write_bytes(b"e")
    assert store.names("bucket/run/") == ["metrics.jsonl", "tensorboard/events"]
    assert not spool.folder.exists()


def test_only_what_changed_is_uploaded(store: Store) -> None:
    with Spool(path_of("s3://bucket/run"), "metrics", seconds=60.0) as spool:
        (spool.folder / "a").write_text("a")
        spool.sync()
        spool.sync()
    assert store.log.count("put bucket/run/a") == 1


def test_a_restarted_writer_keeps_the_lines_that_were_not_uploaded(store: Store) -> None:
    logs = path_of("s3://bucket/run/logs")
    killed = Spool(logs, "rank-0", seconds=60.0, keeps=True)
    killed.continued("rank-0.log").write_text("one\n")
    killed.sync()
    (killed.folder / "rank-0.log").write_text("one\ntrace of the crash\n")
    with Spool(logs, "rank-0", seconds=60.0, keeps=True) as spool, spool.continued("rank-0.log").open("a") as file:
        file.write("two\n")
    assert (logs / "rank-0.log").read_text() == "one\ntrace of the crash\ntwo\n"
    killed._ended.set()


def test_a_writer_on_another_machine_continues_what_was_uploaded(store: Store) -> None:
    logs = path_of("s3://bucket/run/logs")
    with Spool(logs, "rank-0", seconds=60.0, keeps=True) as spool:
        spool.continued("rank-0.log").write_text("something of an earlier run\n")
        (logs / "rank-0.log").write_text("one\n")
        assert spool.continued("rank-0.log").read_text() == "one\n"
        assert spool.fetch("rank-0.log").read_text() == "one\n"


def test_text_is_appended(store: Store, tmp_path: Path) -> None:
    for path in (path_of("s3://bucket/run/restarts.jsonl"), tmp_path / "restarts.jsonl"):
        append_text(path, "one\n")
        append_text(path, "two\n")
        assert path.read_text() == "one\ntwo\n"
