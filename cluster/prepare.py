"""Prepare: event logs to a sequence dataset, as Ray tasks over Arrow in two passes.

    read     one task per chunk of the logs: check the rows, split them by the hash of the user into a spill file
    group    one task per partition: its share of every spill file becomes histories, which become one part

The driver holds counts and the item vocabulary, never events. Everything is written into a hidden folder inside the
dataset folder and moved out at the end, manifest.json last: the dataset exists whole or not at all. The result depends
on logs and settings only, not on the number of tasks nor on the order in which they end. On more than one machine the
dataset folder must be on storage that all of them share.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.config import Config
from trainer.config import GlobalTimeConfig, LogsConfig
from trainer.dataset.folder import attempt, describe_source, find_dataset, fingerprint
from trainer.dataset.grouping import (
    Cuts,
    GroupCounts,
    Grouped,
    Ints,
    ItemCounts,
    TimeBounds,
    group_events,
    partition_events,
    resolve_cuts,
    sort_vocabulary,
    sum_counts,
)
from trainer.dataset.manifest import Counts, Manifest, Part, write_manifest
from trainer.dataset.writer import write_part, write_vocabulary
from trainer.errors import UserError
from trainer.logs.files import find_files
from trainer.logs.quarantine import Quarantine, examples, gather, quarantine_table
from trainer.logs.reading import ROLES, Inputs, inspect_files, read_chunk

EVENTS_PER_PARTITION = 1_000_000
MAX_PARTITIONS = 4096
CSV_BYTES_PER_ROW = 24  # only to choose the number of partitions
CANCEL_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a stage ("read", then "group") is: tasks done, of how many, and rows that they read or kept."""

    stage: str
    done: int
    total: int
    rows: int


@dataclass(frozen=True)
class _Job:
    """What every task needs to know; put into Ray's object store once for each pass."""

    spill: Path
    inputs: Inputs
    logs: LogsConfig
    cuts: Cuts
    num_partitions: int
    vocabulary: pa.Array = None  # known after the first pass

    def spill_file(self, chunk: int) -> Path:
        return self.spill / f"events-{chunk:05d}.arrow"

    def rejected_in(self, stage: str, task: int) -> Path:
        return self.spill / f"rejected-{stage}-{task:05d}.arrow"

    @property
    def quarantines(self) -> list[Path]:
        """In the order in which they are gathered: that of the log, duplicates after all else."""
        read = [self.rejected_in("read", chunk) for chunk in range(len(self.inputs.chunks))]
        return read + [self.rejected_in("group", partition) for partition in range(self.num_partitions)]


@dataclass(frozen=True)
class _Read:
    """Of one chunk: `items` are the distinct values that belong into the vocabulary, `times` the first and last."""

    num_rows: int
    rejected: Counter[str]
    items: pa.Array
    times: tuple[int, int] | None


@dataclass(frozen=True)
class _ReadAll:
    num_rows: list[int]  # of each chunk
    rejected: Counter[str]
    vocabulary: pa.Array
    times: tuple[int, int] | None


@dataclass(frozen=True)
class _Written:
    part: Part | None
    counts: GroupCounts
    items: ItemCounts | None


@dataclass(frozen=True)
class _WrittenAll:
    parts: tuple[Part, ...]
    counts: GroupCounts
    num_events: Ints  # of each item
    num_train_events: Ints


def prepare(config: Config, on_progress: Callable[[Progress], None]) -> Manifest:
    """Build the dataset of a config, or verify and return it where it is there already. Ray must be initialised.

    Raises UserError, with nothing left behind, if the logs break their contract, more rows than allowed are rejected,
    the split leaves nothing to train on, the disk is full, or the dataset folder holds something else.
    """
    folder = config.dataset_dir.absolute()
    files = find_files(config.logs)
    existing = find_dataset(folder, config.logs, config.split, files)
    if existing is not None:
        return existing
    inputs = inspect_files(files, config.logs)
    cuts = resolve_cuts(config.split, inputs.contract.time_kind)
    with attempt(folder) as spill:
        existing = find_dataset(folder, config.logs, config.split, files)  # another command may have made it meanwhile
        if existing is not None:
            return existing
        limit = config.cluster.prepare_tasks or max(1, int(ray.cluster_resources().get("CPU", 1)))
        manifest = _build(config, _Job(spill, inputs, config.logs, cuts, num_partitions(inputs)), limit, on_progress)
        for path in sorted(spill.glob("*.parquet")):
            path.replace(folder / path.name)
        write_manifest(folder, manifest)
    return manifest


def num_partitions(inputs: Inputs) -> int:
    """About one per million events, from what the headers say, so that the same logs always give the same parts."""
    parquet_rows = sum(chunk.num_rows or 0 for chunk in inputs.chunks)
    csv_rows = sum(chunk.file.num_bytes for chunk in inputs.chunks if chunk.num_rows is None) // CSV_BYTES_PER_ROW
    return min(max(math.ceil((parquet_rows + csv_rows) / EVENTS_PER_PARTITION), 1), MAX_PARTITIONS)


