"""Small files are replaced as a whole and are on the disk before they are seen; digests are of values, not of their order."""

import json
import os
from pathlib import Path

import pytest

from trainer.storage import digest_of, write_json_atomically


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is interrupted when everything but the rename is done."""
    path = tmp_path / "state.json"
    write_json_atomically(path, {"step": 1})

    def fail(descriptor: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_json_atomically(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "state.json", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        # What the descriptor is of, and what of it has left Python's own buffers by now.
        if os.fstat(descriptor).st_size:
            flushed.append((os.fstat(descriptor).st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json_atomically(path, {"step": 1})
    assert (path.stat().st_ino, False) in flushed
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_digest_is_of_values_and_not_of_their_order() -> None:
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})
    assert digest_of({"a": 1, "b": [2, 3]}) != digest_of({"a": 1, "b": [3, 2]})
