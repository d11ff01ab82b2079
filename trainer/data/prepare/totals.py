"""Totals over all chunks and partitions: items, counts, ids and statistics."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from trainer.data.prepare.work import GroupJob, PrepareJob
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
    # Results of the second pass, by partition.
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
        num_events, num_train_events = self._sum_items(result.items for result in self.grouped)
        if not self.job.is_derived:
            return num_events, num_train_events
        # The model was trained on the events of the other dataset, whether their rows are here or not.
        return self.new_events_of_items + self._known("num_events"), self._known("num_train_events")

    @cached_property
    def new_events_of_items(self) -> Ints:
        """(catalogue,) targets of every number in the new logs of a derived dataset."""
        num_events, _ = self._sum_items(result.items for result in self.grouped)
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
        histories = (result.history_items for result in self.grouped)
        in_histories = self._sum_items(counts for counts in histories if counts is not None)
        return (
            self.events_of_items[0] + in_histories[0],
            self.events_of_items[1] + in_histories[1],
        )

    def _sum_items(self, pieces: Iterable[ItemCounts]) -> tuple[Ints, Ints]:
        catalogue = self.ids[ITEMS].vocabulary
        assert catalogue is not None
        num_events, num_train_events = np.zeros((2, len(catalogue) + 1), np.int64)
        for counts in pieces:
            num_events[counts.numbers] += counts.num_events
            num_train_events[counts.numbers] += counts.num_train_events
        return num_events[1:], num_train_events[1:]

    @cached_property
    def overlap_of_items(self) -> dict[str, Any]:
        """Items that the splits share."""
        sums = np.zeros((3, self.item_ids.size + 1), np.int64)
        for items in (result.items for result in self.grouped):
            sums[:, items.numbers] += (items.num_events, items.num_train_events, items.num_test_events)
        num_events, num_train_events, num_test_events = sums[:, 1:]
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
            unknown_items=int((num_events - num_train_events)[unknown].sum()),
            rare_items=int(num_train_events[unknown].sum()),
            **asdict(summed),
        )

    @cached_property
    def profile(self) -> Profile:
        """Sum of the profiles of all partitions."""
        return profile.merged(result.profile for result in self.grouped)
