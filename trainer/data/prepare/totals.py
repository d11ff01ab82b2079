"""Totals over all chunks and partitions: items, counts, ids and statistics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import profile
from trainer.data.dataset.features import Ids
from trainer.data.dataset.grouping import Ints
from trainer.data.dataset.hashing import Distinct
from trainer.data.dataset.manifest import Counts
from trainer.data.dataset.partition import ItemCounts, sum_counts
from trainer.data.dataset.profile import Profile
from trainer.data.dataset.splits import NewEvents
from trainer.data.dataset.writer import read_sketch
from trainer.data.prepare.group_pass import GroupResult
from trainer.data.prepare.read_pass import ITEMS, ReadResult
from trainer.data.prepare.rejections import CATALOGUE, EVENTS, count_rejected
from trainer.data.prepare.vocabularies import MergedValues, item_ids
from trainer.data.prepare.work import GroupJob, PrepareJob, saved_result
from trainer.storage.mapped import mapped_zeros
from trainer.storage.parquet import read_parquet


@dataclass(frozen=True)
class Totals:
    """The results of both passes, with sums over all chunks and partitions."""

    # Job of the second pass.
    group_job: GroupJob
    # Values of all chunks together.
    values: MergedValues
    # Results of the first pass, by chunk.
    read: Mapping[int, ReadResult]
    # Results of the second pass, by partition, without their counts by item.
    grouped: Sequence[GroupResult]

    @property
    def job(self) -> PrepareJob:
        """Job that all tasks share."""
        return self.group_job.job

    @property
    def ids(self) -> Mapping[str, Ids]:
        """Ids of every table."""
        return self.group_job.plan.ids

    @cached_property
    def events_of_items(self) -> tuple[Ints, Ints]:
        """(all, training) targets of every number of the catalogue; (catalogue,) each."""
        if not self.job.is_derived:
            return self._targets_of_items[0], self._targets_of_items[1]
        # The model was trained on the events of the other dataset, whether their rows are here or not.
        return self.new_events_of_items + self._known("num_events"), self._known("num_train_events")

    @cached_property
    def new_events_of_items(self) -> Ints:
        """(catalogue,) targets of every number in the new logs of a derived dataset."""
        num_events: Ints = self._targets_of_items[0]
        assert self.job.existing is not None
        has_rows = bool(self.job.existing.manifest.parts)
        return num_events - self._known("num_events") if has_rows else num_events

    def _known(self, column: str) -> Ints:
        """Return a column of the existing catalogue, with 0 for items that it does not list: (catalogue,)."""
        assert self.job.existing is not None
        path = self.job.folder / self.job.existing.manifest.vocabulary.path
        values = read_parquet(path, columns=[column]).column(column).to_numpy()
        catalogue = self.ids[ITEMS].vocabulary
        assert catalogue is not None
        return np.concatenate((values, np.zeros(len(catalogue) - values.size, values.dtype)))

    @cached_property
    def uses_of_items(self) -> tuple[Ints, Ints]:
        """Events of items that the model looks up: targets, and events of histories that are no targets; (all, training)."""
        in_histories = self._sums_of_items[1]
        if in_histories is None:
            return self.events_of_items
        return self.events_of_items[0] + in_histories[0, 1:], self.events_of_items[1] + in_histories[1, 1:]

    @property
    def _targets_of_items(self) -> npt.NDArray[np.int64]:
        """(3, catalogue) targets in the partitions: all, in training and in the test part."""
        return self._sums_of_items[0][:, 1:]

    @cached_property
    def _sums_of_items(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Sums over partitions, read one by one: (3, catalogue + 1) of targets, and of events of histories if there are any."""
        catalogue = self.ids[ITEMS].vocabulary
        assert catalogue is not None
        targets = mapped_zeros((3, len(catalogue) + 1), self.job.work)
        in_histories = None
        for partition in range(len(self.grouped)):
            result: GroupResult = saved_result(self.job.work, "group", partition)
            _add_counts(targets, result.items)
            if result.history_items is not None:
                in_histories = mapped_zeros(targets.shape, self.job.work) if in_histories is None else in_histories
                _add_counts(in_histories, result.history_items)
        return targets, in_histories

    @cached_property
    def overlap_of_items(self) -> dict[str, Any]:
        """Items that the splits share."""
        num_events, num_train_events, num_test_events = self._targets_of_items
        return profile.overlap_of_items(num_events, num_train_events, num_test_events, self.item_ids)

    @cached_property
    def item_ids(self) -> npt.NDArray[np.int32]:
        """(catalogue,) id of every number."""
        if self.job.is_derived:
            return self._known("id").astype(np.int32)
        assert not isinstance(self.job.cuts, NewEvents)
        old = None
        if self.job.existing is not None:
            path = self.job.folder / self.job.existing.manifest.vocabulary.path
            old = read_parquet(path, columns=["id"]).column("id").to_numpy()
        return item_ids(*self.uses_of_items, self.job.request.ids[ITEMS], self.job.cuts, old)

    @cached_property
    def distinct(self) -> dict[str, Distinct]:
        """For every table without a vocabulary: its distinct values in all files of all generations."""
        before: dict[str, Distinct] = {}
        if self.job.existing is not None:
            sketches = self.job.existing.manifest.sketches
            before = {table: read_sketch(self.job.folder / file.path) for table, file in sketches.items()}
        tables = before.keys() | self.values.distinct.keys()
        both = {table: [d[table] for d in (before, self.values.distinct) if table in d] for table in sorted(tables)}
        return {table: Distinct.merged(pieces) for table, pieces in both.items()}

    @cached_property
    def counts(self) -> Counts:
        """Sums over all partitions. Rows read, kept and rejected cover all generations."""
        num_events, num_train_events = self.events_of_items
        unknown = self.item_ids == 0
        job = self.job
        chunks = job.inputs.chunks
        rejected = count_rejected(job, EVENTS, self.read, self.grouped)
        of_catalogue = count_rejected(job, CATALOGUE, self.read, self.grouped)
        rows_read = sum(result.num_rows for number, result in self.read.items() if chunks[number].source in EVENTS)
        summed = sum_counts(result.counts for result in self.grouped)
        if job.existing is not None:
            before = job.existing.manifest.counts
            rows_read += before.rows_read
            rejected += Counter(before.rejected)
            summed = replace(summed, rows_kept=summed.rows_kept + before.rows_kept)
        return Counts(
            rows_read=rows_read,
            rejected=dict(sorted(rejected.items())),
            catalogue_rejected=dict(sorted(of_catalogue.items())),
            num_items=int(self.item_ids.max(initial=0)),
            unknown_items=int(num_events[unknown].sum() - num_train_events[unknown].sum()),
            rare_items=int(num_train_events[unknown].sum()),
            **asdict(summed),
        )

    @cached_property
    def profile(self) -> Profile:
        """Sum of the profiles of all partitions."""
        return profile.merged(result.profile for result in self.grouped)


def _add_counts(sums: npt.NDArray[np.int64], counts: ItemCounts) -> None:
    """Add the counts of a partition to sums (3, catalogue + 1), in place."""
    sums[0, counts.numbers] += counts.num_events
    sums[1, counts.numbers] += counts.num_train_events
    sums[2, counts.numbers] += counts.num_test_events
