"""From the values that the first pass found to the ids of every table, and to the numbers of the catalogue.

The invariant: what has an id keeps it. An append adds values after those that are there, and never renumbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.config import DynamicIdsConfig, HashIdsConfig, IdsConfig, VocabularyIdsConfig
from trainer.data.dataset.features import Ids, hash_rows
from trainer.data.dataset.grouping import Ints, sort_vocabulary
from trainer.data.dataset.hashing import Distinct
from trainer.data.dataset.splits import Cuts, TimeBounds
from trainer.data.dataset.vocabulary import read_values
from trainer.data.logs.config import CategoricalFeatureConfig
from trainer.data.prepare.read_pass import ITEMS, ChunkValues, ReadResult, sum_values
from trainer.data.prepare.work import PrepareJob, saved_result

MERGE_VALUES = 1_000_000  # values held twice at most, while the driver adds up


@dataclass(frozen=True)
class Found:
    """What all chunks together found: distinct values with counts by table, sketches of hashed tables, the span of times."""

    values: dict[str, pa.Table]
    distinct: dict[str, Distinct]
    times: tuple[int, int] | None


def merge_found(job: PrepareJob, read: Mapping[int, ReadResult]) -> Found:
    """Add up what the chunks `read` found, one after the other, in memory bounded by the result."""
    pending: dict[str, list[pa.Table]] = {}
    distinct: dict[str, Distinct] = {}
    for chunk in sorted(read):
        values: ChunkValues = saved_result(job.work, "values", chunk)
        for table, counts in values.counts.items():
            pieces = pending.setdefault(table, [])
            pieces.append(counts)
            if sum(piece.num_rows for piece in pieces[1:]) > max(pieces[0].num_rows, MERGE_VALUES):
                pending[table] = [sum_values(pieces)]
        for table, found in values.distinct.items():
            distinct[table] = Distinct.merged([distinct.get(table, found), found])
    times = [time for result in read.values() for time in result.times or ()]
    return Found(
        {table: sum_values(pieces) for table, pieces in pending.items()},
        distinct,
        (min(times), max(times)) if times else None,
    )


def ids_of_tables(job: PrepareJob, found: Found) -> dict[str, Ids]:
    """The ids of every table that features with values name, and the catalogue under "item". Buckets are no values."""
    ids = {}
    named = {spec.table for spec in job.specs if isinstance(spec.config, CategoricalFeatureConfig)}
    for table, config in job.request.ids.items():
        if table not in named and table != ITEMS:
            continue
        old = old_values(job, table)
        if table == ITEMS:
            ids[table] = Ids(VocabularyIdsConfig(), _catalogue(found.values[ITEMS], config, old))
        elif isinstance(config, VocabularyIdsConfig):
            ids[table] = Ids(config, _vocabulary(found.values.get(table), config.min_count, old))
        else:
            ids[table] = Ids(config)
    return ids


def old_values(job: PrepareJob, table: str) -> pa.Array | None:
    """The values that an existing dataset has of a table, in the order of their ids."""
    if job.existing is None or table not in job.existing.manifest.vocabularies:
        return None
    return read_values(job.folder, job.existing.manifest, table)


def _vocabulary(found: pa.Table | None, min_count: int, old: pa.Array | None) -> pa.Array:
    """Values with enough occurrences, ascending, after the old ones."""
    if found is None:
        return old if old is not None else pa.array([], pa.string())
    kept = found.filter(pc.greater_equal(found.column("count"), min_count)).column("value")
    return _after(old, sort_vocabulary(kept))


def _catalogue(found: pa.Table, config: IdsConfig, old: pa.Array | None) -> pa.Array:
    """Every item of logs and catalogue: first those that the model will know, each ascending, after the old ones.

    Which ones it knows is settled by the exact counts of the second pass; where that is as expected here, and no item is left
    over, numbers are ids.
    """
    min_count = config.min_count if isinstance(config, VocabularyIdsConfig) else 1
    known = pc.greater_equal(found.column("count"), min_count)
    values = [sort_vocabulary(found.filter(mask).column("value")) for mask in (known, pc.invert(known))]
    return _after(old, pa.concat_arrays(values))


def _after(old: pa.Array | None, values: pa.Array) -> pa.Array:
    if old is None:
        return values
    return pa.concat_arrays([old, values.filter(pc.invert(pc.is_in(values, value_set=old)))])


def item_ids(
    num_events: Ints, num_train_events: Ints, config: IdsConfig, cuts: Cuts, old: npt.NDArray[np.int32] | None
) -> npt.NDArray[np.int32]:
    """(catalogue,) what the model calls each number: 1 and up for known items, 0 for others.

    Known is an item with at least min_count training events; under leave-one-out, where the catalogue is that of the whole
    log, with as many events at all. An item that was known stays so, under its id.
    """
    min_count = config.min_count if isinstance(config, VocabularyIdsConfig) else 1
    counts = num_train_events if isinstance(cuts, TimeBounds) else num_events
    ids = np.zeros(num_events.size, np.int32)
    if old is not None:
        ids[: old.size] = old
    new = np.flatnonzero((counts >= min_count) & (ids == 0))
    ids[new] = ids.max(initial=0) + 1 + np.arange(new.size, dtype=np.int32)
    return ids


def collisions(ids: Ids, distinct: Distinct) -> dict[str, float | int]:
    """Of a hashed table: how many values there are, and the rate 1 - (rows that they use) / values.

    Exact as long as all values are known by their hashes; beyond that what is to be expected of so many. Of a dynamic
    table the number of values only.
    """
    rows, count = ids.num_rows - 1, distinct.count
    if isinstance(ids.config, DynamicIdsConfig):
        return {"values": count}
    if count < Distinct.SIZE:
        used = np.unique(distinct.smallest % np.uint64(rows)).size
        return {"values": count, "rate": 1.0 - used / count if count else 0.0}
    expected = rows * -np.expm1(count * np.log1p(-1.0 / rows))
    return {"values": count, "rate": float(1.0 - expected / count)}


def item_collisions(values: pa.Array, config: HashIdsConfig) -> dict[str, float | int]:
    """Of an item table whose ids are hashes. Exact: the catalogue is at hand."""
    count = len(values)
    used = np.unique(hash_rows(values, config.num_rows)).size
    return {"values": count, "rate": 1.0 - used / count if count else 0.0}


def known_tables(ids: Mapping[str, Ids]) -> dict[str, pa.Array]:
    """The vocabularies to be written, that of the items aside."""
    return {n: found.vocabulary for n, found in ids.items() if found.vocabulary is not None and n != ITEMS}
