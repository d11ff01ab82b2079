"""Features of the catalogue's items, written to one file."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.features import Losses, NumericFit, encode, numbers_of
from trainer.data.dataset.hashing import hash_ids, whole
from trainer.data.dataset.manifest import StoredFile
from trainer.data.dataset.partition_features import first_of_each
from trainer.data.dataset.writer import write_items
from trainer.data.logs.config import NumericFeatureConfig
from trainer.data.logs.quarantine import Quarantine, quarantine_table
from trainer.data.prepare.read_pass import ITEMS, iterate_share
from trainer.data.prepare.rejections import REPEATED_ITEM
from trainer.data.prepare.totals import Totals
from trainer.storage.parquet import read_parquet


@dataclass(frozen=True)
class ItemFeatures:
    """Result of encoding the features of items."""

    # File of the features; None without features.
    file: StoredFile | None = None
    # Statistics of numeric features, by key.
    fits: dict[str, NumericFit] = field(default_factory=dict)
    # Lost values of each feature, by key.
    losses: dict[str, Losses] = field(default_factory=dict)
    # Rows that repeated an item, which are quarantined.
    num_repeated: int = 0


def write_item_features(totals: Totals) -> ItemFeatures:
    """Encode the features of every number of the catalogue; missing where the files of items do not list it."""
    job = totals.job
    specs = totals.group_job.plan.of("item")
    if "items" not in job.inputs.contracts:
        return ItemFeatures()
    if "items" not in job.inputs.files:
        return _kept_features(totals)
    table, kept, num_repeated = _rows_of_items(totals)
    if not specs:
        return ItemFeatures(num_repeated=num_repeated)
    values = whole(table.column("item")).take(kept)
    catalogue = totals.ids[ITEMS].vocabulary
    assert catalogue is not None
    place_of_number = numbers_of(catalogue, values) - 1  # row of each item among the kept rows
    place = pa.array(np.append(-1, place_of_number))
    place = pc.if_else(pc.less(place, 0), pa.scalar(None, place.type), place)
    trained = np.append(False, totals.uses_of_items[1] > 0)
    keys = np.append(np.zeros(1, np.uint64), hash_ids(catalogue))
    columns: dict[str, pa.Array] = {}
    fits: dict[str, NumericFit] = {}
    losses: dict[str, Losses] = {}
    for spec in specs:
        encoded = encode(spec, whole(table.column(spec.key)).take(kept).take(place), totals.ids)
        columns[spec.key] = encoded.column
        losses[spec.key] = encoded.losses + Losses(num_missing=-1)  # number 0 is no item
        if isinstance(spec.config, NumericFeatureConfig):
            numbers = encoded.column.to_numpy(zero_copy_only=False)
            fits[spec.key] = NumericFit.of(spec.config, numbers[trained], keys[trained])
    path = job.output / f"items-{job.generation:03d}.parquet"
    return ItemFeatures(write_items(path, pa.table(columns)), fits, losses, num_repeated)


def _kept_features(totals: Totals) -> ItemFeatures:
    """Return the features that the existing dataset has of its items, and missing values for the others."""
    job = totals.job
    assert job.existing is not None
    old = job.existing.manifest
    if old.items is None:
        return ItemFeatures()
    catalogue = totals.ids[ITEMS].vocabulary
    assert catalogue is not None
    kept = read_parquet(job.folder / old.items.path)
    num_new = len(catalogue) + 1 - kept.num_rows
    before = {feature.column: feature for feature in old.features}
    columns: dict[str, pa.Array] = {}
    losses: dict[str, Losses] = {}
    for spec in totals.group_job.plan.of("item"):
        missing = encode(spec, pa.nulls(num_new, job.inputs.contracts["items"].stored(spec.key)), totals.ids)
        columns[spec.key] = pa.concat_arrays([whole(kept.column(spec.key)), missing.column])
        lost = before[spec.key]
        losses[spec.key] = missing.losses + Losses(lost.num_missing, lost.num_unknown, lost.num_cut)
    path = job.output / f"items-{job.generation:03d}.parquet"
    return ItemFeatures(write_items(path, pa.table(columns)), {}, losses)


def _rows_of_items(totals: Totals) -> tuple[pa.Table, pa.Array, int]:
    """Return all rows of the files of items, the positions of those to keep, and the number of quarantined others."""
    job = totals.job
    batches: list[pa.RecordBatch] = []
    chunks = [np.zeros(0, np.int64)]
    for number in totals.group_job.chunks:
        if job.inputs.chunks[number].source == "items":
            for batch in iterate_share((job.spill_file(number)), 0, 1):
                batches.append(batch)
                chunks.append(np.full(batch.num_rows, number))
    table = pa.Table.from_batches(batches, job.inputs.contracts["items"].event_schema)
    kept, repeated = first_of_each(table.column("item"))
    names = pa.array([chunk.file.name for chunk in job.inputs.chunks]).take(pa.array(np.concatenate(chunks)[repeated]))
    dropped = table.take(pa.array(repeated))
    reasons = pa.repeat(REPEATED_ITEM, len(repeated))
    with Quarantine(job.rejected_in("items", 0)) as quarantine:
        quarantine.add(quarantine_table(dropped, names, dropped.column("row"), reasons))
    return table, kept, int(repeated.size)
