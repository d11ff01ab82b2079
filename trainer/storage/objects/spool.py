"""Files that grow: written on the local disk, and uploaded where they belong on an object storage.

Objects cannot be appended to. A file that grows, such as a log, is uploaded as a whole: on a schedule, on request, and at the end.
On a local folder there is no copy, and nothing is uploaded.
"""

import getpass
import hashlib
import os
import tempfile
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.storage.files import upload
from trainer.storage.objects.paths import ObjectPath, copy_file, remove_tree

UPLOAD_SECONDS = 5.0
BYTES_PER_SECOND = 4 << 20  # of all uploads on the schedule, so that a long log does not use the network for itself


class Spool:
    """The growing files of one writer in a folder.

    Attributes:
        folder: where they are written: the folder itself, or a local one, from which they are uploaded.
    """

    def __init__(self, target: Path, writer: str, seconds: float = UPLOAD_SECONDS, keeps: bool = False) -> None:
        """Open the files of a writer.

        Args:
            target: the folder that they belong to.
            writer: name of the writer, different from those of all others in this folder.
            seconds: wait between two uploads of files that are small.
            keeps: whether the local copies are found again by `continued` after this process died.
        """
        self._target = target
        self._seconds = seconds
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.folder = target
        if isinstance(target, ObjectPath):
            self.folder = _kept_folder(target, writer) if keeps else _new_folder()
            self._thread = threading.Thread(target=self._upload_regularly, daemon=True, name=f"spool {writer}")
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fetch(self, name: str) -> Path:
        """Return a file as it was uploaded last, to be read or continued. It need not exist."""
        local = self.folder / name
        if isinstance(self._target, ObjectPath):
            local.unlink(missing_ok=True)
            local.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                local.write_bytes((self._target / name).read_bytes())
        return local

    def continued(self, name: str) -> Path:
        """Return a log to append to, with lines that a process of this machine wrote and could not upload before it died."""
        local = self.folder / name
        if not isinstance(self._target, ObjectPath):
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            uploaded = (self._target / name).read_bytes()
        except FileNotFoundError:
            uploaded = b""
        if not (local.exists() and local.read_bytes().startswith(uploaded)):
            local.write_bytes(uploaded)
        return local

    def sync(self) -> None:
        """Upload what has changed. Raises OSError if the storage refuses it."""
        if not isinstance(self._target, ObjectPath):
            return
        with self._lock:
            for local in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                name = str(local.relative_to(self.folder))
                status = local.stat()
                now = (status.st_size, status.st_mtime_ns)
                if self._uploaded.get(name) != now:
                    upload(local, self._target / name)
                    self._uploaded[name] = now

    def close(self) -> None:
        """Upload what has changed, and remove the local copies. Raises OSError; then the copies stay."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.sync()
            remove_tree(self.folder, ignore_errors=True)

    def _upload_regularly(self) -> None:
        while not self._ended.wait(max(self._seconds, self._num_bytes() / BYTES_PER_SECOND)):
            with suppress(OSError):  # it is tried again; `sync` and `close` raise it
                self.sync()

    def _num_bytes(self) -> int:
        with suppress(OSError):
            return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return 0


def append_text(path: Path, text: str) -> None:
    """Append to a file that one process writes and that stays small. An object is written again as a whole."""
    if not isinstance(path, ObjectPath):
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return
    try:
        before = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        before = ""
    path.write_text(before + text, encoding="utf-8")


def copy_tree(source: Path, target: Path, last: Collection[str] = ()) -> None:
    """Copy all files below a folder to an object storage, within the storage if it can.

    Args:
        source: the folder.
        target: the folder that gets them.
        last: names of files that are copied after the others.
    """
    for path in sorted(source.glob("**/*"), key=lambda path: path.name in last):
        if path.is_file():
            place = target / path.relative_to(source)
            if isinstance(path, ObjectPath) and isinstance(place, ObjectPath):
                path.copy_to(place)
            else:
                copy_file(path, place)


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="shoal-spool-"))


def _kept_folder(target: ObjectPath, writer: str) -> Path:
    """Return the local folder of a writer: the same one after a restart, and of this user only."""
    digest = hashlib.sha256(f"{target}\n{writer}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"shoal-spool-{getpass.getuser()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return _new_folder()
    return folder
