"""Refuses to continue a checkpoint of another run: one with other settings, or of another dataset."""

from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import Manifest
from trainer.errors import CheckpointError
from trainer.job import Job
from trainer.settings import changed_settings
from trainer.tasks.daily_training import same_dataset


def check_same_run(found: StoredCheckpoint, job: Job, manifest: Manifest) -> None:
    """Raise CheckpointError if the checkpoint is of another run: with every setting that differs, or the dataset."""
    changed = changed_settings(found.manifest.identity, job.identity, job.at_default)
    if changed:
        lines = "\n  ".join(changed)
        raise CheckpointError(
            f"checkpoint {found.path} was made with other settings, so it cannot be continued:\n  {lines}\n"
            "set them back, or choose another run.dir"
        )
    grew = job.config.train.days is None and found.manifest.dataset_digest in manifest.grown_from
    if not same_dataset(found.manifest, manifest) or (grew and job.config.run.new_logs != "continue"):
        remedy = 'choose another run.dir, or set run.new_logs = "continue"' if grew else "choose another run.dir"
        raise CheckpointError(
            f"checkpoint {found.path} was made from another dataset than {job.dataset_dir}"
            f"{', to which logs were appended' if grew else ''}; {remedy}"
        )