def _build(config: Config, job: _Job, limit: int, on_progress: Callable[[Progress], None]) -> Manifest:
    read = _read_all(job, limit, on_progress)
    _check_rejected(job, sum(read.num_rows), read.rejected)
    job = replace(job, vocabulary=read.vocabulary)
    written = _group_all(job, limit, on_progress)
    _check_trainable(config, written.counts, read.times)
    gather(job.quarantines, job.spill / "rejected.parquet")
    counts = asdict(written.counts)
    duplicates = counts.pop("duplicates")
    rejected = read.rejected + Counter({"duplicate": duplicates})
    return Manifest(
        fingerprint=fingerprint(config.logs, config.split, job.inputs.files),
        source=_source(job, read),
        split=config.split.model_dump(mode="json"),
        counts=Counts(
            rows_read=sum(read.num_rows),
            rejected=dict(sorted(rejected.items())),
            num_items=len(read.vocabulary),
            **counts,
        ),
        vocabulary=write_vocabulary(
            job.spill / "vocabulary-item.parquet", read.vocabulary, written.num_events, written.num_train_events
        ),
        parts=written.parts,
    )


def _read_all(job: _Job, limit: int, on_progress: Callable[[Progress], None]) -> _ReadAll:
    total = len(job.inputs.chunks)
    num_rows, rejected = [0] * total, Counter[str]()
    times: list[int] = []
    distinct = [pa.array([], job.inputs.contract.item_values)]
    on_progress(Progress("read", 0, total, 0))
    with closing(_run(_read_task, job, total, limit)) as results:
        for done, (chunk, result) in enumerate(results, start=1):
            num_rows[chunk] = result.num_rows
            rejected += result.rejected
            times += result.times or ()
            distinct.append(result.items)
            if sum(map(len, distinct[1:])) > max(len(distinct[0]), EVENTS_PER_PARTITION):  # bounds the driver's memory
                distinct = [pc.unique(pa.chunked_array(distinct))]
            on_progress(Progress("read", done, total, sum(num_rows)))
    vocabulary = sort_vocabulary(pa.chunked_array(distinct))
    return _ReadAll(num_rows, rejected, vocabulary, (min(times), max(times)) if times else None)


def _read_task(job: _Job, chunk: int) -> _Read:
    """Check a chunk and spill it. In the spill file, each block is one record batch per partition."""
    num_rows, times = 0, list[int]()
    distinct = [pa.array([], job.inputs.contract.item_values)]
    schema = job.inputs.contract.event_schema
    with (
        Quarantine(job.rejected_in("read", chunk)) as quarantine,
        pa.ipc.new_file(job.spill_file(chunk), schema) as sink,
    ):
        for block in read_chunk(job.inputs.chunks[chunk], job.inputs.contract, job.logs):
            num_rows += block.num_rows
            quarantine.add(block.rejected)
            for batch in partition_events(block.events, job.num_partitions):
                sink.write_batch(batch)
            distinct.append(pc.unique(_training_period(block.events, job.cuts).column("item")))
            span = pc.min_max(block.events.column("time")).as_py()
            times += [value for value in span.values() if value is not None]
    items = pc.unique(pa.chunked_array(distinct))
    return _Read(num_rows, quarantine.counts, items, (min(times), max(times)) if times else None)


def _training_period(events: pa.Table, cuts: Cuts) -> pa.Table:
    """Events whose items the vocabulary has: what is first seen in a held-out period must stay unknown."""
    return (
        events.filter(pc.less(events.column("time"), cuts.validation_time)) if isinstance(cuts, TimeBounds) else events
    )


def _group_all(job: _Job, limit: int, on_progress: Callable[[Progress], None]) -> _WrittenAll:
    num_events, num_train_events = np.zeros((2, len(job.vocabulary) + 1), np.int64)
    parts: dict[int, Part] = {}
    counts = GroupCounts()
    on_progress(Progress("group", 0, job.num_partitions, 0))
    with closing(_run(_group_task, job, job.num_partitions, limit)) as results:
        for done, (partition, result) in enumerate(results, start=1):
            if result.part is not None:
                parts[partition] = result.part
                num_events[result.items.ids] += result.items.num_events
                num_train_events[result.items.ids] += result.items.num_train_events
            counts = sum_counts([counts, result.counts])
            on_progress(Progress("group", done, job.num_partitions, counts.rows_kept))
    return _WrittenAll(tuple(parts[k] for k in sorted(parts)), counts, num_events[1:], num_train_events[1:])


