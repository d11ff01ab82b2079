"""The end of prepare: writes the files that cover all partitions, and the manifest's description of the dataset."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.dataset.features import Losses, NumericFit, feature_of, kind_of, with_fit
from trainer.data.dataset.manifest import Feature, Manifest, StoredFile, VocabularyFile
from trainer.data.dataset.profile import SPLITS
from trainer.data.dataset.writer import numbered, write_catalogue, write_sketch, write_vocabulary
from trainer.data.logs.columns import SOURCES
from trainer.data.logs.config import FeatureSpec, NumericFeatureConfig
from trainer.data.prepare.derived import derived_counts
from trainer.data.prepare.group_pass import GroupResult
from trainer.data.prepare.items import ItemFeatures, write_item_features
from trainer.data.prepare.read_pass import ITEMS
from trainer.data.prepare.rejections import REPEATED_ITEM
from trainer.data.prepare.source import source_of
from trainer.data.prepare.totals import Totals
from trainer.data.prepare.vocabularies import collisions, known_tables
from trainer.data.prepare.work import PrepareJob

_BLOCK = 1 << 20  # items with numbers in memory at a time


def finish(totals: Totals) -> Manifest:
    """Write the remaining files into the work folder, and return the manifest of the whole dataset."""
    job = totals.job
    items = write_item_features(totals)
    old = job.existing.manifest if job.existing else None
    parts = [result.part for result in totals.grouped if result.part is not None]
    num_old_groups = len(old.group_rows) if old else 0
    counts = totals.counts
    if items.num_repeated:
        rejected = counts.catalogue_rejected | {REPEATED_ITEM: items.num_repeated}
        counts = replace(counts, catalogue_rejected=dict(sorted(rejected.items())))
    return Manifest(
        fingerprint=job.request.fingerprint,
        source=source_of(totals),
        split=job.request.split_settings,
        counts=counts,
        vocabularies=_vocabularies(totals),
        parts=(*(old.parts if old else ()), *numbered(parts, num_old_groups)),
        task=job.request.logs.task,
        labels=_labels(totals),
        features=_features(totals, items),
        items=items.file,
        sketches=_sketches(totals),
        cuts=tuple(result.cuts for result in totals.grouped if result.cuts is not None),
        ids_are_numbers=_are_numbers(totals.item_ids),
        profile=totals.profile.as_values() | totals.overlap_of_items,
        grown_from=_lineage(job),
        derived=derived_counts(totals) if job.is_derived else {},
    )


def _are_numbers(ids: npt.NDArray[np.int32]) -> bool:
    """Return whether each item has its number as id."""
    differences = (
        ids[first : first + _BLOCK] - np.arange(first, min(first + _BLOCK, ids.size))
        for first in range(0, ids.size, _BLOCK)
    )
    return all(bool((block == 1).all()) for block in differences)


def _lineage(job: PrepareJob) -> tuple[str, ...]:
    """Return the digests of the datasets that this one contains or is derived from, the oldest first."""
    if job.existing is None:
        return ()
    old = job.existing.manifest
    return (*old.grown_from, old.digest if job.request.derived is None else job.request.derived["base"])


def _vocabularies(totals: Totals) -> dict[str, VocabularyFile]:
    """Write the catalogue and the vocabularies of all tables."""
    job = totals.job
    catalogue = totals.ids[ITEMS].vocabulary

    def path(table: str) -> Path:
        return job.output / f"vocabulary-{job.generation:03d}-{table}.parquet"

    written = {ITEMS: write_catalogue(path(ITEMS), catalogue, totals.item_ids, *totals.events_of_items)}
    for table, values in sorted(known_tables(totals.ids).items()):
        written[table] = write_vocabulary(path(table), pa.table({"value": values}))
    return written


def _sketches(totals: Totals) -> dict[str, StoredFile]:
    """Write the sketches of tables without a vocabulary."""
    job = totals.job
    return {
        table: write_sketch(job.output / f"sketch-{job.generation:03d}-{table}.parquet", distinct)
        for table, distinct in totals.distinct.items()
    }


def _features(totals: Totals, items: ItemFeatures) -> tuple[Feature, ...]:
    """Return the manifest's entry of every feature."""
    losses = _summed_losses(totals.grouped) | items.losses
    old = {f.column: f for f in totals.job.existing.manifest.features} if totals.job.existing else {}
    features = []
    for spec in totals.job.specs:
        feature = feature_of(spec, kind_of(spec, _stored_type(totals.job, spec)), totals.ids)
        lost = losses.get(spec.key, Losses())
        if spec.key in old:
            # The fit is kept: a trained model depends on these numbers.
            before = old[spec.key]
            fitted = before.fitted
            if spec.owner != "item":
                lost += Losses(before.num_missing, before.num_unknown, before.num_cut)
        else:
            fitted = _fitted(spec, totals.grouped, items.fits)
        feature = replace(with_fit(feature, fitted), **vars(lost), collisions=_collisions(totals, spec))
        if spec.table == ITEMS:  # values are stored as numbers of the catalogue, but the table has a row per id
            feature = replace(feature, num_rows=totals.counts.num_items + 1)
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


def _collisions(totals: Totals, spec: FeatureSpec) -> dict[str, Any] | None:
    if spec.table is None or spec.table not in totals.distinct:
        return None
    return collisions(totals.ids[spec.table], totals.distinct[spec.table])


def _summed_losses(grouped: Sequence[GroupResult]) -> dict[str, Losses]:
    total: dict[str, Losses] = {}
    for result in grouped:
        for key, losses in result.losses.items():
            total[key] = total.get(key, Losses()) + losses
    return total


def _stored_type(job: PrepareJob, spec: FeatureSpec) -> pa.DataType:
    return job.inputs.contracts[SOURCES[spec.owner]].stored(spec.key)


def _labels(totals: Totals) -> dict[str, Any]:
    logs = totals.job.request.logs
    if not logs.labels:
        return {}
    positives = {name: dict(zip(SPLITS, n.tolist(), strict=True)) for name, n in totals.profile.positives.items()}
    return {
        "names": list(logs.labels),
        "positives": positives,
        "outcomes": list(logs.outcomes),
        "negative_sampling_rate": logs.negative_sampling_rate,
    }
