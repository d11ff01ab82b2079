"""Preparation of a sequence dataset from event logs, as Ray tasks over Arrow in two passes, after a scan of text files.

    scan     one task per text file: the types that its columns fit (Parquet files name them)
    read     one task per chunk of the logs: check the rows, split them by the hash of the user into a spill file
    group    one task per partition: its share of every spill file becomes histories, which become one part

The driver holds counts and vocabularies, never events. All files are written into a hidden folder inside the dataset
folder and moved out at the end, manifest.json last: the dataset exists completely or not at all. An interrupted prepare
continues where it stopped. The result depends on logs and settings only, not on the number of tasks or the order in
which they end. With several machines the dataset folder must be on shared storage.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.config.run_config import Config
from cluster.ray_cluster.room import described, matches
from cluster.ray_cluster.session import nodes_here
from cluster.ray_cluster.task_pool import TaskLimit, run_tasks
from trainer.config.split import GlobalTimeConfig
from trainer.data.dataset import card
from trainer.data.dataset.folder import DatasetRequest, Existing, Files, attempt, find_dataset, remove_leftovers
from trainer.data.dataset.manifest import Manifest, write_manifest
from trainer.data.dataset.partition_events import GroupPlan
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import resolve_cuts, resolve_time
from trainer.data.logs.columns import columns_of
from trainer.data.logs.contract import LogInputs, find_inputs, inspect_inputs, none_readable, too_many_unreadable
from trainer.data.logs.quarantine import gather
from trainer.data.logs.reading import Rules, rules_of
from trainer.data.logs.text_scan import ScanJob, TextProfile, scan_here, scan_task
from trainer.data.prepare.finish import finish
from trainer.data.prepare.group_pass import GroupResult, group_task, shares_of
from trainer.data.prepare.read_pass import ReadResult, read_task
from trainer.data.prepare.rejections import check_budget
from trainer.data.prepare.source import contracts_of, partitioning_of
from trainer.data.prepare.totals import Totals
from trainer.data.prepare.vocabularies import ids_of_tables, merge_values
from trainer.data.prepare.work import GroupJob, Partitioning, PrepareJob, saved_results
from trainer.errors import UserError
from trainer.storage.files import replace_durably

EVENTS_PER_PARTITION = 1_000_000
MAX_PARTITIONS = 4096
SCAN_HERE_BYTES = 64 << 20  # total size of text files from which their scan runs as tasks
CSV_BYTES_PER_ROW = 24  # only to choose the number of partitions


@dataclass(frozen=True)
class Progress:
    """Progress of a stage."""

    # "read", then "group".
    stage: str
    # Tasks that are done.
    done: int
    # All tasks of the stage.
    total: int
    # Rows that the tasks read or kept.
    rows: int


OnProgress = Callable[[Progress], None]


def prepare(
    config: Config,
    on_progress: OnProgress,
    before_append: Callable[[Existing], None] = lambda existing: None,
    connect: Callable[[], None] = lambda: None,
    on_phase: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Build the dataset of a config, or verify and return it if it exists.

    Files of events that are new since the dataset was made are appended to it.

    Args:
        config: of the run.
        on_progress: called after each task.
        before_append: called with the dataset that would be appended to, before anything is written; an error it raises
            stops that.
        connect: joins Ray, if that is not done. It is called before the first task, and not if there is nothing to do. Small
            logs are checked before it, so that a wrong column is reported at once. By default Ray must be initialised.
        on_phase: called with the name of a phase that takes time before the first task.

    Raises UserError, with nothing left behind, if the logs break their contract, more rows than allowed are rejected, the split
    leaves nothing to train on, the disk is full, or the dataset folder holds something else.
    """
    folder = config.dataset_dir.absolute()
    request = DatasetRequest(config.logs, config.split, config.ids_of_tables, find_inputs(config.logs))
    existing = find_dataset(folder, request)
    if existing is not None and existing.new_files is None:
        remove_leftovers(folder)
        _write_missing_card(folder, existing.manifest)
        return existing.manifest
    if existing is not None:
        before_append(existing)
    on_phase("reading the headers of the logs")
    inputs = _inspect(config, request, existing, connect)
    connect()
    with attempt(folder, request.fingerprint) as work:
        before = existing
        existing = find_dataset(folder, request)
        if existing is not None and existing.new_files is None:
            return existing.manifest
        if existing != before:  # another command has made or extended the dataset in the meantime
            inputs = _inspect(config, request, existing, connect)
        num_hashed = partitioning_of(existing.manifest).num_hashed if existing else num_partitions(inputs)
        cuts = resolve_cuts(config.split, inputs.time_kind)
        job = PrepareJob(folder, work, request, inputs, time_rules(config, inputs), cuts, num_hashed, existing)
        manifest = build(config, job, max_tasks(config), on_progress)
        commit(work, folder, manifest)
    return manifest


