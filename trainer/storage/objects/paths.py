"""Paths on S3, GCS, Azure and HDFS, which behave as local paths do, through the filesystems of pyarrow.

    path = path_of("s3://bucket/runs/demo")     an ObjectPath; a local text gives a plain Path
    (path / "config.json").write_text("{}")

An object appears whole when its writer closes it, or not at all if its process dies. Objects are never renamed or appended to:
`rename`, `replace` and the mode "a" raise. Functions of the operating system refuse an ObjectPath, so none is taken for a local
name. Credentials come from the environment of each process; a URI has none (trainer/storage/objects/credentials.py).
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import stat as stat_module
from collections.abc import Generator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PosixPath, PurePath
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from trainer.errors import UserError
from trainer.storage.objects.credentials import refusal_of
from trainer.storage.objects.streams import COPY_BYTES, ObjectReader, ObjectWriter, translated

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
BUFFER_BYTES = 1 << 18
COPIED_BYTES = 5_000_000_000  # S3 copies no larger object in one request
_PREFIXES = tuple(f"{scheme}:" for scheme in SCHEMES)
_FOLDERS = ("hdfs:", "viewfs:")  # have folders, which must exist, and cannot copy


class ObjectPath(PosixPath):
    """A path on an object storage.

    Its parts are the scheme with a colon, the bucket or host with the parameters of the URI, and the names below. `str` returns
    the URI. A path relative to another one has only names.
    """

    def __new__(cls, *parts: Any, **options: Any) -> ObjectPath:
        """Return a path of its parts."""
        return super().__new__(cls, *parts, **options)

    def __str__(self) -> str:
        """Return the URI."""
        scheme, *rest = self.parts or ("",)
        if not scheme.endswith(":"):
            return "/".join(self.parts)
        authority, mark, query = (rest[0] if rest else "").partition("?")
        return f"{scheme}//{'/'.join([authority, *rest[1:]])}{mark}{query}"

    def as_posix(self) -> str:
        """Return the URI."""
        return str(self)

    def __fspath__(self) -> str:
        """Raise TypeError, since no function of the operating system can use this path."""
        raise TypeError(f"{self} is on an object storage, where functions for local files cannot be used")

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The filesystem of pyarrow."""
        return _filesystem(*self.parts[:2])[0]

    @property
    def key(self) -> str:
        """The path within the filesystem."""
        return "/".join([_filesystem(*self.parts[:2])[1].rstrip("/"), *self.parts[2:]]) or "/"

    def _info(self) -> pafs.FileInfo:
        with translated(self):
            return self.filesystem.get_file_info(self.key)

    def _listed(self, recursive: bool = False) -> list[pafs.FileInfo]:
        from pyarrow.fs import FileSelector

        with translated(self):
            return list(
                self.filesystem.get_file_info(FileSelector(self.key, allow_not_found=True, recursive=recursive))
            )

    def exists(self, **_: Any) -> bool:
        """Return whether there is an object of this name, or one below it."""
        return bool(self._info().type.name != "NotFound")

    def is_file(self, **_: Any) -> bool:
        """Return whether there is an object of this name."""
        return bool(self._info().is_file)

    def is_dir(self, **_: Any) -> bool:
        """Return whether there are objects below this name."""
        return bool(self._info().type.name == "Directory")

    def stat(self, **_: Any) -> os.stat_result:
        """Return size and modification time. Raises FileNotFoundError."""
        info = self._info()
        if info.type.name == "NotFound":
            raise FileNotFoundError(2, "No such object", str(self))
        kind = stat_module.S_IFREG if info.is_file else stat_module.S_IFDIR
        seconds = (info.mtime_ns or 0) / 1e9
        return os.stat_result((kind, 0, 0, 1, 0, 0, info.size or 0, seconds, seconds, seconds))

    def iterdir(self) -> Generator[ObjectPath, None, None]:
        """Yield what is directly below: nothing of a name that does not exist, as of an empty folder."""
        yield from (self / info.base_name for info in self._listed())

    def glob(self, pattern: str, **_: Any) -> Generator[ObjectPath, None, None]:  # type: ignore[override]
        """Yield what matches: a name, or names after folders ("*/*.json"); `**/` stands for any number of folders."""
        head, rest = [*pattern.split("/", 1), ""][:2]
        infos = self._listed(recursive=head == "**")
        if head == "**":
            below = len(self.key.rstrip("/")) + 1
            yield from (self / info.path[below:] for info in infos if fnmatchcase(info.base_name, rest))
            return
        for info in infos:
            if fnmatchcase(info.base_name, head):
                yield from (self / info.base_name).glob(rest) if rest else (self / info.base_name,)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Create a folder where the storage has folders. Object stores have only names."""
        if self.parts[0] in _FOLDERS:
            with translated(self):
                self.filesystem.create_dir(self.key, recursive=True)

    def rmdir(self) -> None:
        """Remove the marker of an empty folder, if the storage keeps one."""
        with suppress(OSError), translated(self):
            self.filesystem.delete_dir(self.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object. Raises FileNotFoundError."""
        try:
            with translated(self):
                self.filesystem.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def open(  # type: ignore[override]
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None, **_: Any
    ) -> io.BufferedReader | ObjectWriter | io.TextIOWrapper:
        """Open for reading ("r", "rb") or for writing a new object ("w", "wb"). The object appears when its writer is closed."""
        binary: io.BufferedReader | ObjectWriter
        if mode[0] == "r" and "+" not in mode:
            binary = io.BufferedReader(ObjectReader(self, self.filesystem, self.key), BUFFER_BYTES)
        elif mode[0] in "wx" and "+" not in mode:
            self.parent.mkdir()
            binary = ObjectWriter(self, self.filesystem, self.key)
        else:
            raise io.UnsupportedOperation(f"{self}: an object cannot be opened with the mode {mode!r}")
        return binary if "b" in mode else io.TextIOWrapper(cast(Any, binary), encoding or "utf-8", errors)

    def read_bytes(self) -> bytes:
        """Return the content."""
        with translated(self), self.filesystem.open_input_stream(self.key, compression=None) as stream:
            return bytes(stream.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write the object."""
        with cast(ObjectWriter, self.open("wb")) as file:
            return file.write(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, **_: Any) -> int:  # type: ignore[override]
        """Write text as the object."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def rename(self, target: Any) -> ObjectPath:
        """Raise UnsupportedOperation: a commit must not depend on renaming here."""
        raise io.UnsupportedOperation(f"{self}: an object cannot be renamed to {target}")

    def replace(self, target: Any) -> ObjectPath:
        """Raise UnsupportedOperation, as `rename`."""
        return self.rename(target)

    def copy_to(self, target: ObjectPath) -> None:
        """Copy the object, within the storage if it can."""
        same = target.parts[:2] == self.parts[:2] and self.parts[0] not in _FOLDERS
        if same and self.stat().st_size <= COPIED_BYTES:
            with translated(target):
                self.filesystem.copy_file(self.key, target.key)
        else:
            copy_file(self, target)

    def absolute(self) -> ObjectPath:
        """Return this path."""
        return self

    def is_absolute(self) -> bool:
        """Return whether this is a path of its own, not one relative to another."""
        return bool(self.parts) and self.parts[0].endswith(":")

    def resolve(self, strict: bool = False) -> ObjectPath:
        """Return this path."""
        return self

    def expanduser(self) -> ObjectPath:
        """Return this path."""
        return self


def is_uri(text: str | PurePath) -> bool:
    """Return whether a text or path is on an object storage."""
    return isinstance(path_of(text), ObjectPath) if isinstance(text, PurePath) else _is_text_of_uri(text)


def _is_text_of_uri(text: str) -> bool:
    return "://" in text and not text.startswith("file://")


def path_of(text: str | PurePath, setting: str = "") -> Path:
    """Return the path of a setting: an ObjectPath for a URI, otherwise a local Path.

    Args:
        text: a path or URI. "file:///data" is a local path.
        setting: name of the setting, for messages.

    Raises:
        UserError: for a URI of an unknown scheme, or one that cannot be understood.
    """
    if isinstance(text, ObjectPath):
        return text
    if isinstance(text, PurePath):
        # A Path made of a URI has lost a slash.
        return ObjectPath(*text.parts) if text.parts and text.parts[0] in _PREFIXES else Path(text)
    if not _is_text_of_uri(text):
        return Path(text.removeprefix("file://"))
    where = f"{setting} " if setting else ""
    if (refusal := refusal_of(text)) is not None:
        raise UserError(f"{where.rstrip() or 'path'}: {refusal}")
    uri = urlsplit(text)
    if uri.scheme not in SCHEMES:
        raise UserError(
            f"{where}{uri.scheme}://{uri.hostname}: no filesystem is known by this scheme; "
            f"use a local path, or a URI that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        )
    if not uri.netloc or "/" in uri.query:
        raise UserError(
            f"{where}{text.partition('?')[0]}: give the URI as SCHEME://BUCKET/PATH, with parameters without a slash, for example "
            "s3://bucket/path?endpoint_override=host:9000&scheme=http"
        )
    authority = f"{uri.netloc}?{uri.query}" if uri.query else uri.netloc
    return ObjectPath(f"{uri.scheme}:", authority, *(part for part in uri.path.split("/") if part))


def local_path(text: str | PurePath, setting: str) -> Path:
    """Return the path of a setting or option that must be on a local disk or a network filesystem. Raises UserError for a URI."""
    if is_uri(text):
        raise UserError(
            f"{setting} {str(path_of(text)).partition('?')[0]}: must be a local path, not on an object storage"
        )
    return path_of(text)


def relative_link(page: Path, folder: Path) -> str:
    """Return the link from a page in `folder` to another page: relative to it, or the URI of a page on another storage."""
    if not isinstance(page, ObjectPath) and not isinstance(folder, ObjectPath):
        return os.path.relpath(page, folder)
    if page.parts[:2] != folder.parts[:2]:
        return str(page)
    return posixpath.relpath("/".join(page.parts[2:]), "/".join(folder.parts[2:]))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file between any two paths, without its times."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(cast(Any, reader), cast(Any, writer), COPY_BYTES)


def remove_tree(folder: Path, ignore_errors: bool = False) -> None:
    """Delete a folder with all that is in it. Raises OSError, unless errors are ignored."""
    if not isinstance(folder, ObjectPath):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    try:
        with translated(folder):
            folder.filesystem.delete_dir(folder.key)
    except OSError:
        if not ignore_errors:
            raise


@lru_cache
def _filesystem(scheme: str, authority: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a bucket or host, and the path of it within the filesystem."""
    host, _, query = authority.partition("?")
    if scheme == "s3:":
        # A small object then takes one request instead of three.
        query = "&".join(filter(None, [query, "allow_delayed_open=true"]))
    uri = f"{scheme}//{host}/{'?' * bool(query)}{query}"
    try:
        filesystem, base = open_uri(uri)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{scheme}//{host}: cannot be opened ({str(error).partition(chr(10))[0]}); check the URI, the network and the "
            "credentials in the environment"
        ) from None
    return filesystem, base


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return pyarrow's filesystem of a URI, and the path within it."""
    from pyarrow.fs import FileSystem  # slow to import, and settings and the command line import this module

    return cast("tuple[pafs.FileSystem, str]", FileSystem.from_uri(uri))
