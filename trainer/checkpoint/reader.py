"""Reading a checkpoint's files without running anything that they hold.

torch keeps the metadata of a checkpoint as a pickle, which may name any function to be called when it is read; the hashes of a
manifest are no protection, since whoever wrote the pickle wrote them too. So only the classes that torch's own metadata consists of
are admitted here. Entries that are no tensors are refused as well: torch would unpickle them, and Shoal writes none.
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
    "torch.serialization": {"_get_layout"},  # from the name of a memory layout, by a table
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
    """torch's reader of a folder, whose metadata is read by the restricted unpickler."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises CheckpointError if the metadata is damaged, or holds what no checkpoint of Shoal holds."""
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
            raise _refusal(folder, f"{error}, which reading it would run") from None
        except Exception as error:  # noqa: BLE001 - damaged bytes may make the unpickler raise anything
            raise CheckpointError(
                f"checkpoint {folder}: {METADATA_FILE} cannot be read ({first_line(error)})"
            ) from None
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"checkpoint {folder}: {METADATA_FILE} is not the metadata of a checkpoint")
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise _refusal(folder, f"{key}, which is no tensor")
    for info in cast(dict[Any, Any], metadata.storage_data).values():
        if Path(info.relative_path).name != info.relative_path:
            raise _refusal(folder, f"tensors in {info.relative_path!r}, outside of its folder")
    return metadata


def _refusal(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder}: {METADATA_FILE} holds {what}. Shoal writes no such thing: the checkpoint was tampered with, or "
        "written by another program. Nothing of it was run or loaded; use a checkpoint that you trust"
    )
