"""Daily training of rankers: what is known of the days before the first step."""

from dataclasses import dataclass

import numpy as np
import torch

from models.ranking.labels import Rates
from sharding.world import World
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.columns import stretches
from trainer.data.stream.days import Days, calendar_of, count_days
from trainer.data.stream.impressions import shown_on
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError


@dataclass(frozen=True)
class DailyTraining:
    """The days of a dataset, as a ranker trains them."""

    days: Days
    """The impressions of each day."""
    rates: Rates | None
    """Rates of the labels on the first day, from which a fresh model starts: it knows no later day. None when training resumes."""


def read_days(job: Job, manifest: Manifest, world: World, fresh: bool) -> DailyTraining | None:
    """Return the days of the dataset, or None unless training goes by days. Collective.

    Args:
        job: The run.
        manifest: The manifest of its dataset.
        world: All ranks.
        fresh: True if nothing was trained yet.

    Raises:
        UserError: The dataset is not split by time, or as `count_days` raises it.
    """
    if (
        job.config.train.days is None or manifest.task != job.config.model.task
    ):  # building the model refuses a dataset of another task
        return None
    if manifest.split.get("kind") != "global_time":
        raise UserError(
            f'dataset {job.dataset_dir}: is not split by split.kind = "global_time", which train.days needs; prepare it again in '
            "another run.dataset or run.dir"
        )
    reader = RowGroupReader(
        job.dataset_dir, manifest, ColumnSelection(impressions=True), retries=job.config.storage.policy
    )
    days = count_days(reader, calendar_of(job.config.train.days, manifest, job.config.model), world)
    return DailyTraining(days, _first_rates(reader, days, manifest.labels["names"], world) if fresh else None)


def _first_rates(reader: RowGroupReader, days: Days, labels: list[str], world: World) -> Rates:
    """Return the rates of the labels on the first day. Collective."""
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
