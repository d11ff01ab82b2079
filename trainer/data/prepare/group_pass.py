"""The second pass, one task per partition: its rows from every spill file become one part of the dataset.

Memory is bounded by a partition: a single user, or about a million events and four million at most. Larger partitions
are split.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from trainer.data.dataset.features import Losses, NumericFit
from trainer.data.dataset.grouping import Ints, share_of_split
from trainer.data.dataset.manifest import Cuts, Manifest, Part
from trainer.data.dataset.partition import GroupCounts, Grouped, ItemCounts, group_partition
from trainer.data.dataset.partition_events import OldEvents, OldRows, PartitionInput
from trainer.data.dataset.profile import Profile
from trainer.data.dataset.writer import OldGroups, row_bounds, write_cuts, write_part
from trainer.data.logs.columns import SourceName
from trainer.data.logs.quarantine import Quarantine, quarantine_table
from trainer.data.prepare.read_pass import iterate_share
from trainer.data.prepare.work import GroupJob, PrepareJob, complete, save_result
from trainer.data.stream.packed import joined
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

SPLIT_ROWS = 4_000_000  # a partition with more rows is split
SHARE_ROWS = 1_000_000  # approximate rows of each share of a split partition


@dataclass(frozen=True)
class GroupResult:
    """The result of one partition."""

    # The part that was written, if it has rows.
    part: Part | None
    # The cuts that were written, if this is an append.
    cuts: Cuts | None
    # Rejected rows by source and reason.
    rejected: Counter[tuple[SourceName, str]]
    # Counts of the partition.
    counts: GroupCounts
    # Counts of targets by item. Empty in what the driver holds (without_items).
    items: ItemCounts
    # For ranking: counts of history events by item. None in what the driver holds.
    history_items: ItemCounts | None
    # Statistics for the data card.
    profile: Profile
    # Statistics of numeric features, by key.
    fits: dict[str, NumericFit]
    # Lost values of each feature, by key.
    losses: dict[str, Losses]

    def without_items(self) -> "GroupResult":
        """Return the result without its counts by item: those of all partitions together may be as many as the events."""
        nothing = np.zeros(0, np.int64)
        return replace(self, items=ItemCounts(nothing, nothing, nothing, nothing), history_items=None)


@dataclass(frozen=True)
class _Share:
    """Rows of one source and partition, with the chunk of each."""

    rows: pa.Table
    chunks: Ints


def group_task(given: GroupJob, partition: int) -> GroupResult:
    """Group one partition, in the order of the log: chunk by chunk, block by block.

    The stored result has the counts by item, the returned one has none.

    Args:
        given: the job as the driver sends it.
        partition: the number of the partition.
    """
    given = given.received()
    job = given.job
    shares: dict[SourceName, _Share] = {
        source: _share(given, partition, source) for source in job.inputs.contracts if source != "items"
    }
    old, old_groups = _old_rows(job, partition)
    grouped = group_partition(
        PartitionInput(
            events=shares["logs"].rows,
            history=shares["history"].rows if "history" in shares else None,
            users=shares["users"].rows if "users" in shares else None,
            old=old,
        ),
        given.plan,
    )
    with complete(job.rejected_in("group", partition)) as rejected_file, Quarantine(rejected_file) as quarantine:
        for (source, reason), positions in grouped.rejected.items():
            quarantine.add(_rejected_rows(job, shares[source], reason, positions))
    part, cuts = _write(job, grouped, partition, old_groups)
    result = GroupResult(
        part,
        cuts,
        Counter({kind: positions.size for kind, positions in grouped.rejected.items()}),
        grouped.counts,
        grouped.items,
        grouped.history_items,
        grouped.profile,
        grouped.fits,
        grouped.losses,
    )
    save_result(job.work, "group", partition, result)
    return result.without_items()


def shares_of(rows_of_partitions: Ints) -> tuple[int, ...]:
    """Return the number of dataset partitions that each hashed partition is split into: a function of its rows alone."""
    shares = np.where(rows_of_partitions > SPLIT_ROWS, -(-rows_of_partitions // SHARE_ROWS), 1)
    return tuple(shares.tolist())


def _share(given: GroupJob, partition: int, source: SourceName) -> _Share:
    job = given.job
    partitioning = given.partitioning
    hashed, share = partitioning.places[partition]
    batches: list[pa.RecordBatch] = []
    chunks: list[Ints] = []
    for number in given.chunks:
        if job.inputs.chunks[number].source == source:
            for batch in iterate_share(job.spill_file(number), hashed, partitioning.num_hashed):
                batches.append(batch)
                chunks.append(np.full(batch.num_rows, number))
    rows = pa.Table.from_batches(batches, job.inputs.contracts[source].event_schema)
    chunk_of_row = np.concatenate([np.zeros(0, np.int64), *chunks])
    if partitioning.shares[hashed] > 1:
        mine = share_of_split(rows.column("user"), share, partitioning.shares[hashed])
        rows = rows.filter(pa.array(mine))
        chunk_of_row = chunk_of_row[mine]
    return _Share(rows, chunk_of_row)


def _old_rows(job: PrepareJob, partition: int) -> tuple[OldRows | None, OldGroups]:
    """Read the existing rows of a partition of the dataset."""
    if job.existing is None:
        return None, OldGroups((), (0,))
    manifest = job.existing.manifest
    groups = groups_of_partition(manifest, partition)
    bounds = np.concatenate(([0], np.cumsum([manifest.group_rows[group] for group in groups]))).astype(np.int64)
    old_groups = OldGroups(tuple(groups), tuple(bounds.tolist()))
    user_type = job.inputs.contracts["logs"].stored("user")
    if not groups:
        labels = {name: np.zeros(0, np.float32) for name in job.request.logs.labels}
        empty = np.zeros(0, np.int64)
        nothing = OldEvents(empty, empty, np.zeros(1, np.int64), labels)
        impressions = nothing if manifest.has_impressions else None
        return OldRows(pa.array([], user_type), nothing, impressions), old_groups
    reader = RowGroupReader(
        job.folder,
        manifest,
        ColumnSelection(users=True, times=True, impressions=manifest.has_impressions, numbers=True),
    )
    packed = joined([reader.read([group])[group] for group in groups])
    assert packed.users is not None
    assert packed.times is not None
    history = OldEvents(packed.items.astype(np.int64), packed.times, np.append(packed.starts, packed.items.size))
    shown = packed.impressions
    impressions = (
        OldEvents(shown.items.astype(np.int64), shown.times, np.append(shown.starts, shown.items.size), shown.labels)
        if shown is not None
        else None
    )
    return OldRows(packed.users, history, impressions, packed.train_end), old_groups


def groups_of_partition(manifest: Manifest, partition: int) -> list[int]:
    """Return the row groups of the dataset in a partition, ascending."""
    return sorted({piece.group for part in manifest.parts if part.partition == partition for piece in part.row_groups})


def _write(job: PrepareJob, grouped: Grouped, partition: int, old: OldGroups) -> tuple[Part | None, Cuts | None]:
    part = None
    if grouped.rows.num_rows:
        with complete(job.part_file(partition)) as path:
            part = write_part(path, grouped.rows, partition, job.generation, old)
        part = replace(part, path=job.part_file(partition).name)
    if not job.generation or not len(grouped.cuts[0]):
        return part, None
    with complete(job.cuts_file(partition)) as path:
        cuts = write_cuts(path, grouped.cuts, row_bounds(part, old), partition)
    return part, replace(cuts, path=job.cuts_file(partition).name)


def _rejected_rows(job: PrepareJob, share: _Share, reason: str, positions: Ints) -> pa.Table:
    dropped = share.rows.take(pa.array(positions))
    if "time" in dropped.column_names and job.inputs.time_kind == "timestamp":
        place = dropped.column_names.index("time")
        dropped = dropped.set_column(place, "time", dropped.column("time").cast(pa.timestamp("us")))
    names = pa.array([chunk.file.name for chunk in job.inputs.chunks]).take(pa.array(share.chunks[positions]))
    return quarantine_table(dropped, names, dropped.column("row"), pa.repeat(reason, len(positions)))
