"""Reading of a checkpoint's metadata without running code from it.

torch stores the metadata of a checkpoint as a pickle, which may name any function to be called when it is read. The hashes of a
manifest are no protection, since the author of a malicious pickle writes them too. So only the classes of torch's own metadata are
admitted here. Entries that are not tensors are refused as well: torch would unpickle them, and Shoal writes none.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

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


class CheckpointReader(FileSystemReader):
    """torch's reader of a checkpoint folder, with a restricted unpickler for the metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata. Raises CheckpointError if it is damaged, or has content that Shoal never writes."""
        metadata = read_metadata(Path(self.path))
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
