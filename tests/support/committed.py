"""Checkpoints without tensors, for tests of what is done with their folders."""

from pathlib import Path

from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest
from trainer.storage.files import hash_file


def commit_checkpoint(folder: Path, step: int, dataset_digest: str = "dataset") -> Path:
    """Commit a checkpoint of one small file."""
    attempt = checkpoint_folder.new_attempt(folder, step)
    file = attempt / "weights.bin"
    file.write_bytes(f"weights of step {step}".encode())
    manifest = CheckpointManifest(
        step=step,
        position=8 * step,
        num_rows=60,
        identity={},
        config={"train": {}},
        plan={},
        dataset_digest=dataset_digest,
        metrics={},
        versions={},
        files={file.name: {"sha256": hash_file(file), "num_bytes": file.stat().st_size}},
    )
    return checkpoint_folder.commit(attempt, manifest)
