"""Comparison of how two datasets encode values: a model trained on one can be evaluated on the other only if they agree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainer.data.dataset.manifest import Feature, Manifest
from trainer.data.dataset.vocabulary import read_values, read_vocabulary


def encoding_differences(folder: Path, manifest: Manifest, other_folder: Path, other: Manifest) -> list[str]:
    """Return every difference in ids, features, fits and labels, one line each; nothing if a model can read both.

    Args:
        folder: the dataset of the model.
        manifest: its manifest.
        other_folder: the other dataset.
        other: its manifest.
    """
    if manifest.task != other.task:
        return [f"task: was {manifest.task!r}, is {other.task!r}"]
    return [
        *_differences_of_features(manifest, other),
        *_differences_of_labels(manifest, other),
        *_differences_of_tables(folder, manifest, other_folder, other),
        *_differences_of_time(manifest, other),
    ]


def _differences_of_features(manifest: Manifest, other: Manifest) -> Iterator[str]:
    before, now = ({f.column: f for f in m.features} for m in (manifest, other))
    for column in sorted(before.keys() | now.keys()):
        if column not in now or column not in before:
            yield f"feature {column}: {'was' if column in before else 'is'} in only one of them"
            continue
        for name in ("kind", "table", "num_rows", "dim", "fitted"):
            old, new = _value(before[column], name), _value(now[column], name)
            if old != new:
                yield f"feature {column}: {name.replace('_', ' ')} was {old}, is {new}"


def _value(feature: Feature, name: str) -> Any:
    """Return a property of a feature. Rows of the item table are compared with the items themselves."""
    return None if name == "num_rows" and feature.table == "item" else getattr(feature, name)


def _differences_of_labels(manifest: Manifest, other: Manifest) -> Iterator[str]:
    before, now = manifest.labels.get("names", []), other.labels.get("names", [])
    if before != now:
        yield f"labels: were {before}, are {now}"


def _differences_of_tables(folder: Path, manifest: Manifest, other_folder: Path, other: Manifest) -> Iterator[str]:
    values = read_vocabulary(folder, manifest).values, read_vocabulary(other_folder, other).values
    yield from _difference_of("item", *values)
    for table in sorted((manifest.vocabularies.keys() & other.vocabularies.keys()) - {"item"}):
        yield from _difference_of(table, read_values(folder, manifest, table), read_values(other_folder, other, table))
    before, now = (m.source.get("settings", {}).get("tables", {}) for m in (manifest, other))
    for table in sorted(before.keys() & now.keys()):
        ids = before[table]["ids"], now[table]["ids"]
        # Two vocabularies have just been compared, value by value.
        if ids[0] != ids[1] and {"vocabulary"} != {ids[0]["kind"], ids[1]["kind"]}:
            yield f"table {table}: ids were {ids[0]}, are {ids[1]}"


def _difference_of(table: str, before: pa.Array, now: pa.Array) -> Iterator[str]:
    """Yield how the values of a table's rows differ, with the first row that does."""
    if before.equals(now):
        return
    if before.type != now.type:
        yield f"table {table}: values were {before.type}, are {now.type}"
        return
    shorter = min(len(before), len(now))
    same = before.slice(0, shorter).to_numpy(zero_copy_only=False) == now.slice(0, shorter).to_numpy(
        zero_copy_only=False
    )
    first = shorter if bool(same.all()) else int(same.argmin())
    old, new = (values[first].as_py() if first < len(values) else "nothing" for values in (before, now))
    yield f"table {table}: had {len(before):,} values, has {len(now):,}; id {first + 1} was {old}, is {new}"


def _differences_of_time(manifest: Manifest, other: Manifest) -> Iterator[str]:
    before, now = (m.source.get("time", {}).get("kind") for m in (manifest, other))
    if before != now:
        yield f"times: were of kind {before}, are {now}"
