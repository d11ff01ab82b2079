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
from trainer.data.dataset.features import Ids, hash_rows
from trainer.data.dataset.grouping import Ints, sort_vocabulary
from trainer.data.dataset.hashing import Distinct
from trainer.data.dataset.splits import Cuts, LeaveOneOut
from trainer.data.dataset.vocabulary import read_values
from trainer.data.logs.config import CategoricalFeatureConfig
from trainer.data.prepare.read_pass import ITEMS, ChunkValues, ReadResult, sum_values
from trainer.data.prepare.work import PrepareJob, saved_result

MERGE_VALUES = 1_000_000  # most values that the driver holds twice while it adds up


@dataclass(frozen=True)
class MergedValues:
    """Values of all chunks together."""

    # By table: distinct values with their counts.
    values: dict[str, pa.Table]
    # By hashed table: sketch of its distinct values.
    distinct: dict[str, Distinct]
    # First and last time; None without times.
    times: tuple[int, int] | None


def merge_values(job: PrepareJob, read: Mapping[int, ReadResult]) -> MergedValues:
    """Merge the values of the chunks, one after the other, in memory bounded by the result."""
    pending: dict[str, list[pa.Table]] = {}
    distinct: dict[str, Distinct] = {}
    for chunk in sorted(read):
        values: ChunkValues = saved_result(job.work, "values", chunk)
        for table, counts in values.counts.items():
            pieces = pending.setdefault(table, [])
            pieces.append(counts)
            if sum(piece.num_rows for piece in pieces[1:]) > max(pieces[0].num_rows, MERGE_VALUES):
                pending[table] = [sum_values(pieces)]
        for table, sketch in values.distinct.items():
            distinct[table] = Distinct.merged([distinct.get(table, sketch), sketch])
    times = [time for result in read.values() for time in result.times or ()]
    return MergedValues(
        {table: sum_values(pieces) for table, pieces in pending.items()},
        distinct,
        (min(times), max(times)) if times else None,
    )


def ids_of_tables(job: PrepareJob, merged: MergedValues) -> dict[str, Ids]:
    """Return the ids of every table that features with values name, and the catalogue as "item". Buckets are no values."""
    ids = {}
    named = {spec.table for spec in job.specs if isinstance(spec.config, CategoricalFeatureConfig)}
    for table, config in job.request.ids.items():
        if table not in named and table != ITEMS:
            continue
        old = old_values(job, table)
        if table == ITEMS:
            ids[table] = Ids(VocabularyIdsConfig(), _catalogue(merged.values[ITEMS], config, old))
        elif isinstance(config, VocabularyIdsConfig):
            counted = None if job.is_derived else merged.values.get(table)
            ids[table] = Ids(config, _vocabulary(counted, config.min_count, old))
        else:
            ids[table] = Ids(config)
    return ids


def old_values(job: PrepareJob, table: str) -> pa.Array | None:
    """Return the values of a table in the existing dataset, in the order of their ids; None if there are none."""
    if job.existing is None or table not in job.existing.manifest.vocabularies:
        return None
    return read_values(job.folder, job.existing.manifest, table)


def _vocabulary(counted: pa.Table | None, min_count: int, old: pa.Array | None) -> pa.Array:
    """Return the old values, then new ones with enough occurrences, ascending."""
    if counted is None:
        return old if old is not None else pa.array([], pa.string())
    kept = counted.filter(pc.greater_equal(counted.column("count"), min_count)).column("value")
    return _after(old, sort_vocabulary(kept))


def _catalogue(counted: pa.Table, config: IdsConfig, old: pa.Array | None) -> pa.Array:
    """Return every item of logs and catalogue: the old ones, then items that the model will know, then others, each ascending.

    The exact counts of the second pass decide which items are known. If they confirm this order and no unknown items
    remain, numbers are ids.
    """
    min_count = config.min_count if isinstance(config, VocabularyIdsConfig) else 1
    known = pc.greater_equal(counted.column("count"), min_count)
    values = [sort_vocabulary(counted.filter(mask).column("value")) for mask in (known, pc.invert(known))]
    return _after(old, pa.concat_arrays(values))


def _after(old: pa.Array | None, values: pa.Array) -> pa.Array:
    if old is None:
        return values
    return pa.concat_arrays([old, values.filter(pc.invert(pc.is_in(values, value_set=old)))])


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
    new = np.flatnonzero((counts >= min_count) & (ids == 0))
    ids[new] = ids.max(initial=0) + 1 + np.arange(new.size, dtype=np.int32)
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
