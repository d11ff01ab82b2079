"""Training by days from one command to the next: where it stands, and whether the logs still are those that it stands in.

Between two days the dataset may have grown: what was appended lies on later days, and these are trained next. Within a day it may
have grown as well, as long as that day is what it was: then its order is the same, and going on is exact. The invariant: no day
is trained twice, and what comes too late for a day that was trained is told, never trained.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.ranking.labels import Rates
from sharding.world import World
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.columns import stretches
from trainer.data.stream.days import Days, calendar_of, count_days
from trainer.data.stream.impressions import shown_on
from trainer.data.stream.order import Position, steps_per_epoch
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import CheckpointError, UserError
from trainer.job import Job
from trainer.storage.files import digest_of


@dataclass(frozen=True)
class DailyTraining:
    """The days, and the rates of the labels on the first, at which a fresh model begins: it knows of no later day."""

    days: Days
    rates: Rates | None


def read_days(job: Job, manifest: Manifest, world: World, fresh: bool) -> DailyTraining | None:
    """None unless training goes by days. fresh: nothing was trained yet. Collective. Raises UserError as count_days does."""
    if (
        job.config.train.days is None or manifest.task != job.config.model.task
    ):  # another task is refused with the model
        return None
    if manifest.split.get("kind") != "global_time":
        raise UserError(
            f'dataset {job.dataset_dir}: is not split by split.kind = "global_time", which train.days needs; prepare it anew in '
            "another run.dataset or run.dir"
        )
    reader = RowGroupReader(job.dataset_dir, manifest, ColumnSelection(impressions=True))
    days = count_days(reader, calendar_of(job.config.train.days, manifest, job.config.model), world)
    return DailyTraining(days, _rates(reader, days, manifest.labels["names"], world) if fresh else None)


def _rates(reader: RowGroupReader, days: Days, labels: list[str], world: World) -> Rates:
    """Of the labels on the first day. Collective."""
    sums = np.zeros(1 + len(labels), dtype=np.int64)
    for group in days.groups(days.first)[world.rank :: world.world_size].tolist():
        packed = reader.read([group])[group]
        assert packed.impressions is not None
        rows = np.arange(packed.starts.size)
        low, high = shown_on(packed, rows, *days.calendar.bounds(days.first))
        places, _ = stretches(packed.impressions.starts + low, packed.impressions.starts + high)
        sums += (places.size, *((packed.impressions.labels[name][places] > 0).sum() for name in labels))
    total, *positive = world.sum(torch.from_numpy(sums).to(world.device)).tolist()
    return Rates(total, dict(zip(labels, positive, strict=True)))


def day_ends(days: Days, step: int, position: Position, train: TrainConfig) -> Tensor:
    """Steps up to the end of each day that is left, (at least one,) int64, of which `step` are trained; max_steps ends the last.

    What was trained before is no matter: it may have been more or less than the days of the past now hold.
    """
    left = [days.num_rows(day) for day in range(position.epoch, days.stop)]
    if left:
        left[0] -= position.trained
    steps = [steps_per_epoch(rows, train.batch_size) for rows in left]
    limit = max(step, train.max_steps or step + sum(steps))
    ends: Tensor = (step + torch.tensor([0, *steps]).cumsum(0)).clamp(max=limit).unique_consecutive()
    return ends


def days_record(position: Position, days: Days, manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint notes.

    day, trained: the position; content: of that day; impressions: of all days before it; generation, parts: which files the
    dataset was made of, so that a later one can be seen to be the same with more.
    """
    return {
        "day": position.epoch,
        "begins": days.calendar.name_of(position.epoch),
        "trained": position.trained,
        "content": int(days.content[position.epoch - days.first]),
        "impressions": days.impressions_before(position.epoch),
        "generation": manifest.generation,
        "parts": _parts_digest(manifest, manifest.generation),
    }


def _parts_digest(manifest: Manifest, generation: int) -> str:
    """Of the histories, as they were at that generation."""
    return digest_of([[part.path, part.sha256] for part in manifest.parts if part.generation <= generation])


def same_dataset(saved: CheckpointManifest, manifest: Manifest) -> bool:
    """Return whether a checkpoint is of this dataset, or of one to which this one has appended."""
    if saved.dataset_digest in (manifest.digest, *manifest.grown_from):
        return True
    return saved.days is not None and saved.days["parts"] == _parts_digest(manifest, saved.days["generation"])


def position_among(days: Days, found: StoredCheckpoint) -> tuple[Position, str | None]:
    """Where a checkpoint stands among the days as they are now, and a warning. Raises CheckpointError if that is nowhere."""
    saved = found.manifest.days
    assert saved is not None
    day, trained = saved["day"], saved["trained"]
    begins = days.calendar.name_of(day)
    if day + (trained > 0) > days.stop:
        raise CheckpointError(
            f"checkpoint {found.path}: was trained up to {begins}{' and beyond' if trained else ''}, and split.validation_time now "
            f"is {days.calendar.name_of(days.stop)}, so what is held out was trained; move it on, or choose another run.dir"
        )
    if trained and int(days.content[day - days.first]) != saved["content"]:
        raise CheckpointError(
            f"checkpoint {found.path}: stands within the day that begins at {begins}, and impressions of that day were added to "
            "the dataset since, so its order is another. Checkpoints of the ends of days go on with more logs: append logs of "
            "whole days. To train this day anew as it is now, delete that checkpoint, if one of the end of the day before is left "
            "(`shoal checkpoint list`); else choose another run.dir"
        )
    late = days.impressions_before(day) - saved["impressions"]
    warning = None
    if late:
        warning = (
            f"{late:,} impressions were added to days before {begins}, which were trained already; they are not trained"
        )
    return Position(day, trained), warning
