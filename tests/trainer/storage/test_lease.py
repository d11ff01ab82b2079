"""Leases of folders on an object storage: one holder, also after a death, and the end of a holder that lost its lease."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.object_store import Store
from trainer.storage.objects import lease
from trainer.storage.objects.lease import HeldError, holder_of, leased
from trainer.storage.objects.paths import ObjectPath, path_of


@pytest.fixture
def folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)
    path = path_of("s3://bucket/runs/demo")
    assert isinstance(path, ObjectPath)
    return path


def put_foreign(folder: ObjectPath, **changes: object) -> ObjectPath:
    """Write the lease of a process on another machine, which does not renew it."""
    values = {"name": "process 7 on node-2", "machine": "node-2", "pid": 7, "created": 1.0, **changes}
    path = folder.parent / f".{folder.name}.lease" / "other.json"
    path.write_text(json.dumps(values))
    return path


def test_a_second_process_is_refused_by_name(folder: ObjectPath) -> None:
    with leased(folder, "process 1 on node-1"):
        assert holder_of(folder) == "process 1 on node-1"
        with pytest.raises(HeldError, match="process 1 on node-1"), leased(folder, "process 2"):
            pass
        assert holder_of(folder) == "process 1 on node-1"
    assert holder_of(folder) is None
    with leased(folder, "process 2"):
        pass


def test_the_lease_is_no_part_of_the_folder(folder: ObjectPath) -> None:
    with leased(folder, "one"):
        assert not folder.exists()


def test_a_lease_that_is_not_renewed_expires(folder: ObjectPath) -> None:
    put_foreign(folder)
    started = time.monotonic()
    with leased(folder, "next"):
        assert time.monotonic() - started >= 0.4
        assert holder_of(folder) == "next"


def test_the_lease_of_a_process_that_ended_on_this_machine_is_taken_at_once(folder: ObjectPath) -> None:
    put_foreign(folder, machine=lease._machine(), pid=2**22 + 1)
    started = time.monotonic()
    assert holder_of(folder) is None
    with leased(folder, "next"):
        assert time.monotonic() - started < 0.4


def test_of_many_at_the_same_moment_at_most_one_holds_the_folder(folder: ObjectPath) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def hold(number: int) -> bool:
        nonlocal inside, most
        try:
            with leased(folder, f"process {number}"):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.3)
                with lock:
                    inside -= 1
        except HeldError:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        held = list(threads.map(hold, range(6)))
    assert most == 1
    assert sum(held) >= 1


def test_a_holder_whose_lease_was_removed_is_ended(folder: ObjectPath, store: Store) -> None:
    lost = threading.Event()
    with leased(folder, "one", lost.set):
        assert not lost.wait(0.2)
        (own,) = (folder.parent / ".demo.lease").glob("*.json")
        own.unlink()
        assert lost.wait(2.0)


def test_a_holder_that_cannot_renew_its_lease_is_ended(folder: ObjectPath, store: Store) -> None:
    lost = threading.Event()
    with leased(folder, "one", lost.set):
        store.failures = [OSError("AWS Error NETWORK_CONNECTION")] * 2
        assert not lost.wait(0.2)  # a short failure passes
        store.failures = [OSError("AWS Error NETWORK_CONNECTION")] * 1000
        assert lost.wait(2.0)
        store.failures = []


ENDED = """
import signal, time
from pathlib import Path
import pytest
from tests.support.object_store import memory_store
from trainer.storage.objects import lease
from trainer.storage.objects.paths import path_of

handler = {handler}
if handler is not None:
    signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGINT, signal.{interrupts})  # not what the shell of these tests has left
lease.RENEW_SECONDS = 0.05
with pytest.MonkeyPatch.context() as patch, memory_store(patch) as store:
    try:
        with lease.leased(path_of("s3://bucket/runs/demo"), "one"):
            for name in store.names():
                del store.objects[name]
            time.sleep(40.0)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize(
    ("handler", "interrupts", "code", "said"),
    [
        ("lambda *_: None", "default_int_handler", 1, ""),
        ("None", "default_int_handler", 0, "interrupted\n"),
        ("None", "SIG_IGN", 1, ""),
    ],
    ids=["command", "program", "program that ignores interrupts"],
)
def test_a_command_without_its_lease_ends_at_once_and_a_program_is_interrupted(
    handler: str, interrupts: str, code: int, said: str
) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDED.format(handler=handler, interrupts=interrupts)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    seconds = time.monotonic() - started
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert "s3://bucket/runs/demo: the lease of this process was lost" in done.stderr
    assert seconds < 40.0, "the program slept to its end"