def commit(work: Path, folder: Path, manifest: Manifest) -> None:
    """Move the finished files out of the work folder, and write the manifest and the card."""
    for path in sorted(work.glob("[!.]*.parquet")):
        replace_durably(path, folder / path.name)
    write_manifest(folder, manifest)
    card.write(folder, manifest)


def _write_missing_card(folder: Path, manifest: Manifest) -> None:
    """Write the card if the command that made the dataset ended between its manifest and its card."""
    if card.read_checks(folder, manifest) is None:
        with suppress(OSError):  # another user's dataset may be readable, but not writable
            card.write(folder, manifest)


def _inspect(
    config: Config, request: DatasetRequest, existing: Existing | None, connect: Callable[[], None]
) -> LogInputs:
    scan = partial(scan_all, config, connect)
    if existing is None:
        return inspect_inputs(dict(request.files), config.logs, scan=scan)
    assert existing.new_files is not None
    files: Files = {name: own for name, own in request.files.items() if name in ("items", "users")}
    before = contracts_of(existing.manifest, columns_of(config.logs))
    return inspect_inputs({**files, **existing.new_files}, config.logs, before, scan=scan)


def scan_all(config: Config, connect: Callable[[], None], job: ScanJob) -> Sequence[TextProfile | str]:
    """Scan text files: small logs in this process, large ones as tasks."""
    if sum(file.num_bytes for file, _ in job.files) < SCAN_HERE_BYTES:
        return scan_here(job)
    connect()
    with closing(run_tasks(scan_task, job, range(len(job.files)), max_tasks(config))) as finished:
        results = dict(finished)
    return [results[number] for number in range(len(job.files))]


def max_tasks(config: Config) -> TaskLimit:
    """Return how many tasks run in parallel, and on which nodes. Raises UserError if no node may run them."""
    cluster = config.cluster
    labels = {} if cluster.address is None else cluster.prepare_labels
    if cluster.prepare_tasks is not None and not labels:
        return TaskLimit(cluster.prepare_tasks)
    nodes = [node for node in nodes_here() if matches(node.labels, labels)]
    if not nodes and not cluster.autoscaling:
        raise UserError(
            f"cluster.prepare_labels: no node of the cluster has the labels {described(labels)}, so the tasks of prepare would "
            "wait for ever; change the labels, or set cluster.autoscaling = true if the cluster adds such nodes by itself"
        )
    cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
    return TaskLimit(cluster.prepare_tasks or max(1, int(cpus)), labels)


def time_rules(config: Config, inputs: LogInputs) -> Rules:
    """Return the conditions under which rows are rejected, with the bounds of times as numbers."""
    logs = config.logs
    bounds = [
        None if value is None else resolve_time(value, f"logs.{name}", inputs.time_kind)
        for name, value in (("earliest_time", logs.earliest_time), ("latest_time", logs.latest_time))
    ]
    return rules_of(logs, *bounds)


def num_partitions(inputs: LogInputs) -> int:
    """Return about one partition per million events, from the headers alone, so that the same logs always give the same parts."""
    events = [chunk for chunk in inputs.chunks if chunk.source in ("logs", "history")]
    parquet_rows = sum(chunk.num_rows or 0 for chunk in events)
    csv_rows = sum(chunk.file.num_bytes for chunk in events if chunk.num_rows is None) // CSV_BYTES_PER_ROW
    return min(max(math.ceil((parquet_rows + csv_rows) / EVENTS_PER_PARTITION), 1), MAX_PARTITIONS)


def build(config: Config, job: PrepareJob, limit: TaskLimit, on_progress: OnProgress) -> Manifest:
    """Run both passes, and write all files into the work folder. Return the manifest, which the caller commits.

    Args:
        config: settings of the logs.
        job: the inputs.
        limit: number of tasks that run in parallel.
        on_progress: called after each task.
    """
    read, job = _read_all(job, limit, on_progress)
    check_budget(job, read)
    values = merge_values(job, read)
    rows = sum((result.rows_of_partitions for result in _events_of(job, read)), np.zeros(job.num_hashed, np.int64))
    partitioning = (
        partitioning_of(job.existing.manifest) if job.existing else Partitioning(job.num_hashed, shares_of(rows))
    )
    logs = config.logs
    plan = GroupPlan(
        cuts=job.cuts,
        ids=ids_of_tables(job, values),
        specs=job.specs,
        bins=TimeBins(*_span(job, values.times)),
        drop_duplicates=logs.duplicates == "drop",
        max_events_per_user=logs.max_events_per_user,
        labels=tuple(logs.labels),
        history_label=logs.history_label,
        fit=job.existing is None,
    )
    group_job = GroupJob(job, plan, partitioning, tuple(sorted(read)))
    values = replace(values, values={})
    grouped = _group_all(group_job, limit, on_progress)
    check_budget(job, read, grouped)
    totals = Totals(group_job, values, read, grouped)
    if not job.is_derived:
        _check_trainable(config, totals)
    manifest = finish(totals)
    gather(_quarantines(group_job), job.output / f"rejected-{job.generation:03d}.parquet")
    return manifest


