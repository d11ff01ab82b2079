"""An object storage in memory for tests of one process: it keeps whole objects, refuses renames, and can fail on request."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from trainer.data.logs import files
from trainer.storage.objects import paths


class Store(pafs.FileSystemHandler):  # type: ignore[misc]
    """Objects by key, with their times.

    Attributes:
        failures: errors that the next requests raise, first to last.
        log: the requests so far, as "put KEY", "get KEY" and so on.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.failures: list[OSError] = []
        self.log: list[str] = []

    def _request(self, kind: str, key: str) -> None:
        self.log.append(f"{kind} {key}")
        if self.failures:
            raise self.failures.pop(0)

    def put(self, key: str, data: bytes) -> None:
        self._request("put", key)
        self.objects[key] = (data, time.time())

    def get_type_name(self) -> str:
        return "memory"

    def normalize_path(self, path: str) -> str:
        return path

    def _info(self, key: str) -> pafs.FileInfo:
        if key in self.objects:
            data, moment = self.objects[key]
            return pafs.FileInfo(key, pafs.FileType.File, size=len(data), mtime_ns=int(moment * 1e9))
        is_folder = any(other.startswith(f"{key}/") for other in self.objects)
        return pafs.FileInfo(key, pafs.FileType.Directory if is_folder else pafs.FileType.NotFound)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        for path in paths:
            self._request("head", path)
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self._request("list", selector.base_dir)
        base = f"{selector.base_dir.rstrip('/')}/"
        below = [key[len(base) :].split("/") for key in self.objects if key.startswith(base)]
        if not below and not selector.allow_not_found:
            raise FileNotFoundError(2, "No such folder", selector.base_dir)
        depth = max(map(len, below), default=0) if selector.recursive else 1
        names = dict.fromkeys("/".join(parts[: n + 1]) for parts in below for n in range(min(depth, len(parts))))
        return [self._info(base + name) for name in names]

    def create_dir(self, path: str, recursive: bool) -> None:
        raise AssertionError("an object storage has no folders")

    def delete_dir(self, path: str) -> None:
        self._request("delete all", path)
        for key in [key for key in self.objects if key.startswith(f"{path}/")]:
            del self.objects[key]

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        raise AssertionError("everything would be deleted")

    def delete_file(self, path: str) -> None:
        self._request("delete", path)
        if path not in self.objects:
            raise FileNotFoundError(2, "No such object", path)
        del self.objects[path]

    def move(self, src: str, dest: str) -> None:
        raise AssertionError(f"{src} is renamed to {dest}")

    def copy_file(self, src: str, dest: str) -> None:
        self.put(dest, self.objects[src][0])

    def open_input_file(self, path: str) -> pa.NativeFile:
        self._request("get", path)
        if path not in self.objects:
            raise FileNotFoundError(2, "No such object", path)
        return pa.BufferReader(self.objects[path][0])

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: object = None) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: object = None) -> pa.NativeFile:
        raise AssertionError(f"{path} is appended to")

    def names(self, prefix: str = "") -> list[str]:
        """Return the keys below a prefix, without it."""
        return sorted(key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))


class _Upload(io.BytesIO):
    """An object that is being written. It appears when this is closed."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._store.put(self._key, data)


@contextmanager
def memory_store(patch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Let URIs of s3 lead to a store in memory: the key of an object is BUCKET/PATH."""
    store = Store()
    filesystem = pafs.PyFileSystem(store)

    def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
        return filesystem, uri.partition("://")[2].partition("?")[0].rstrip("/")

    patch.setattr(paths, "open_uri", open_uri)
    _forget()
    try:
        yield store
    finally:
        _forget()


def _forget() -> None:
    paths._filesystem.cache_clear()
    files._opened.cache_clear()
