"""Rewriting of a committed checkpoint for another plan: in one process, without workers, and without a whole table in memory.

Layout: the file __R_0.distcp holds exactly the shards of rank R of the new plan, cut into blocks of rows of at most `block_bytes`.
Tensors that are the same on all ranks (dense weights, copied tables) are stored once, in the file of rank 0. A run that loads the
checkpoint under that plan reads one file per rank. Under any other plan it loads like every checkpoint, since torch looks up chunks
by their offsets.

Method: this process runs torch's own protocol of saving for every rank in turn (a global plan from the plans of all ranks, the
write of each rank, the metadata), so that only torch writes its format. A block is read just before it is written, row by row from
the chunks that hold it. torch's reader would load a whole chunk, which may be a whole table.

The invariant: numbers are copied, never computed with.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.utils import _create_file_view

from sharding.config import TableConfig
from sharding.plan import Plan
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.reader import read_metadata
from trainer.checkpoint.tensors import not_written, refuse_other_optimizers
from trainer.checkpoint.writing import CheckpointWriter
from trainer.errors import CheckpointError
from trainer.storage.objects.paths import remove_tree

BLOCK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Region:
    """A rectangular part of a tensor."""

    offsets: tuple[int, ...]
    """The index of its first element, by dimension."""
    sizes: tuple[int, ...]
    """Its size, by dimension."""


@dataclass(frozen=True)
class OtherModel:
    """A model with the tables of the source and other dense weights, for which a checkpoint is rewritten."""

    identity: dict[str, Any]
    """The flat settings that identify its run."""
    metrics: dict[str, Any]
    """The state of early stopping and the counts of skipped steps."""
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """Returns its tensors by name, from those of the source. Neither has tensors of tables."""


def reshard(
    source: StoredCheckpoint,
    folder: Path,
    plan: Plan,
    tables: Mapping[str, TableConfig],
    config: dict[str, Any],
    block_bytes: int = BLOCK_BYTES,
    tables_grew: bool = False,
    other: OtherModel | None = None,
) -> Path:
    """Rewrite a verified checkpoint for another plan, commit it, and return its path.

    Memory is bounded by a few times `block_bytes`, or by one row.

    Args:
        source: The checkpoint.
        folder: The folder of checkpoints that gets the new one.
        plan: The plan of the new checkpoint.
        tables: The tables of the run that will resume from it.
        config: The resolved config of that run.
        block_bytes: The largest block that is read at a time.
        tables_grew: True if tables of the plan may have more rows than the source. The new checkpoint then lacks them too.
        other: The model of the new checkpoint; None: the same.

    Raises:
        CheckpointError: The tables do not fit, or the folder already has this step. Raised before anything is written.
    """
    final = folder / checkpoint_folder.name_of(source.manifest.step)
    if final.exists():
        raise CheckpointError(f"checkpoint {final}: exists already and would be overwritten; choose another folder")
    refuse_other_optimizers(source, tables)
    stored = _StoredTensors(source.data)
    described = dataclasses.replace(source.manifest, config=config, plan=plan.values())
    if other is not None:
        stored.change_dense(other.change)
        described = dataclasses.replace(described, identity=other.identity, metrics=other.metrics)
    items = _write_items(source.path, stored.metadata, plan, block_bytes, tables_grew)
    try:
        attempt = checkpoint_folder.new_attempt(folder, source.manifest.step)
        try:
            files = _write(attempt, items, stored, block_bytes)
            manifest: CheckpointManifest = dataclasses.replace(described, files=files)
            return checkpoint_folder.commit(attempt, manifest)
        except BaseException:
            remove_tree(attempt, ignore_errors=True)
            raise
    except OSError as error:
        raise not_written(final, error) from None


def _write_items(
    path: Path, metadata: Metadata, plan: Plan, block_bytes: int, tables_grew: bool
) -> list[list[WriteItem]]:
    """Return the content of each rank's file, in the order of the source. Raises CheckpointError for tables that do not fit."""
    for name in plan.tables:
        if f"table.{name}.weight" not in metadata.state_dict_metadata:
            raise CheckpointError(f"checkpoint {path}: has no tables.{name}, which the plan has; was it another model?")
    items: list[list[WriteItem]] = [[] for _ in range(plan.world_size)]
    for key, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)  # read_metadata refuses everything else
        for rank, part in _parts(path, key, tuple(tensor.size), plan, tables_grew):
            row_bytes = math.prod(part.sizes[1:]) * tensor.properties.dtype.itemsize
            for block in blocks_of_rows(part, row_bytes, block_bytes):
                offsets = torch.Size(block.offsets)
                chunk = ChunkStorageMetadata(offsets, torch.Size(block.sizes))
                data = TensorWriteData(chunk, tensor.properties, tensor.size)
                items[rank].append(WriteItem(MetadataIndex(key, offsets), WriteItemType.SHARD, tensor_data=data))
    return items


