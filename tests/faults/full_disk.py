"""Disks that take no more: a small filesystem in memory where the tests may mount one, and writes that fail at a given number."""

import builtins
import contextlib
import errno
import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "256k") -> Iterator[Path]:
    """Yield a filesystem of this size, mounted on `folder`. Skips where the tests may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILLER = "filler"


def fill(folder: Path, free_bytes: int = 0) -> None:
    """Leave so many bytes free, in whole pages."""
    page = bytes(4096)
    with (folder / FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize >= free_bytes + len(page):
            file.write(page)


def temporary_files(folder: Path) -> list[str]:
    """Return files and folders that only an unfinished write leaves."""
    return sorted(
        path.name for path in folder.rglob("*") if path.name.startswith(".") and path.name not in (".lock", ".metadata")
    )


class FailingWrites:
    """Files below `folder` fail at the write (or rename, or new folder) of number `at`, and at all later ones.

    A fake for machines where no filesystem can be mounted; what other libraries write in C it does not see.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: int, number: int = errno.ENOSPC) -> None:
        self.writes = 0
        self._folder, self._at, self._number = str(folder.resolve()), at, number
        opened, replace, mkdir = io.open, Path.replace, os.mkdir

        def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            result = opened(file, mode, *arguments, **options)
            if isinstance(file, int) or not self._concerns(file) or not set(mode) & set("wax+"):
                return result
            write = result.write

            def checked(data: Any) -> Any:
                self._count()
                return write(data)

            result.write = checked
            return result

        def checked_replace(path: Path, target: Any) -> Path:
            if self._concerns(target):
                self._count(target)
            return replace(path, target)

        def checked_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
            if self._concerns(path):
                self._count(path)
            mkdir(path, *arguments, **options)

        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)
        patch.setattr(Path, "replace", checked_replace)
        patch.setattr(os, "mkdir", checked_mkdir)

    def _concerns(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self._folder)

    def _count(self, *named: Any) -> None:
        """Raise the error with the path of a renamed or created file, but not of a write, as the system does."""
        self.writes += 1
        if self.writes >= self._at:
            raise OSError(self._number, os.strerror(self._number), *map(str, named))
