"""Work is repeated a bounded number of times after errors that may pass, with waits that double, and never after others."""

import errno

import pytest

from tests.trainer.checkpoint.test_folder import flip
from trainer.storage import files
from trainer.storage.retries import Retries


class Work:
    """Work that fails with the given errors, one at a time."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "failed")
        return "done"


def test_waits_double_and_end_with_the_success() -> None:
    waits: list[float] = []
    seen: list[tuple[int | None, float]] = []
    work = Work(errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
    retries = Retries(5, 0.25, sleep=waits.append)
    assert retries.run(work, lambda error, wait: seen.append((error.errno, wait))) == "done"
    assert waits == [0.25, 0.5, 1.0]
    assert seen == [(errno.EIO, 0.25), (errno.ESTALE, 0.5), (errno.ETIMEDOUT, 1.0)]


def test_attempts_are_bounded() -> None:
    work = Work(*[errno.EIO] * 9)
    with pytest.raises(OSError, match="failed"):
        Retries(3, 0.0).run(work)
    assert work.calls == 4


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EDQUOT])
def test_an_error_that_stays_is_raised_at_once(error: int) -> None:
    work = Work(error)
    with pytest.raises(OSError, match="failed"):
        Retries(3, 0.0).run(work)
    assert work.calls == 1


def test_the_hash_of_a_file_does_not_depend_on_the_parts_in_which_it_is_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 41)
    whole = files.hash_file(path)
    for part in (1000, 10_496, 10_495, 5248):
        monkeypatch.setattr(files, "_PART_BYTES", part)
        assert files.hash_file(path) == whole
        flip(path, 9999)
        assert files.hash_file(path) != whole
        flip(path, 9999)
