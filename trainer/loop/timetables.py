"""Choice of the timetable of a training."""

from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.loop.days import DailyTimetable
from trainer.loop.epochs import EpochTimetable
from trainer.loop.timetable import Timetable
from trainer.tasks.ranking.daily_training import DailyTraining


def timetable_for(
    job: Job, manifest: Manifest, days: DailyTraining | None, checkpoint: StoredCheckpoint | None
) -> Timetable:
    """Return the timetable of days, or of epochs where training goes by epochs.

    Args:
        job: The run.
        manifest: The manifest of its dataset.
        days: The days of the dataset, in daily training.
        checkpoint: The checkpoint from which training resumes, if there is one.
    """
    if days is not None:
        return DailyTimetable(job.config.train, days.days, manifest)
    grew = checkpoint is not None and checkpoint.manifest.dataset_digest in manifest.grown_from
    return EpochTimetable(job.config.train, grew)
