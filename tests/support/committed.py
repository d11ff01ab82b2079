"""Checkpoints without tensors, for tests of what is done with their folders."""

from pathlib import Path
from typing import Any

from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import FILE_HASH, CheckpointManifest
from trainer.storage.files import hash_file


def commit_checkpoint(
    folder: Path, step: int, dataset_digest: str = "dataset", metrics: dict[str, Any] | None = None, content: str = ""
) -> Path:
    """Commit a checkpoint of one small file. metrics: of its manifest."""
    attempt = checkpoint_folder.new_attempt(folder, step)
    file = attempt / "weights.bin"
    file.write_bytes(f"weights of step {step}{content}".encode())
    manifest = CheckpointManifest(
        step=step,
        position=8 * step,
        num_rows=60,
        identity={},
        config={"train": {}},
        plan={},
        dataset_digest=dataset_digest,
        metrics=metrics or {},
        versions={},
        files={file.name: {FILE_HASH: hash_file(file, FILE_HASH), "num_bytes": file.stat().st_size}},
    )
    return checkpoint_folder.commit(attempt, manifest)