def _parts(path: Path, key: str, size: tuple[int, ...], plan: Plan, tables_grew: bool) -> Iterator[tuple[int, Region]]:
    """Yield (rank, the part of the tensor in its file)."""
    kind, name = key.split(".")[:2]
    if kind != "table" or not size:
        yield 0, _whole(size)
        return
    if name not in plan.tables:
        raise CheckpointError(
            f"checkpoint {path}: holds tables.{name}, and the plan has no such table; was it another model?"
        )
    table = plan.tables[name]
    by_row = len(size) == 1
    rows_fit = size[0] <= table.num_rows if tables_grew else size[0] == table.num_rows
    if not rows_fit or size[1:] != (() if by_row else (table.dim,)):
        raise CheckpointError(
            f"checkpoint {path}: {key} is {' x '.join(map(str, size))}, and tables.{name} has {table.num_rows} rows of "
            f"{table.dim}; use the dataset and tables.{name}.dim that it was made with"
        )
    shards = plan.shards(name)
    for shard in shards[:1] if table.sharding == "data_parallel" else shards:
        if by_row and shard.num_columns != table.dim:
            raise CheckpointError(
                f"checkpoint {path}: {key} is one number per row, which tables.{name}.sharding = {table.sharding} would "
                "split; choose row_wise or table_wise"
            )
        num_rows = min(shard.row + shard.num_rows, size[0]) - shard.row  # rows that the checkpoint has
        if num_rows > 0:
            block = Region((shard.row, shard.column), (num_rows, shard.num_columns))
            yield shard.rank, Region(block.offsets[:1], block.sizes[:1]) if by_row else block