def _read_all(job: PrepareJob, limit: TaskLimit, on_progress: OnProgress) -> tuple[dict[int, ReadResult], PrepareJob]:
    """Return the results of all readable chunks, and the job with the unreadable files."""
    total = len(job.inputs.chunks)
    results: dict[int, ReadResult] = dict(saved_results(job.work, "read"))
    rows = sum(result.num_rows for result in results.values())
    on_progress(Progress("read", len(results), total, rows))
    missing = [number for number in range(total) if number not in results]
    with closing(run_tasks(read_task, job, missing, limit)) as finished:
        for number, result in finished:
            results[number] = result
            rows += result.num_rows
            on_progress(Progress("read", len(results), total, rows))
    broken = {job.inputs.chunks[n].file.name: r.unreadable for n, r in results.items() if r.unreadable is not None}
    unreadable = job.inputs.unreadable | broken
    allowed = job.request.logs.max_unreadable_files
    if len(unreadable) > allowed:
        raise UserError(too_many_unreadable(unreadable, allowed))
    # A file is left out as a whole, including chunks before the damage.
    kept = {n: r for n, r in sorted(results.items()) if job.inputs.chunks[n].file.name not in unreadable}
    for source in dict.fromkeys(chunk.source for chunk in job.inputs.chunks):
        if not any(job.inputs.chunks[n].source == source for n in kept):
            raise UserError(none_readable(source, broken))
    return kept, replace(job, inputs=replace(job.inputs, unreadable=unreadable))


def _events_of(job: PrepareJob, read: dict[int, ReadResult]) -> list[ReadResult]:
    return [result for number, result in read.items() if job.inputs.chunks[number].source in ("logs", "history")]


def _group_all(given: GroupJob, limit: TaskLimit, on_progress: OnProgress) -> list[GroupResult]:
    job = given.job
    total = len(given.partitioning.places)
    results: dict[int, GroupResult] = {
        number: result.without_items() for number, result in saved_results(job.work, "group") if _is_there(job, result)
    }
    rows = sum(result.counts.rows_kept for result in results.values())
    on_progress(Progress("group", len(results), total, rows))
    missing = [number for number in range(total) if number not in results]
    with closing(run_tasks(group_task, given.to_send(), missing, limit)) as finished:
        for number, result in finished:
            results[number] = result
            rows += result.counts.rows_kept
            on_progress(Progress("group", len(results), total, rows))
    return [results[number] for number in range(total)]


def _is_there(job: PrepareJob, result: GroupResult) -> bool:
    """Return whether the files of an interrupted attempt are still in the work folder, or already in the dataset folder."""
    files = [file for file in (result.part, result.cuts) if file is not None]
    return all(_has_size(job.work / f.path, f.num_bytes) or _has_size(job.folder / f.path, f.num_bytes) for f in files)


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == num_bytes


def _quarantines(given: GroupJob) -> list[Path]:
    """Return the quarantine files in the order in which they are gathered: that of the log, then those of the second pass."""
    job = given.job
    read = [job.rejected_in("read", chunk) for chunk in given.chunks]
    group = [job.rejected_in("group", partition) for partition in range(len(given.partitioning.places))]
    return [*read, *group, job.rejected_in("items", 0)]


def _span(job: PrepareJob, times: tuple[int, int] | None) -> tuple[int, int]:
    before = job.existing.manifest.source["time"] if job.existing else {}
    spans = [t for t in (*(times or ()), before.get("first"), before.get("last")) if t is not None]
    return (min(spans), max(spans)) if spans else (0, 0)


def _check_trainable(config: Config, totals: Totals) -> None:
    counts = totals.counts
    if counts.users_without_targets < counts.num_users:
        return
    if isinstance(config.split, GlobalTimeConfig):
        few = "an impression" if config.logs.labels else "two"
        why = f"has {few} before split.validation_time = {config.split.validation_time!r}"
        times = totals.values.times
        remedy = f"Choose a later one: {_time_range(config, times)}" if times else "Choose a later one"
    else:
        held_out = 2 * getattr(config.split, "num_targets", 1)
        why = f"has two events left after the last {'two' if held_out == 2 else held_out} are held out"
        remedy = "Check that logs.user is the right column, or use more logs"
    raise UserError(
        f"split: nothing can be learned from these {counts.rows_kept:,} events of {counts.num_users:,} users, because "
        f"no user {why}. {remedy}"
    )


def _time_range(config: Config, times: tuple[int, int]) -> str:
    """Describe the times of the logs in the form of the setting, so that a wrong unit is easy to see."""
    as_dates = isinstance(config.split, GlobalTimeConfig) and isinstance(config.split.validation_time, str)
    first, last = pa.array(times).cast(pa.timestamp("us")).cast(pa.string()).to_pylist() if as_dates else times
    return f"the logs go from {first} to {last}"
