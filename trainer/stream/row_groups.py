"""Row groups of a sequence dataset as packed arrays, with a bounded cache.

The invariant: values are views of Arrow's buffers; no row is touched in Python.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.dataset.manifest import Manifest
from trainer.errors import UserError


@dataclass(frozen=True)
class PackedHistories:
    """The histories of one row group: history r owns items[starts[r]:ends[r]], its cuts are relative to starts[r].

    items: (n,) int32; starts, ends, train_end, validation_end: (rows,) int64; users: Arrow array (rows,), as in the logs.
    """

    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    train_end: np.ndarray
    validation_end: np.ndarray
    users: pa.Array | None

    @property
    def num_bytes(self) -> int:
        return int(self.items.nbytes + 4 * self.starts.nbytes)


def joined(pieces: list[PackedHistories]) -> PackedHistories:
    """Several row groups as one."""
    if len(pieces) == 1:
        return pieces[0]
    bases = np.concatenate(([0], np.cumsum([piece.items.size for piece in pieces])))
    users = None if pieces[0].users is None else pa.concat_arrays([piece.users for piece in pieces])
    return PackedHistories(
        items=np.concatenate([piece.items for piece in pieces]),
        starts=np.concatenate([piece.starts + base for piece, base in zip(pieces, bases, strict=False)]),
        ends=np.concatenate([piece.ends + base for piece, base in zip(pieces, bases, strict=False)]),
        train_end=np.concatenate([piece.train_end for piece in pieces]),
        validation_end=np.concatenate([piece.validation_end for piece in pieces]),
        users=users,
    )


class RowGroupReader:
    """Reads row groups by their number in the manifest, checks their page checksums, keeps recent ones up to `cache_bytes`."""

    def __init__(
        self, folder: Path, manifest: Manifest, with_users: bool = False, cache_bytes: int = 256 << 20
    ) -> None:
        self.folder = folder
        self.group_rows = tuple(g.num_rows for part in manifest.parts for g in part.row_groups)
        self.first_rows = np.concatenate(([0], np.cumsum(self.group_rows))).astype(np.int64)
        self._places = [(part.path, i) for part in manifest.parts for i in range(len(part.row_groups))]
        self._with_users = with_users
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, PackedHistories] = OrderedDict()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def read(self, groups: Iterable[int]) -> dict[int, PackedHistories]:
        """The wanted groups, from the cache or the files. Raises UserError naming a file that cannot be read."""
        wanted = [int(g) for g in groups]
        for group in wanted:
            if group in self._cached:
                self._cached.move_to_end(group)
            else:
                self._cached[group] = self._load(group)
        held = {group: self._cached[group] for group in wanted}
        total = sum(packed.num_bytes for packed in self._cached.values())
        while total > self._cache_bytes and len(self._cached) > len(held):
            # Wanted groups were moved to the end, so the oldest is never one of them here.
            total -= self._cached.popitem(last=False)[1].num_bytes
        return held

    def _load(self, group: int) -> PackedHistories:
        path, number = self._places[group]
        columns = ["item", "train_end", "validation_end"] + (["user"] if self._with_users else [])
        try:
            table = self._open(path).read_row_group(number, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"dataset {self.folder / path}, row group {number}: cannot be read ({error}); "
                "the file is damaged or gone: delete the dataset folder and run `shoal prepare`"
            ) from error
        histories = table.column("item").combine_chunks()
        if isinstance(histories, pa.ChunkedArray):  # pyarrow returns an array or chunks, depending on their number
            histories = histories.chunk(0)
        offsets = histories.offsets.to_numpy().astype(np.int64)
        return PackedHistories(
            items=histories.values.to_numpy(),
            starts=offsets[:-1],
            ends=offsets[1:],
            train_end=table.column("train_end").to_numpy().astype(np.int64),
            validation_end=table.column("validation_end").to_numpy().astype(np.int64),
            users=table.column("user").combine_chunks() if self._with_users else None,
        )

    def _open(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = pq.ParquetFile(self.folder / path, page_checksum_verification=True)
            if len(self._files) > 64:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


def gather(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack the stretches values[starts[i]:ends[i]] one after another: (packed values, offsets (n + 1,) int64)."""
    lengths = ends - starts
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return values[index], offsets