def _group_task(job: _Job, partition: int) -> _Written:
    """Group one partition, in the order of the log: chunk by chunk, block by block."""
    shares = [_share(job.spill_file(chunk), partition, job.num_partitions) for chunk in range(len(job.inputs.chunks))]
    events = pa.Table.from_batches([batch for share in shares for batch in share], job.inputs.contract.event_schema)
    if not events.num_rows:
        return _Written(None, GroupCounts(), None)
    grouped = group_events(events, job.vocabulary, job.cuts, job.logs.duplicates == "drop")
    with Quarantine(job.rejected_in("group", partition)) as quarantine:
        quarantine.add(_duplicate_rows(job, events, grouped, [sum(len(batch) for batch in share) for share in shares]))
    part = write_part(job.spill / f"part-{partition:05d}.parquet", grouped.histories)
    return _Written(part, grouped.counts, grouped.items)


def _share(path: Path, partition: int, num_partitions: int) -> list[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:  # the batches keep the mapping, not the file, open
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(k) for k in range(partition, reader.num_record_batches, num_partitions)]


def _duplicate_rows(job: _Job, events: pa.Table, grouped: Grouped, rows_of_chunks: list[int]) -> pa.Table:
    dropped = events.take(pa.array(grouped.duplicates))
    if job.inputs.contract.time_kind == "timestamp":
        dropped = dropped.set_column(2, "time", dropped.column("time").cast(pa.timestamp("us")))
    chunk = np.searchsorted(np.cumsum(rows_of_chunks), grouped.duplicates, side="right")
    names = pa.array([chunk.file.name for chunk in job.inputs.chunks]).take(pa.array(chunk))
    return quarantine_table(dropped, names, dropped.column("row"), pa.repeat("duplicate", len(dropped)))


def _run(task: Callable[[_Job, int], Any], job: _Job, count: int, limit: int) -> Generator[tuple[int, Any], None, None]:
    """Run `task(job, 0..count-1)`, at most `limit` at a time; yield number and result as they come.

    What a task raises is raised here. Close the iterator if you leave it early: that ends the tasks still running.
    """
    remote, shared = ray.remote(num_cpus=1)(task), ray.put(job)
    waiting: dict[Any, int] = {}
    numbers = iter(range(count))
    try:
        while True:
            while len(waiting) < limit and (number := next(numbers, None)) is not None:
                waiting[remote.remote(shared, number)] = number
            if not waiting:
                return
            [ready], _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), _result(ready)
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:  # until they have let go of the files
            ray.wait(list(waiting), num_returns=len(waiting), timeout=CANCEL_SECONDS)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise


def _check_rejected(job: _Job, num_rows: int, rejected: Counter[str]) -> None:
    where = job.inputs.files[0].name + (f" and {len(job.inputs.files) - 1} more" if len(job.inputs.files) > 1 else "")
    if not num_rows:
        raise UserError(f"logs {where}: no rows at all; check logs.path")
    bad, allowed = rejected.total(), job.logs.max_rejected_fraction
    if bad / num_rows > allowed or bad == num_rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items()))
        raise UserError(
            f"logs {where}: {bad:,} of {num_rows:,} rows ({bad / num_rows:.2%}) cannot be used: {reasons}; "
            f"logs.max_rejected_fraction allows {allowed:.2%}. The first: {', '.join(examples(job.quarantines))}. "
            f'Check logs.user = "{job.logs.user}", logs.item = "{job.logs.item}", logs.time = "{job.logs.time}", '
            "mend the logs, or raise logs.max_rejected_fraction"
        )


def _check_trainable(config: Config, counts: GroupCounts, times: tuple[int, int] | None) -> None:
    if counts.users_without_targets < counts.num_users:
        return
    if isinstance(config.split, GlobalTimeConfig):
        why = f"has two before split.validation_time = {config.split.validation_time!r}"
        remedy = f"Choose a later one: {_time_range(config, times)}" if times else "Choose a later one"
    else:
        why = "has two left when the last two are held out"
        remedy = "Check that logs.user is the right column, or use more logs"
    raise UserError(
        f"split: nothing can be learned from these {counts.rows_kept:,} events of {counts.num_users:,} users, because "
        f"no user {why}. {remedy}"
    )


def _time_range(config: Config, times: tuple[int, int]) -> str:
    """A wrong unit of time is best seen beside a right one."""
    as_dates = isinstance(config.split, GlobalTimeConfig) and isinstance(config.split.validation_time, str)
    first, last = pa.array(times).cast(pa.timestamp("us")).cast(pa.string()).to_pylist() if as_dates else times
    return f"the logs go from {first} to {last}"


def _source(job: _Job, read: _ReadAll) -> dict[str, Any]:
    source = describe_source(job.logs, job.inputs.files)
    rows: Counter[str] = Counter()
    for chunk, num_rows in zip(job.inputs.chunks, read.num_rows, strict=True):
        rows[chunk.file.name] += num_rows
    for file in source["files"]:
        file["rows"] = rows[file["path"]]
    for role in ROLES:
        source["columns"][role]["type"] = str(getattr(job.inputs.contract, role))
    first, last = read.times or (None, None)
    source["columns"]["time"] |= {"kind": job.inputs.contract.time_kind, "first": first, "last": last}
    return source