def blocks_of_rows(part: Region, row_bytes: int, block_bytes: int) -> Iterator[Region]:
    """Yield the part in blocks of rows of at most `block_bytes`, or of one row if a row is larger."""
    if not part.sizes or not part.sizes[0]:
        yield part
        return
    step = max(1, block_bytes // max(1, row_bytes))
    for row in range(0, part.sizes[0], step):
        offsets = (part.offsets[0] + row, *part.offsets[1:])
        yield Region(offsets, (min(step, part.sizes[0] - row), *part.sizes[1:]))


def _write(
    attempt: Path, items: list[list[WriteItem]], stored: "_StoredTensors", block_bytes: int
) -> dict[str, dict[str, Any]]:
    """Write all ranks' files and torch's metadata. Return the hash and size of each file."""
    writer = CheckpointWriter(attempt)
    planner = _BlockPlanner(stored, block_bytes)
    writer.set_up_storage_writer(True)
    local_plans = [writer.prepare_local_plan(SavePlan(of_rank)) for of_rank in items]
    plans, metadata = create_default_global_save_plan(local_plans)
    metadata = dataclasses.replace(metadata, planner_data=stored.metadata.planner_data)
    results = [writer.write_data(plan, planner).wait() for plan in writer.prepare_global_plan(plans) if plan.items]
    writer.finish(metadata, results)
    return writer.written


class _BlockPlanner(DefaultSavePlanner):
    """A planner that reads each block when torch's writer asks for it."""

    def __init__(self, stored: "_StoredTensors", block_bytes: int) -> None:
        super().__init__()
        self._stored = stored
        self._block_bytes = block_bytes

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        return self._stored.read(
            write_item.index.fqn, Region(tuple(chunk.offsets), tuple(chunk.sizes)), self._block_bytes
        )


class _StoredTensors:
    """The tensors of a checkpoint on disk, read in parts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata = read_metadata(path)
        self._files = {
            (index.fqn, tuple(index.offset or ())): info for index, info in self.metadata.storage_data.items()
        }
        self._changed: dict[str, Tensor] = {}

    def change_dense(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Let the tensors that are not of tables, which fit in memory, be those that `change` returns for them."""
        entries = self.metadata.state_dict_metadata
        of_tables = {key: entry for key, entry in entries.items() if key.startswith("table.")}
        dense = {
            key: self.read(key, _whole(tuple(cast(TensorStorageMetadata, entry).size)), BLOCK_BYTES)
            for key, entry in entries.items()
            if key not in of_tables
        }
        self._changed = change(dense)
        changed = {
            key: TensorStorageMetadata(
                TensorProperties.create_from_tensor(tensor),
                tensor.size(),
                [ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.size())],
            )
            for key, tensor in self._changed.items()
        }
        names: Any = {key: (key,) for key in (*of_tables, *changed)}
        self.metadata = dataclasses.replace(
            self.metadata, state_dict_metadata={**of_tables, **changed}, planner_data=names
        )

    def read(self, key: str, wanted: Region, block_bytes: int) -> Tensor:
        """Return a part of a tensor, from every chunk that overlaps it. Read at most `block_bytes` of a chunk at a time."""
        if key in self._changed:
            changed = self._changed[key]
            return changed[_slices(wanted, _whole(tuple(changed.size())))].clone()
        tensor = cast(TensorStorageMetadata, self.metadata.state_dict_metadata[key])
        out = torch.empty(wanted.sizes, dtype=tensor.properties.dtype)
        for stored in tensor.chunks:
            chunk = Region(tuple(stored.offsets), tuple(stored.sizes))
            common = _common(chunk, wanted)
            if common is None:
                continue
            # Whole stored rows are read, and they may be wider than the part, so their width bounds the block.
            row_bytes = math.prod(chunk.sizes[1:]) * out.itemsize
            for part in blocks_of_rows(common, row_bytes, block_bytes):
                rows = _rows_of(chunk, part)
                out[_slices(part, wanted)] = self._rows(key, chunk, rows)[_slices(part, rows)]
        return out

    def _rows(self, key: str, chunk: Region, rows: Region) -> Tensor:
        """Return whole rows of a chunk. Only the header of the tensor is unpickled; it says where the numbers are."""
        info = self._files[key, chunk.offsets]
        with (self._path / info.relative_path).open("rb") as file:
            view = cast(Any, _create_file_view(file, info.offset, info.length))
            header: Tensor = torch.load(view, map_location="meta", weights_only=True)
            if not header.is_contiguous():
                view.seek(0)
                whole: Tensor = torch.load(view, map_location="cpu", weights_only=True)
                return whole[_slices(rows, chunk)]
            row_size = math.prod(chunk.sizes[1:])
            first = header.storage_offset() + (rows.offsets[0] - chunk.offsets[0] if rows.offsets else 0) * row_size
            file.seek(info.offset + cast(Any, header.untyped_storage())._checkpoint_offset + first * header.itemsize)
            buffer = bytearray(math.prod(rows.sizes) * header.itemsize)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"checkpoint {self._path}: {info.relative_path} ends within {key}")
            return torch.frombuffer(buffer, dtype=header.dtype).view(rows.sizes)


def _whole(size: tuple[int, ...]) -> Region:
    """Return a whole tensor of this size."""
    return Region((0,) * len(size), size)


def _rows_of(chunk: Region, part: Region) -> Region:
    """Return the rows of the part, as wide as the chunk."""
    return Region((*part.offsets[:1], *chunk.offsets[1:]), (*part.sizes[:1], *chunk.sizes[1:]))


def _common(one: Region, other: Region) -> Region | None:
    """Return the overlap of two regions, or None."""
    begins = tuple(max(a, b) for a, b in zip(one.offsets, other.offsets, strict=True))
    ends = [min(a + n, b + m) for a, n, b, m in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)]
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return Region(begins, sizes) if all(size > 0 for size in sizes) else None


def _slices(part: Region, whole: Region) -> tuple[slice, ...]:
    """Return the indices of the part within the whole."""
    return tuple(
        slice(o - base, o - base + n) for o, base, n in zip(part.offsets, whole.offsets, part.sizes, strict=True)
    )
