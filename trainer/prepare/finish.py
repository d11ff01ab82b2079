"""After both passes: features of items, ids, counts, what was fitted, and the manifest that commits the dataset."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.config import HashIdsConfig
from trainer.dataset import profile
from trainer.dataset.features import Ids, NumericFit, encode, feature_of, kind_of, numbers_of, with_fit
from trainer.dataset.grouping import DUPLICATE, Ints
from trainer.dataset.hashing import hash_ids, whole
from trainer.dataset.manifest import Counts, Feature, Manifest, StoredFile, VocabularyFile
from trainer.dataset.partition import first_of_each, sum_counts
from trainer.dataset.profile import Profile
from trainer.dataset.writer import numbered, write_catalogue, write_items, write_vocabulary
from trainer.logs.config import FeatureSpec, NumericFeatureConfig
from trainer.logs.contract import Contract, SourceName
from trainer.prepare.group_pass import GroupResult
from trainer.prepare.read_pass import ITEMS, ReadResult, iterate_share
from trainer.prepare.vocabularies import Found, collisions, item_collisions, item_ids, known_tables
from trainer.prepare.work import GroupJob, Partitioning, PrepareJob

REPEATED_ITEM = "duplicate item"


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
        """(all, training) events of every number of the catalogue; (catalogue,) each."""
        catalogue = self.ids[ITEMS].vocabulary
        assert catalogue is not None
        num_events, num_train_events = np.zeros((2, len(catalogue) + 1), np.int64)
        for result in self.grouped:
            num_events[result.items.numbers] += result.items.num_events
            num_train_events[result.items.numbers] += result.items.num_train_events
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
        return item_ids(*self.events_of_items, self.job.request.ids[ITEMS], self.job.cuts, old)

    @cached_property
    def counts(self) -> Counts:
        """The sums of all partitions; rows read and rejected are those of all generations."""
        num_events, num_train_events = self.events_of_items
        unknown = self.item_ids == 0
        rejected = Counter[str]()
        for counted in [r.rejected for r in self.read.values()] + [r.rejected for r in self.grouped]:
            rejected += counted
        rows_read = sum(result.num_rows for result in self.read.values())
        if self.job.existing is not None:
            rows_read += self.job.existing.manifest.counts.rows_read
            rejected += Counter(self.job.existing.manifest.counts.rejected)
        return Counts(
            rows_read=rows_read,
            rejected=dict(sorted(rejected.items())),
            num_items=int(self.item_ids.max(initial=0)),
            unknown_items=int((num_events - num_train_events)[unknown].sum()),
            rare_items=int(num_train_events[unknown].sum()),
            **asdict(sum_counts(result.counts for result in self.grouped)),
        )

    @cached_property
    def profile(self) -> Profile:
        return profile.merged(result.profile for result in self.grouped)


def finish(given: Finishing) -> Manifest:
    """Write what is left to write into the work folder, and describe the whole dataset."""
    job = given.job
    items, item_fits, item_missing, repeated_items = _items(given)
    old = job.existing.manifest if job.existing else None
    parts = [result.part for result in given.grouped if result.part is not None]
    num_old_groups = len(old.group_rows) if old else 0
    counts = given.counts
    if repeated_items:
        counts = replace(counts, rejected=dict(sorted((counts.rejected | {REPEATED_ITEM: repeated_items}).items())))
    return Manifest(
        fingerprint=job.request.fingerprint,
        source=_source(given),
        split=job.request.split_settings,
        counts=counts,
        vocabularies=_vocabularies(given),
        parts=(*(old.parts if old else ()), *numbered(parts, num_old_groups)),
        task=job.request.logs.task,
        labels=_labels(given),
        features=_features(given, item_fits, item_missing),
        items=items,
        cuts=tuple(result.cuts for result in given.grouped if result.cuts is not None),
        ids_are_numbers=bool((given.item_ids == np.arange(1, given.item_ids.size + 1)).all()),
        profile=given.profile.as_values() | given.overlap_of_items,
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


def _items(given: Finishing) -> tuple[StoredFile | None, dict[str, NumericFit], dict[str, tuple[int, int]], int]:
    """Features of every number of the catalogue; missing where the files of items do not have it."""
    job, specs = given.job, given.given.plan.of("item")
    if "items" not in job.inputs.contracts or not specs:
        return None, {}, {}, 0
    batches = [
        batch
        for number in given.given.chunks
        if job.inputs.chunks[number].source == "items"
        for batch in iterate_share(str(job.spill_file(number)), 0, 1)
    ]
    table = pa.Table.from_batches(batches, job.inputs.contracts["items"].event_schema)
    kept, repeated = first_of_each(table.column("item"))
    values = whole(table.column("item")).take(kept)
    catalogue = given.ids[ITEMS].vocabulary
    assert catalogue is not None
    place_of_number = numbers_of(catalogue, values) - 1  # where each item of the catalogue is among the rows kept
    place = pa.array(np.append(-1, place_of_number))
    place = pc.if_else(pc.less(place, 0), pa.scalar(None, place.type), place)
    known = np.append(False, given.item_ids > 0)
    keys = np.append(np.zeros(1, np.uint64), hash_ids(catalogue))
    columns, fits, missing = {}, {}, {}
    for spec in specs:
        encoded = encode(spec, whole(table.column(spec.key)).take(kept).take(place), given.ids)
        columns[spec.key] = encoded.column
        missing[spec.key] = (encoded.num_missing - 1, encoded.num_unknown)  # number 0 is no item
        if isinstance(spec.config, NumericFeatureConfig):
            numbers = encoded.column.to_numpy(zero_copy_only=False)
            fits[spec.key] = NumericFit.of(spec.config, numbers[known], keys[known])
    path = job.work / f"items-{job.generation:03d}.parquet"
    return write_items(path, pa.table(columns)), fits, missing, int(repeated.size)


def _features(
    given: Finishing, item_fits: dict[str, NumericFit], item_missing: dict[str, tuple[int, int]]
) -> tuple[Feature, ...]:
    missing = _summed_missing(given.grouped) | item_missing
    old = {f.column: f for f in given.job.existing.manifest.features} if given.job.existing else {}
    features = []
    for spec in given.job.specs:
        feature = feature_of(spec, kind_of(spec, _stored_type(given.job, spec)), given.ids)
        num_missing, num_unknown = missing.get(spec.key, (0, 0))
        if spec.key in old:
            # What was fitted stays as it is: a trained model has learned what those numbers mean.
            fitted = old[spec.key].fitted
            if spec.owner != "item":
                num_missing, num_unknown = (
                    num_missing + old[spec.key].num_missing,
                    num_unknown + old[spec.key].num_unknown,
                )
        else:
            fitted = _fitted(spec, given.grouped, item_fits)
        feature = replace(with_fit(feature, fitted), num_missing=num_missing, num_unknown=num_unknown)
        features.append(replace(feature, collisions=_collisions(given, spec)))
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
    if spec.table is None or spec.table not in given.found.distinct:
        return None
    return collisions(given.ids[spec.table], given.found.distinct[spec.table])


def _summed_missing(grouped: Sequence[GroupResult]) -> dict[str, tuple[int, int]]:
    total: dict[str, tuple[int, int]] = {}
    for result in grouped:
        for key, (num_missing, num_unknown) in result.missing.items():
            before = total.get(key, (0, 0))
            total[key] = (before[0] + num_missing, before[1] + num_unknown)
    return total


def _stored_type(job: PrepareJob, spec: FeatureSpec) -> pa.DataType:
    source: dict[str, SourceName] = {"event": "logs", "item": "items", "user": "users"}
    return job.inputs.contracts[source[spec.owner]].stored(spec.key)


def _labels(given: Finishing) -> dict[str, Any]:
    logs = given.job.request.logs
    if not logs.labels:
        return {}
    positives = {
        name: dict(zip(profile.SPLITS, n.tolist(), strict=True)) for name, n in given.profile.positives.items()
    }
    if given.job.existing is not None:
        # The labels of old impressions are not read again: a new day's are test or validation of their own.
        before = given.job.existing.manifest.labels["positives"]
        positives = {n: {s: positives[n][s] + before[n][s] for s in profile.SPLITS} for n in positives}
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
    for number, result in given.read.items():
        chunk = job.inputs.chunks[number]
        rows[(chunk.source, chunk.file.name)] += result.num_rows
    old = {(f["source"], f["path"]): f for f in job.existing.manifest.source["files"]} if job.existing else {}
    for file in files:
        key = (file["source"], file["path"])
        earlier = old.get(key)
        if earlier is not None and key not in rows:
            file |= {"rows": earlier["rows"], "generation": earlier["generation"]}
        else:
            file |= {"rows": rows[key], "generation": job.generation}
        if file["path"] in job.inputs.unreadable:
            file["unreadable"] = job.inputs.unreadable[file["path"]]
        elif earlier is not None and "unreadable" in earlier:
            file["unreadable"] = earlier["unreadable"]
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


def num_bad(rejected: Counter[str]) -> int:
    """Rows that count against logs.max_rejected_fraction."""
    return rejected.total() - rejected[DUPLICATE]
