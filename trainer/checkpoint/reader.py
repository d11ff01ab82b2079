"""Reading of a checkpoint: of its metadata without running code from it, and of large tensors without copies.

torch stores the metadata of a checkpoint as a pickle, which may name any function to be called when it is read. The hashes of a
manifest are no protection, since the author of a malicious pickle writes them too. So only the classes of torch's own metadata are
admitted here. Entries that are not tensors are refused as well: torch would unpickle them, and Shoal writes none.
"""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.utils import _create_file_view
from torch.futures import Future

from trainer.errors import CheckpointError, first_line
from trainer.storage.restricted_pickle import ForbiddenPickleError, restricted_load

METADATA_FILE = ".metadata"

_ADMITTED = {
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {
        "Size",
        *(str(kind).removeprefix("torch.") for kind in vars(torch).values() if type(kind) is torch.dtype),
    },
    "torch.serialization": {"_get_layout"},  # looks up a memory layout by its name
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


DIRECT_BYTES = 1 << 18  # from this size on, numbers are read directly into their tensor


class CheckpointReader(FileSystemReader):
    """torch's reader of a checkpoint folder, with a restricted unpickler for the metadata, and without copies of large tensors."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts of the plan into their tensors. torch would first read a whole stored tensor into other memory."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        rest: list[ReadItem] = []
        for name, items in by_file.items():
            with (cast(Path, self.path) / name).open("rb", buffering=0) as file:
                rest += [item for item in items if not self._read_directly(file, item, planner)]
        return super().read_data(replace(plan, items=rest), planner)

    def _read_directly(self, file: io.FileIO, item: ReadItem, planner: LoadPlanner) -> bool:
        """Read one part without a copy, and return whether that was possible: it must be whole rows in both memories."""
        if item.type != LoadItemType.TENSOR:
            return False
        target = planner.resolve_tensor(item).detach()
        if target.device.type != "cpu" or not target.is_contiguous() or target.nbytes < DIRECT_BYTES:
            return False
        info = self.storage_data[item.storage_index]
        view = cast(Any, _create_file_view(file, info.offset, info.length))
        header: Tensor = torch.load(view, map_location="meta", weights_only=True)  # of the numbers only their place
        if header.dim() == 0:
            return False
        row = header.shape[1:]
        are_whole_rows = item.lengths[1:] == row and header.is_contiguous() and header.dtype == target.dtype
        if not are_whole_rows or target.shape != item.lengths:
            return False
        first = header.storage_offset() + item.storage_offsets[0] * math.prod(row)
        file.seek(info.offset + cast(Any, header.untyped_storage())._checkpoint_offset + first * header.itemsize)
        numbers = memoryview(cast(Any, target.reshape(-1).view(torch.uint8).numpy()))
        begin = 0
        while begin < len(numbers):
            num_bytes = file.readinto(numbers[begin:])
            if not num_bytes:
                raise CheckpointError(
                    f"checkpoint {self.path}: {info.relative_path} ends within {item.storage_index.fqn}"
                )
            begin += num_bytes
        planner.commit_tensor(item, target)
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata. Raises CheckpointError if it is damaged, or has content that Shoal never writes."""
        metadata = read_metadata(cast(Path, self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(folder: Path) -> Metadata:
    """Return torch's metadata of the checkpoint in `folder`. Raises CheckpointError as `CheckpointReader.read_metadata`."""
    with (folder / METADATA_FILE).open("rb") as file:
        try:
            metadata = restricted_load(file, lambda module, name: name in _ADMITTED.get(module, ()))
        except ForbiddenPickleError as error:
            raise _refusal(folder, f"{error}, a function that reading would call") from None
        except Exception as error:  # noqa: BLE001 - damaged bytes may make the unpickler raise anything
            raise CheckpointError(
                f"checkpoint {folder}: {METADATA_FILE} cannot be read ({first_line(error)})"
            ) from None
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"checkpoint {folder}: {METADATA_FILE} is not the metadata of a checkpoint")
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise _refusal(folder, f"{key}, which is not a tensor")
    for info in cast(dict[Any, Any], metadata.storage_data).values():
        if Path(info.relative_path).name != info.relative_path:
            raise _refusal(folder, f"tensors in {info.relative_path!r}, outside its folder")
    return metadata


def _refusal(folder: Path, content: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder}: {METADATA_FILE} holds {content}. Shoal never writes this: the checkpoint was tampered with, or "
        "written by another program. Nothing in it was run or loaded; use a checkpoint that you trust"
    )
