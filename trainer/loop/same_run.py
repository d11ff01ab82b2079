"""Checks that a checkpoint belongs to a run: same settings, same dataset."""

from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.errors import CheckpointError
from trainer.settings import changed_settings
from trainer.storage.files import digest_of


def check_same_run(checkpoint: StoredCheckpoint, job: Job, manifest: Manifest) -> None:
    """Raise CheckpointError if the checkpoint is of another run, with every setting that differs, or with the dataset."""
    saved = checkpoint.manifest
    changed = changed_settings(saved.identity, job.identity, job.at_default)
    if changed:
        lines = "\n  ".join(changed)
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was made with other settings, so training cannot resume from it:\n  {lines}\n"
            "set them back, or choose another run.dir"
        )
    has_grown = job.config.train.days is None and saved.dataset_digest in manifest.grown_from
    if not same_dataset(saved, manifest) or (has_grown and job.config.run.new_logs != "continue"):
        remedy = 'choose another run.dir, or set run.new_logs = "continue"' if has_grown else "choose another run.dir"
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was made from another dataset than {job.dataset_dir}"
            f"{', to which logs were appended' if has_grown else ''}; {remedy}"
        )


def same_dataset(saved: CheckpointManifest, manifest: Manifest) -> bool:
    """Return True if a checkpoint is of this dataset, or of an earlier generation of it."""
    if saved.dataset_digest in (manifest.digest, *manifest.grown_from):
        return True
    return saved.days is not None and saved.days["parts"] == parts_digest(manifest, saved.days["generation"])


def parts_digest(manifest: Manifest, generation: int) -> str:
    """Return a digest of the dataset's part files as they were at `generation`."""
    return digest_of([[part.path, part.sha256] for part in manifest.parts if part.generation <= generation])
