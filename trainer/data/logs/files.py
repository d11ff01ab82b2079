"""Files of the logs: resolves paths, folders, globs and URIs to a sorted list of files.

This module knows names, sizes and modification times only; trainer/data/logs/reading.py reads the content. Files are
sorted by name, so the order does not depend on the filesystem.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from trainer.data.logs.format_names import FORMAT_OF_ENDING, FormatName, FormatSetting
from trainer.errors import UserError, first_line
from trainer.storage.objects import paths
from trainer.storage.objects.streams import number_of

_HASH_BLOCK_BYTES = 4 << 20
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")


class UnreadableFileError(UserError):
    """A damaged, missing or changed file: the only kind of error that logs.max_unreadable_files covers."""


@dataclass(frozen=True)
class InputFile:
    """One file of the logs."""

    # Path within the filesystem.
    path: str
    # URI of the filesystem; empty for the local disk.
    uri: str
    # File format.
    format: FormatName
    # Size in bytes.
    num_bytes: int
    # Modification time in nanoseconds since 1970; 0 if unknown.
    mtime_ns: int

    @property
    def name(self) -> str:
        """Name of the file in messages and in the manifest, without possible secrets of the URI."""
        return _name(self.uri, self.path)

    def filesystem(self) -> pafs.FileSystem:
        """Return the filesystem of the file."""
        return _opened(self.uri)[0] if self.uri else pafs.LocalFileSystem()

    def content_hash(self) -> str:
        """Return the sha256 of the file as it is stored. Raises UnreadableFileError if it cannot be read."""
        digest = hashlib.sha256()
        with explaining(self), self.filesystem().open_input_stream(self.path, compression=None) as stream:
            while block := stream.read(_HASH_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Check that the file is the one that was found. Raises UnreadableFileError if it was rewritten or removed."""
        info = self.filesystem().get_file_info(self.path)
        if info.type != pafs.FileType.File or (info.size, _modified(info, self.uri)) != (
            self.num_bytes,
            self.mtime_ns,
        ):
            raise UnreadableFileError(
                f"logs {self.name}: the file was changed or removed while it was read; run the command again"
            )


def find_files(
    path: str | list[str], format: FormatSetting = "auto", setting: str = "logs.path"
) -> tuple[InputFile, ...]:
    """Return all files that `path` leads to, sorted by name, each once.

    Folders are searched recursively. Names that begin with a dot or an underscore are skipped. Files with an unknown
    ending are skipped too, unless the format is given.

    Args:
        path: files, folders, globs or URIs.
        format: format of all files; "auto" decides by each file's ending.
        setting: name of the setting, for messages.

    Raises:
        UserError: if an entry leads to no file.
    """
    entries = entries_of(path)
    if not entries:
        raise UserError(f"{setting} is an empty list; name the files, folders or globs of the event logs")
    files = {file.name: file for entry in entries for file in _find(entry, format, setting)}
    return tuple(files[name] for name in sorted(files))


def entries_of(path: str | list[str]) -> list[str]:
    """Return the files, folders, globs and URIs of a setting as a list."""
    return [path] if isinstance(path, str) else path


def absolute(entry: str) -> str:
    """Return the entry as an absolute path. A URI is returned unchanged."""
    return entry if "://" in entry else os.path.abspath(os.path.expanduser(entry))


