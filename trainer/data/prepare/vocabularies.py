"""Vocabularies: from the values of the first pass to the ids of every table, and to the numbers of the catalogue.

The invariant: ids and numbers never change. An append adds values after the existing ones. A derived dataset adds none,
except for numbers of unknown items at the end of the catalogue.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.config import DynamicIdsConfig, HashIdsConfig, IdsConfig, VocabularyIdsConfig
from trainer.data.dataset.features import Ids, hash_rows, numbers_of
from trainer.data.dataset.grouping import Ints
from trainer.data.dataset.hashing import Distinct, whole
from trainer.data.dataset.splits import Cuts, LeaveOneOut
from trainer.data.dataset.vocabulary import iterate_values, read_values
from trainer.data.logs.config import CategoricalFeatureConfig
from trainer.data.prepare.read_pass import ITEMS, ChunkValues, ReadResult
from trainer.data.prepare.sorted_values import CountedValues
from trainer.data.prepare.work import PrepareJob, saved_result
from trainer.storage.mapped import ArrayWriter

_BLOCK = 1 << 20  # items in memory at a time


@dataclass(frozen=True)
class MergedValues:
    """Values of all chunks together."""

    # By table: distinct values with their counts. Empty once tables have their ids.
    values: dict[str, CountedValues]
    # By hashed table: sketch of its distinct values.
    distinct: dict[str, Distinct]
    # First and last time; None without times.
    times: tuple[int, int] | None


def merge_values(job: PrepareJob, read: Mapping[int, ReadResult]) -> MergedValues:
    """Merge the values of the chunks, one after the other. Many values are in temporary files."""
    merged: dict[str, CountedValues] = {}
    distinct: dict[str, Distinct] = {}
    for chunk in sorted(read):
        values: ChunkValues = saved_result(job.work, "values", chunk)
        for table, counts in values.counts.items():
            merged.setdefault(table, CountedValues(job.work)).add(counts)
        for table, sketch in values.distinct.items():
            distinct[table] = Distinct.merged([distinct.get(table, sketch), sketch])
    times = [time for result in read.values() for time in result.times or ()]
    return MergedValues(merged, distinct, (min(times), max(times)) if times else None)


def ids_of_tables(job: PrepareJob, merged: MergedValues) -> dict[str, Ids]:
    """Return the ids of every table that features with values name, and the catalogue as "item". Buckets are no values."""
    ids = {}
    named = {spec.table for spec in job.specs if isinstance(spec.config, CategoricalFeatureConfig)}
    for table, config in job.request.ids.items():
        if table not in named and table != ITEMS:
            continue
        if table == ITEMS:
            ids[table] = Ids(VocabularyIdsConfig(), _catalogue(job, merged.values[ITEMS], config))
        elif isinstance(config, VocabularyIdsConfig):
            counted = None if job.is_derived else merged.values.get(table)
            ids[table] = Ids(config, _vocabulary(job, table, counted, config.min_count))
        else:
            ids[table] = Ids(config)
    return ids


def old_values(job: PrepareJob, table: str) -> pa.Array | None:
    """Return the values of a table in the existing dataset, in the order of their ids; None if there are none."""
    if job.existing is None or table not in job.existing.manifest.vocabularies:
        return None
    values: ArrayWriter | None = None
    for _, block in iterate_values(job.folder, job.existing.manifest, table):
        values = values or ArrayWriter(block.type, job.work)
        values.add(block)
    return values.array() if values else read_values(job.folder, job.existing.manifest, table)


def _vocabulary(job: PrepareJob, table: str, counted: CountedValues | None, min_count: int) -> pa.Array:
    """Return the old values, then new ones with enough occurrences, ascending."""
    old = old_values(job, table)
    if counted is None:
        return old if old is not None else pa.array([], pa.string())
    values = ArrayWriter(counted.kind, job.work)
    for block in counted.ascending():
        values.add(whole(block.filter(pc.greater_equal(block.column("count"), min_count)).column("value")))
    return _after(job, old, values.array())


def _catalogue(job: PrepareJob, counted: CountedValues, config: IdsConfig) -> pa.Array:
    """Return every item of logs and catalogue: the old ones, then items that the model will know, then others, each ascending.

    The exact counts of the second pass decide which items are known. If they confirm this order and no unknown items
    remain, numbers are ids.
    """
    min_count = config.min_count if isinstance(config, VocabularyIdsConfig) else 1
    known, others = (ArrayWriter(counted.kind, job.work) for _ in range(2))
    for block in counted.ascending():
        is_known = pc.greater_equal(block.column("count"), min_count)
        known.add(whole(block.filter(is_known).column("value")))
        others.add(whole(block.filter(pc.invert(is_known)).column("value")))
    known.add(others.array())
    return _after(job, old_values(job, ITEMS), known.array())


def _after(job: PrepareJob, old: pa.Array | None, values: pa.Array) -> pa.Array:
    """Return the old values, then the others in their order."""
    if old is None:
        return values
    both = ArrayWriter(old.type, job.work)
    both.add(old)
    is_new = numbers_of(values, old) == 0
    for first in range(0, len(values), _BLOCK):
        both.add(values.slice(first, _BLOCK).filter(pa.array(is_new[first : first + _BLOCK])))
    return both.array()


def item_ids(
    num_events: Ints, num_train_events: Ints, config: IdsConfig, cuts: Cuts, old: npt.NDArray[np.int32] | None
) -> npt.NDArray[np.int32]:
    """Return the id of each number of the catalogue, (catalogue,): 1 and up for known items, 0 for others.

    An item is known if it has at least min_count training events. Under leave-one-out the catalogue is that of the
    whole log, so all its events count. A known item stays known, with the same id.

    Args:
        num_events: (catalogue,) events of each item.
        num_train_events: (catalogue,) training events of each item.
        config: kind of ids.
        cuts: bounds of the splits.
        old: ids of the existing dataset.
    """
    min_count = config.min_count if isinstance(config, VocabularyIdsConfig) else 1
    counts = num_events if isinstance(cuts, LeaveOneOut) else num_train_events
    ids = np.zeros(num_events.size, np.int32)
    if old is not None:
        ids[: old.size] = old
    next_id = ids.max(initial=0) + 1
    for first in range(0, ids.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        new = first + np.flatnonzero((counts[block] >= min_count) & (ids[block] == 0))
        ids[new] = next_id + np.arange(new.size, dtype=np.int32)
        next_id += new.size
    return ids


def collisions(ids: Ids, distinct: Distinct) -> dict[str, float | int]:
    """Return the number of values of a hashed table, and the collision rate 1 - (rows in use) / values.

    The rate is exact while all values are known by their hashes, and the expected one beyond that. For a dynamic table
    only the number of values is returned.
    """
    rows = ids.num_rows - 1
    count = distinct.count
    if isinstance(ids.config, DynamicIdsConfig):
        return {"values": count}
    if count < Distinct.SIZE:
        used = np.unique(distinct.smallest % np.uint64(rows)).size
        return {"values": count, "rate": 1.0 - used / count if count else 0.0}
    expected = rows * -np.expm1(count * np.log1p(-1.0 / rows))
    return {"values": count, "rate": float(1.0 - expected / count)}


def item_collisions(values: pa.Array, config: HashIdsConfig) -> dict[str, float | int]:
    """Return the collisions of an item table with hashed ids. They are exact, because the catalogue is complete."""
    count = len(values)
    used = np.unique(hash_rows(values, config.num_rows)).size
    return {"values": count, "rate": 1.0 - used / count if count else 0.0}


def known_tables(ids: Mapping[str, Ids]) -> dict[str, pa.Array]:
    """Return the vocabularies to write, except that of the items."""
    return {name: own.vocabulary for name, own in ids.items() if own.vocabulary is not None and name != ITEMS}
