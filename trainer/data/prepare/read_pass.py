"""The first pass, one task per chunk of the logs: check rows, spread them over partitions, count values.

The spill file of a chunk has one record batch per block of rows and partition (for items a single one per block). So
the second pass reads a partition's share without searching. Memory is bounded by a block.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.config import VocabularyIdsConfig
from trainer.data.dataset.grouping import Ints, partition_events
from trainer.data.dataset.hashing import Distinct, hash_ids, whole
from trainer.data.dataset.splits import TimeBounds, UserHoldout
from trainer.data.logs.columns import SOURCES, SourceName
from trainer.data.logs.config import CategoricalFeatureConfig, FeatureSpec
from trainer.data.logs.files import UnreadableFileError
from trainer.data.logs.quarantine import Quarantine
from trainer.data.logs.reading import RowBlock, read_chunk
from trainer.data.prepare.work import PrepareJob, complete, save_result
from trainer.storage.parquet import open_arrow

ITEMS = "item"


@dataclass(frozen=True)
class ReadResult:
    """The result of reading one chunk."""

    # Rows of the chunk.
    num_rows: int
    # Quarantined rows by reason.
    rejected: Counter[str]
    # (num_hashed,) rows of each hashed partition.
    rows_of_partitions: Ints
    # First and last time of the accepted rows.
    times: tuple[int, int] | None = None
    # Reason why the file must be left out; None if it was read.
    unreadable: str | None = None
    # Hash of the whole file, in the result of its first chunk.
    sha256: str | None = None
    # Counts by the names in trainer/data/logs/observations.py.
    observed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ChunkValues:
    """Values of one chunk for the vocabularies. They are stored in the work folder, because all chunks together may be large."""

    # By table: distinct values and their occurrences in the training period (columns value, count).
    counts: dict[str, pa.Table] = field(default_factory=dict)
    # By table without a vocabulary: distinct values of all periods, because every value has a row there.
    distinct: dict[str, Distinct] = field(default_factory=dict)


def read_task(job: PrepareJob, chunk: int) -> ReadResult:
    """Check a chunk and write its spill file.

    Raises:
        UserError: if its content breaks the contract, or if it cannot be read and no file may be left out.
    """
    try:
        result = _read(job, chunk)
    except UnreadableFileError as error:
        if not job.request.logs.max_unreadable_files:
            raise
        result = ReadResult(0, Counter(), np.zeros(job.num_hashed, np.int64), unreadable=str(error))
    save_result(job.work, "read", chunk, result)
    return result


def _read(job: PrepareJob, number: int) -> ReadResult:
    chunk = job.inputs.chunks[number]
    contract = job.inputs.contracts[chunk.source]
    num_rows = 0
    times: list[int] = []
    observed: Counter[str] = Counter()
    rows_of_partitions = np.zeros(job.num_hashed, np.int64)
    values = _Values(job, chunk.source)
    with (
        complete(job.rejected_in("read", number)) as rejected_file,
        complete(job.spill_file(number)) as spill_file,
        Quarantine(rejected_file) as quarantine,
        pa.ipc.new_file(spill_file, contract.event_schema) as sink,
    ):
        for block in read_chunk(chunk, contract, job.rules):
            num_rows += block.num_rows
            observed += block.observed
            quarantine.add(block.rejected)
            for partition, batch in enumerate(_spread(job, chunk.source, block)):
                sink.write_batch(batch)
                rows_of_partitions[partition] += batch.num_rows
            values.add(block.events)
            if "time" in block.events.column_names:
                span = pc.min_max(block.events.column("time")).as_py()
                times += [value for value in span.values() if value is not None]
    sha256 = None
    if chunk.first_row == 0:
        sha256 = chunk.file.content_hash()
        chunk.file.check_unchanged()
    save_result(job.work, "values", number, values.counted())
    span_of_chunk = (min(times), max(times)) if times else None
    return ReadResult(num_rows, quarantine.counts, rows_of_partitions, span_of_chunk, sha256=sha256, observed=observed)


def _spread(job: PrepareJob, source: SourceName, block: RowBlock) -> list[pa.RecordBatch]:
    if source == "items":
        columns = [whole(column) for column in block.events.columns]
        return [pa.RecordBatch.from_arrays(columns, schema=block.events.schema)]
    return partition_events(block.events, job.num_hashed)


class _Values:
    """Counter of the values that vocabularies need, with their occurrences in the training period, over all blocks."""

    def __init__(self, job: PrepareJob, source: SourceName) -> None:
        self._distinct: dict[str, Distinct] = {}
        self._cuts = job.cuts
        # Tables without a vocabulary, for which only distinct values are counted.
        self._hashed = {n for n, c in job.request.ids.items() if not isinstance(c, VocabularyIdsConfig)} - {ITEMS}
        self._specs = [
            spec
            for spec in job.specs
            if SOURCES[spec.owner] == source
            and isinstance(spec.config, CategoricalFeatureConfig)
            and spec.table != ITEMS
        ]
        self._counts: dict[str, list[pa.Table]] = {}

    def add(self, events: pa.Table) -> None:
        """Count the values of a block."""
        trains = self._trains(events)
        if ITEMS in events.column_names:
            # Items that occur only in the held-out period belong to the catalogue too, with a count of zero.
            self._add_counts(ITEMS, events.column(ITEMS), trains)
        for spec in self._specs:
            assert spec.table is not None
            if spec.table in self._hashed:
                sketch = Distinct.of(hash_ids(_entries(spec, events).drop_null()))
                self._distinct[spec.table] = Distinct.merged([self._distinct.get(spec.table, sketch), sketch])
            else:
                self._add_counts(spec.table, _entries(spec, events if trains is None else events.filter(trains)), None)

    def counted(self) -> ChunkValues:
        """Return the sums over all added blocks."""
        return ChunkValues({table: sum_values(pieces) for table, pieces in self._counts.items()}, self._distinct)

    def _trains(self, events: pa.Table) -> pa.ChunkedArray | None:
        """Return a mask of the events in the training period; None if all may be. Leave-one-out decides this only later."""
        if isinstance(self._cuts, UserHoldout) and "user" in events.column_names:
            return pa.chunked_array([self._cuts.trains(hash_ids(events.column("user")))])
        if "time" not in events.column_names or not isinstance(self._cuts, TimeBounds):
            return None
        return pc.less(events.column("time"), self._cuts.validation_time)

    def _add_counts(self, table: str, values: pa.ChunkedArray, trains: pa.ChunkedArray | None) -> None:
        if values.null_count == len(values):  # perhaps a column without any value, which has no type either
            return
        pieces = self._counts.setdefault(table, [])
        pieces.append(_value_counts(values if trains is None else values.filter(trains)))
        if trains is not None:
            held_out = pc.unique(values.filter(pc.invert(trains)))
            pieces.append(pa.table({"value": held_out, "count": pa.array(np.zeros(len(held_out), np.int64))}))


def _entries(spec: FeatureSpec, events: pa.Table) -> pa.ChunkedArray:
    values = events.column(spec.key)
    return pc.list_flatten(values) if pa.types.is_list(values.type) else values


def _value_counts(values: pa.ChunkedArray) -> pa.Table:
    counted = values.drop_null().value_counts()
    return pa.table({"value": counted.field("values"), "count": counted.field("counts")})


def sum_values(pieces: list[pa.Table]) -> pa.Table:
    """Return one row per distinct value with the sum of its counts, in no particular order."""
    if len(pieces) == 1:
        return pieces[0]
    summed = pa.concat_tables(pieces).group_by("value", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns({"count_sum": "count"})


def iterate_share(path: Path, partition: int, num_partitions: int) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of one partition in a spill file."""
    with open_arrow(path) as reader:
        for number in range(partition, reader.num_record_batches, num_partitions):
            yield reader.get_batch(number)