@contextmanager
def explaining(file: InputFile) -> Iterator[None]:
    """Turn errors of pyarrow or the operating system about a file into an UnreadableFileError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if file.uri and number_of(error) in (errno.EREMOTEIO, errno.EACCES):  # that is no damage of the file
            raise UserError(
                f"logs {file.name}: cannot be read ({first_line(error)}); check the network and the credentials in the environment"
            ) from None
        raise UnreadableFileError(
            f"logs {file.name}: cannot be read as {file.format} ({first_line(error)}); it is truncated, damaged, "
            "missing, or of another format: write the file again, leave it out of logs.path, or set logs.format"
        ) from None


def _find(entry: str, format_setting: FormatSetting, setting: str) -> list[InputFile]:
    try:
        filesystem, uri, start, segments = _locate(entry)
        infos = [file for info in _expand(filesystem, start, segments) for file in _files_in(filesystem, info)]
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{setting} {entry!r}: cannot be opened ({error}); check the path and the read permission"
        ) from None
    if not infos:
        whole = "/".join([start, *segments])
        raise UserError(f"{setting} {entry!r}: no such file or folder with files (searched {_name(uri, whole)})")
    formats = [_format_by_ending(info.path) if format_setting == "auto" else format_setting for info in infos]
    files = [
        InputFile(info.path, uri, format, info.size, _modified(info, uri))
        for info, format in zip(infos, formats, strict=True)
        if format is not None
    ]
    if not files:
        section = setting.removesuffix(".path")
        raise UserError(
            f"{setting} {entry!r}: the ending of {_name(uri, infos[0].path)} is not that of a known format "
            f'({", ".join(FORMAT_OF_ENDING)}); set {section}.format to "parquet", "csv" or "tsv"'
        )
    return files


def _locate(entry: str) -> tuple[pafs.FileSystem, str, str, list[str]]:
    """Return the filesystem, its URI, the path before the first wildcard, and the segments from there on."""
    if "://" in entry:
        body, mark, query = entry.partition("?")
        plain, wild = _split_at_wildcard(body.split("/"), "*[")
        uri = "/".join(plain) + mark + query
        filesystem, start = _opened(uri)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        return filesystem, "" if local else uri, start, wild
    path = absolute(entry)
    if os.path.exists(path):  # a bracket may be part of a name
        return pafs.LocalFileSystem(), "", path, []
    plain, wild = _split_at_wildcard(path.split("/"), "*?[")
    return pafs.LocalFileSystem(), "", "/".join(plain) or "/", wild


@lru_cache
def _opened(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI, and the path within it. Opening one takes requests to the storage."""
    return paths.open_uri(uri)


def _split_at_wildcard(segments: list[str], wildcards: str) -> tuple[list[str], list[str]]:
    first = next((k for k, segment in enumerate(segments) if any(w in segment for w in wildcards)), len(segments))
    return segments[:first], segments[first:]


def _expand(filesystem: pafs.FileSystem, base: str, segments: list[str]) -> Iterator[pafs.FileInfo]:
    """Yield files and folders that match a glob. A wildcard stays within one name; `**` matches any number of folders."""
    if not segments:
        yield from (info for info in filesystem.get_file_info([base]) if info.type != pafs.FileType.NotFound)
        return
    head, *rest = segments
    recursive = head == "**"
    infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=recursive, allow_not_found=True))
    if recursive:
        yield from _expand(filesystem, base, rest)
        matches = [i for i in infos if i.type == pafs.FileType.Directory and not _hidden(i.path[len(base) :])]
    else:
        matches = [info for info in infos if fnmatchcase(info.base_name, head) and not info.base_name.startswith(".")]
    for info in matches:
        if not rest and not recursive:
            yield info
        elif rest and info.type == pafs.FileType.Directory:
            yield from _expand(filesystem, info.path, rest)


def _files_in(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> list[pafs.FileInfo]:
    if info.type == pafs.FileType.File:
        return [info]
    below = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    return [i for i in below if i.type == pafs.FileType.File and not _hidden(i.path[len(info.path) :])]


def _modified(info: pafs.FileInfo, uri: str) -> int:
    """Return the modification time in nanoseconds. Of a URI in whole seconds: object stores round it in some of their answers."""
    nanoseconds = info.mtime_ns or 0
    return nanoseconds // 1_000_000_000 * 1_000_000_000 if uri else nanoseconds


def _hidden(relative: str) -> bool:
    """Return whether a path is a marker or unfinished output, by the convention of Hive and Spark."""
    return any(segment.startswith((".", "_")) for segment in relative.split("/"))


def _format_by_ending(path: str) -> FormatName | None:
    stem, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSIONS:
        ending = os.path.splitext(stem)[1]
    return FORMAT_OF_ENDING.get(ending)


def _name(uri: str, path: str) -> str:
    if not uri:
        return path
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2] if path.startswith("/") else ""
    return f"{parts.scheme}://{host}{path}"
