"""After both passes: features of items, ids, counts, what was fitted, and the manifest that commits the dataset."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.config import HashIdsConfig
from trainer.data.dataset import profile
from trainer.data.dataset.features import Ids, Losses, NumericFit, encode, feature_of, kind_of, numbers_of, with_fit
from trainer.data.dataset.grouping import Ints
from trainer.data.dataset.hashing import Distinct, hash_ids, whole
from trainer.data.dataset.manifest import Counts, Feature, Manifest, StoredFile, VocabularyFile
from trainer.data.dataset.partition import ItemCounts, sum_counts
from trainer.data.dataset.partition_features import first_of_each
from trainer.data.dataset.profile import Profile
from trainer.data.dataset.writer import (
    numbered,
    read_sketch,
    write_catalogue,
    write_items,
    write_sketch,
    write_vocabulary,
)
from trainer.data.logs.columns import SOURCES, SourceName
from trainer.data.logs.config import FeatureSpec, NumericFeatureConfig
from trainer.data.logs.contract import Contract
from trainer.data.logs.quarantine import Quarantine, quarantine_table
from trainer.data.prepare.group_pass import GroupResult
from trainer.data.prepare.observed import observed_in
from trainer.data.prepare.read_pass import ITEMS, ReadResult, iterate_share
from trainer.data.prepare.rejections import CATALOGUE, EVENTS, REPEATED_ITEM, count_rejected
from trainer.data.prepare.vocabularies import Found, collisions, item_collisions, item_ids, known_tables
from trainer.data.prepare.work import GroupJob, Partitioning, PrepareJob


@dataclass(frozen=True)
class Finishing:
    """Everything that was found. read: by chunk; grouped: by partition."""

    given: GroupJob
    found: Found
    read: Mapping[int, ReadResult]
    grouped: Sequence[GroupResult]

    @property
    def job(self) -> PrepareJob:
        return self.given.job

    @property
    def ids(self) -> Mapping[str, Ids]:
        return self.given.plan.ids

    @cached_property
    def events_of_items(self) -> tuple[Ints, Ints]:
        """(all, training) targets with every number of the catalogue; (catalogue,) each."""
        return self._sum_items(result.items for result in self.grouped)

    @cached_property
    def uses_of_items(self) -> tuple[Ints, Ints]:
        """The same with the events of histories that are no targets: what the model looks up."""
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
        """Which items the splits share."""
        sums = np.zeros((3, self.item_ids.size + 1), np.int64)
        for items in (result.items for result in self.grouped):
            sums[:, items.numbers] += (items.num_events, items.num_train_events, items.num_test_events)
        num_events, num_train_events, num_test_events = sums[:, 1:]
        return profile.overlap_of_items(num_events, num_train_events, num_test_events, self.item_ids)

    @cached_property
    def item_ids(self) -> npt.NDArray[np.int32]:
        """(catalogue,) what the model calls every number."""
        old = None
        if self.job.existing is not None:
            path = self.job.folder / self.job.existing.manifest.vocabulary.path
            old = pq.read_table(path, columns=["id"]).column("id").to_numpy()
        return item_ids(*self.uses_of_items, self.job.request.ids[ITEMS], self.job.cuts, old)

    @cached_property
    def distinct(self) -> dict[str, Distinct]:
        """Of every table without a vocabulary: its values in all files, of all generations."""
        before: dict[str, Distinct] = {}
        if self.job.existing is not None:
            sketches = self.job.existing.manifest.sketches
            before = {table: read_sketch(self.job.folder / file.path) for table, file in sketches.items()}
        tables = before.keys() | self.found.distinct.keys()
        both = {table: [d[table] for d in (before, self.found.distinct) if table in d] for table in sorted(tables)}
        return {table: Distinct.merged(pieces) for table, pieces in both.items()}

    @cached_property
    def counts(self) -> Counts:
        """The sums of all partitions; rows read, kept and rejected are those of all generations."""
        num_events, num_train_events = self.events_of_items
        unknown = self.item_ids == 0
        job, chunks = self.job, self.job.inputs.chunks
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
        return profile.merged(result.profile for result in self.grouped)


def finish(given: Finishing) -> Manifest:
    """Write what is left to write into the work folder, and describe the whole dataset."""
    job = given.job
    items, item_fits, item_losses, repeated_items = _items(given)
    old = job.existing.manifest if job.existing else None
    parts = [result.part for result in given.grouped if result.part is not None]
    num_old_groups = len(old.group_rows) if old else 0
    counts = given.counts
    if repeated_items:
        rejected = counts.catalogue_rejected | {REPEATED_ITEM: repeated_items}
        counts = replace(counts, catalogue_rejected=dict(sorted(rejected.items())))
    return Manifest(
        fingerprint=job.request.fingerprint,
        source=_source(given),
        split=job.request.split_settings,
        counts=counts,
        vocabularies=_vocabularies(given),
        parts=(*(old.parts if old else ()), *numbered(parts, num_old_groups)),
        task=job.request.logs.task,
        labels=_labels(given),
        features=_features(given, item_fits, item_losses),
        items=items,
        sketches=_sketches(given),
        cuts=tuple(result.cuts for result in given.grouped if result.cuts is not None),
        ids_are_numbers=bool((given.item_ids == np.arange(1, given.item_ids.size + 1)).all()),
        profile=given.profile.as_values() | given.overlap_of_items,
        grown_from=(*old.grown_from, old.digest) if old else (),
    )


def _vocabularies(given: Finishing) -> dict[str, VocabularyFile]:
    job = given.job
    catalogue = given.ids[ITEMS].vocabulary

    def path(table: str) -> Any:
        return job.work / f"vocabulary-{job.generation:03d}-{table}.parquet"

    written = {ITEMS: write_catalogue(path(ITEMS), catalogue, given.item_ids, *given.events_of_items)}
    for table, values in sorted(known_tables(given.ids).items()):
        written[table] = write_vocabulary(path(table), pa.table({"value": values}))
    return written


def _sketches(given: Finishing) -> dict[str, StoredFile]:
    job = given.job
    return {
        table: write_sketch(job.work / f"sketch-{job.generation:03d}-{table}.parquet", distinct)
        for table, distinct in given.distinct.items()
    }


def _items(given: Finishing) -> tuple[StoredFile | None, dict[str, NumericFit], dict[str, Losses], int]:
    """Features of every number of the catalogue; missing where the files of items do not have it.

    Also what was fitted to them, what they lost, and how many rows repeated an item and were quarantined.
    """
    job, specs = given.job, given.given.plan.of("item")
    if "items" not in job.inputs.contracts:
        return None, {}, {}, 0
    table, kept, num_repeated = _rows_of_items(given)
    if not specs:
        return None, {}, {}, num_repeated
    values = whole(table.column("item")).take(kept)
    catalogue = given.ids[ITEMS].vocabulary
    assert catalogue is not None
    place_of_number = numbers_of(catalogue, values) - 1  # where each item of the catalogue is among the rows kept
    place = pa.array(np.append(-1, place_of_number))
    place = pc.if_else(pc.less(place, 0), pa.scalar(None, place.type), place)
    trained = np.append(False, given.uses_of_items[1] > 0)
    keys = np.append(np.zeros(1, np.uint64), hash_ids(catalogue))
    columns, fits, losses = {}, {}, {}
    for spec in specs:
        encoded = encode(spec, whole(table.column(spec.key)).take(kept).take(place), given.ids)
        columns[spec.key] = encoded.column
        losses[spec.key] = encoded.losses + Losses(num_missing=-1)  # number 0 is no item
        if isinstance(spec.config, NumericFeatureConfig):
            numbers = encoded.column.to_numpy(zero_copy_only=False)
            fits[spec.key] = NumericFit.of(spec.config, numbers[trained], keys[trained])
    path = job.work / f"items-{job.generation:03d}.parquet"
    return write_items(path, pa.table(columns)), fits, losses, num_repeated


def _rows_of_items(given: Finishing) -> tuple[pa.Table, pa.Array, int]:
    """All rows of the files of items, the places of those to be taken, and how many others were quarantined."""
    job = given.job
    batches, chunks = [], [np.zeros(0, np.int64)]
    for number in given.given.chunks:
        if job.inputs.chunks[number].source == "items":
            for batch in iterate_share(str(job.spill_file(number)), 0, 1):
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


def _features(
    given: Finishing, item_fits: dict[str, NumericFit], item_losses: dict[str, Losses]
) -> tuple[Feature, ...]:
    losses = _summed_losses(given.grouped) | item_losses
    old = {f.column: f for f in given.job.existing.manifest.features} if given.job.existing else {}
    features = []
    for spec in given.job.specs:
        feature = feature_of(spec, kind_of(spec, _stored_type(given.job, spec)), given.ids)
        lost = losses.get(spec.key, Losses())
        if spec.key in old:
            # What was fitted stays as it is: a trained model has learned what those numbers mean.
            before = old[spec.key]
            fitted = before.fitted
            if spec.owner != "item":
                lost += Losses(before.num_missing, before.num_unknown, before.num_cut)
        else:
            fitted = _fitted(spec, given.grouped, item_fits)
        feature = replace(with_fit(feature, fitted), **vars(lost), collisions=_collisions(given, spec))
        if spec.table == ITEMS:  # stored are numbers of the catalogue, but rows are those of ids
            feature = replace(feature, num_rows=given.counts.num_items + 1)
        features.append(feature)
    return tuple(features)


def _fitted(
    spec: FeatureSpec, grouped: Sequence[GroupResult], item_fits: dict[str, NumericFit]
) -> dict[str, Any] | None:
    if not isinstance(spec.config, NumericFeatureConfig):
        return None
    pieces = [result.fits[spec.key] for result in grouped if spec.key in result.fits]
    pieces += [item_fits[spec.key]] if spec.key in item_fits else []
    return NumericFit.merged(pieces).fitted(spec.config)


def _collisions(given: Finishing, spec: FeatureSpec) -> dict[str, Any] | None:
    if spec.table is None or spec.table not in given.distinct:
        return None
    return collisions(given.ids[spec.table], given.distinct[spec.table])


def _summed_losses(grouped: Sequence[GroupResult]) -> dict[str, Losses]:
    total: dict[str, Losses] = {}
    for result in grouped:
        for key, losses in result.losses.items():
            total[key] = total.get(key, Losses()) + losses
    return total


def _stored_type(job: PrepareJob, spec: FeatureSpec) -> pa.DataType:
    return job.inputs.contracts[SOURCES[spec.owner]].stored(spec.key)


def _labels(given: Finishing) -> dict[str, Any]:
    logs = given.job.request.logs
    if not logs.labels:
        return {}
    positives = {
        name: dict(zip(profile.SPLITS, n.tolist(), strict=True)) for name, n in given.profile.positives.items()
    }
    return {
        "names": list(logs.labels),
        "positives": positives,
        "outcomes": list(logs.outcomes),
        "negative_sampling_rate": logs.negative_sampling_rate,
    }


def _source(given: Finishing) -> dict[str, Any]:
    job = given.job
    files = job.request.described_files
    rows: Counter[tuple[str, str]] = Counter()
    hashes: dict[tuple[str, str], str] = {}
    for number, result in given.read.items():
        chunk = job.inputs.chunks[number]
        rows[(chunk.source, chunk.file.name)] += result.num_rows
        if result.sha256 is not None:
            hashes[(chunk.source, chunk.file.name)] = result.sha256
    old = {(f["source"], f["path"]): f for f in job.existing.manifest.source["files"]} if job.existing else {}
    read_now = {(source, file.name) for source, found in job.inputs.files.items() for file in found}
    for file in files:
        key = (file["source"], file["path"])
        if key in read_now:
            file |= {"rows": rows[key], "generation": job.generation}
            if key in hashes:
                file["sha256"] = hashes[key]
            if file["path"] in job.inputs.unreadable:
                file["unreadable"] = job.inputs.unreadable[file["path"]]
        else:
            file |= {
                name: old[key][name] for name in ("rows", "generation", "unreadable", "sha256") if name in old[key]
            }
    first, last = given.found.times or (None, None)
    if job.existing is not None:
        before = job.existing.manifest.source["time"]
        spans = [t for t in (first, last, before["first"], before["last"]) if t is not None]
        first, last = (min(spans), max(spans)) if spans else (None, None)
    return {
        "settings": job.request.settings,
        "files": files,
        "columns": {name: _columns(contract) for name, contract in job.inputs.contracts.items()},
        "contracts": {name: _packed(contract) for name, contract in job.inputs.contracts.items()},
        "time": {"kind": job.inputs.time_kind, "first": first, "last": last},
        "observed": observed_in(job, given.read),
        "partitioning": {
            "num_hashed": given.given.partitioning.num_hashed,
            "shares": list(given.given.partitioning.shares),
        },
        "item_collisions": _item_collisions(given),
    }


def _item_collisions(given: Finishing) -> dict[str, Any] | None:
    config = given.job.request.ids[ITEMS]
    catalogue = given.ids[ITEMS].vocabulary
    return item_collisions(catalogue, config) if isinstance(config, HashIdsConfig) and catalogue is not None else None


def _columns(contract: Contract) -> dict[str, dict[str, str]]:
    return {
        column.name: {"column": column.source, "type": str(found)}
        for column, found in zip(contract.columns, contract.types, strict=True)
    }


def _packed(contract: Contract) -> str:
    """The types of a contract, exactly: an append compares new files with them."""
    schema = pa.schema(zip((c.name for c in contract.columns), contract.types, strict=True))
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def contracts_of(manifest: Manifest, job_columns: Mapping[SourceName, Any]) -> dict[SourceName, Contract]:
    """The contracts that a dataset was made under."""
    contracts: dict[SourceName, Contract] = {}
    for name, columns in job_columns.items():
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(manifest.source["contracts"][name])))
        contracts[name] = Contract(columns, tuple(schema.field(column.name).type for column in columns))
    return contracts


def partitioning_of(manifest: Manifest) -> Partitioning:
    values = manifest.source["partitioning"]
    return Partitioning(values["num_hashed"], tuple(values["shares"]))
