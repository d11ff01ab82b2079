"""Features of impressions that reveal a label: how well each one alone separates positives from negatives.

It reads a bounded sample of training impressions from the written parts. It detects mistakes of logging (a watch time
next to the label "clicked"), not what several features reveal together.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Feature, Manifest
from trainer.storage.parquet import open_parquet

MAX_IMPRESSIONS = 50_000
MAX_OF_GROUP = 5_000  # so that the sample of a large dataset has many users
MAX_GROUPS = 256  # most row groups that are read, even if they have few training impressions
MAX_COMPONENTS = 64  # of a vector
SEED = 0

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LeakyFeature:
    """Feature that may reveal a label: how well it alone ranks the positives of a label above its negatives, or below them."""

    # Name of the feature.
    feature: str
    # Name of the label.
    label: str
    # AUC; 0.5 is chance.
    auc: float


@dataclass(frozen=True)
class _Place:
    """A row group of the dataset."""

    # Its pieces by generation: part, and number of the row group in it.
    pieces: tuple[tuple[str, int], ...]
    # File with its cuts, and number of the row group in it.
    cuts: tuple[str, int]
    # Number of its first row in the partition.
    first_row: int
    # Its rows.
    num_rows: int


def leaky_features(folder: Path, manifest: Manifest, max_impressions: int = MAX_IMPRESSIONS) -> list[LeakyFeature]:
    """Return the AUC of each feature of impressions for each label of a ranking dataset, the highest first.

    Labels without positives or without negatives in the sample are skipped.
    """
    features = [feature for feature in manifest.features if feature.owner == "event"]
    labels = list(manifest.labels.get("names", ()))
    if not features or not labels:
        return []
    sample = training_sample(folder, manifest, features, labels, max_impressions)
    leaky = []
    for label in labels:
        positive = whole(sample.column(f"label.{label}")).to_numpy(zero_copy_only=False) > 0.0
        for feature in features:
            area = separation(feature.kind, whole(sample.column(f"impression.{feature.name}")), positive)
            if area is not None:
                leaky.append(LeakyFeature(feature.name, label, area))
    return sorted(leaky, key=lambda entry: (-entry.auc, entry.feature, entry.label))


def training_sample(
    folder: Path, manifest: Manifest, features: list[Feature], labels: list[str], max_impressions: int
) -> pa.Table:
    """Return training impressions of random row groups: their stored columns label.NAME and impression.NAME."""
    columns = [f"label.{name}" for name in labels] + [f"impression.{feature.name}" for feature in features]
    places = _places(manifest)
    taken: list[pa.Table] = []
    remaining = max_impressions
    for group in np.random.default_rng(SEED).permutation(len(places))[:MAX_GROUPS].tolist():
        table = _training_impressions(folder, places[group], columns)
        most = min(MAX_OF_GROUP, remaining)
        if table.num_rows > most:  # evenly spaced, so over all users of the group
            table = table.take(pa.array(np.arange(most) * table.num_rows // most))
        taken.append(table)
        remaining -= table.num_rows
        if not remaining:
            break
    return pa.concat_tables(taken)


def _places(manifest: Manifest) -> list[_Place]:
    """Return the row groups by number. Pieces and cuts of a partition's groups are stored in the order of the groups."""
    pieces: dict[int, list[tuple[str, int]]] = {}
    home: dict[int, int] = {}
    for part in manifest.parts:
        for number, piece in enumerate(part.row_groups):
            pieces.setdefault(piece.group, []).append((part.path, number))
            home[piece.group] = part.partition
    cuts = {file.partition: file.path for file in manifest.cuts}
    places: list[_Place] = []
    rows_before: dict[int, int] = {}
    groups_before: dict[int, int] = {}
    for group, num_rows in enumerate(manifest.group_rows):
        partition = home[group]
        number = groups_before.get(partition, 0)
        first_row = rows_before.get(partition, 0)
        own = (cuts[partition], number) if partition in cuts else pieces[group][0]
        places.append(_Place(tuple(pieces[group]), own, first_row, num_rows))
        rows_before[partition] = first_row + num_rows
        groups_before[partition] = number + 1
    return places


def _training_impressions(folder: Path, place: _Place, columns: list[str]) -> pa.Table:
    path, number = place.cuts
    train_end = _read(folder, path, number, ["train_end"]).column("train_end").to_numpy()
    seen = np.zeros(place.num_rows, np.int64)  # impressions of each row in older pieces
    tables = []
    for generation, (path, number) in enumerate(place.pieces):
        table = _read(folder, path, number, [*columns, *(["row"] if generation else [])])
        rows = table.column("row").to_numpy() - place.first_row if generation else np.arange(place.num_rows)
        offsets = whole(table.column(columns[0])).offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        place_in_row = np.arange(lengths.sum()) - np.repeat(offsets[:-1] - offsets[0], lengths)
        trains = place_in_row + np.repeat(seen[rows], lengths) < np.repeat(train_end[rows], lengths)
        flat = pa.table({name: whole(table.column(name)).flatten() for name in columns})
        tables.append(flat.filter(pa.array(trains)))
        seen[rows] += lengths
    return pa.concat_tables(tables)


def _read(folder: Path, path: str, number: int, columns: list[str]) -> pa.Table:
    with open_parquet(folder / path, page_checksum_verification=True) as file:
        return file.read_row_group(number, columns=columns)


# How well a column separates positives from negatives


def separation(kind: str, values: pa.Array, positive: Bools) -> float | None:
    """Return the AUC of the best single threshold rule on a stored column, 0.5 to 1; None without positives or negatives.

    Numbers are ranked by value, ascending or descending, with missing ones below all others. Ids are ranked by the mean
    label that their value has on the other half of the sample. Lists use the mean of that over their entries, vectors
    their best component.
    """
    if positive.all() or not positive.any():
        return None
    match kind:
        case "categorical":
            return _two_halves(values.to_numpy(zero_copy_only=False), np.arange(positive.size + 1), positive)
        case "categorical_list":
            offsets = values.offsets.to_numpy().astype(np.int64)
            return _two_halves(values.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0], positive)
        case "vector":
            width = values.type.list_size
            components = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[:, :MAX_COMPONENTS]
            return max(_either_way(component, positive) for component in components.T)
        case _:
            return _either_way(values.to_numpy(zero_copy_only=False), positive)


def auc(scores: npt.NDArray[np.generic], positive: Bools) -> float:
    """Return the share of (positive, negative) pairs in the right order; ties count half (Mann and Whitney 1947)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    num_positive = int(positive.sum())
    excess = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return excess / (num_positive * (positive.size - num_positive))


def _either_way(values: npt.NDArray[np.number], positive: Bools) -> float:
    numbers = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    area = auc(numbers, positive)
    return max(area, 1.0 - area)


def _two_halves(entries: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], positive: Bools) -> float | None:
    """Score each half by the mean labels of the other one, so that a value that occurs once has no influence."""
    half = np.random.default_rng(SEED).permutation(positive.size) % 2 == 0
    areas = [
        auc(_mean_labels(entries, offsets, positive, learned)[~learned], positive[~learned])
        for learned in (half, ~half)
        if 0 < positive[~learned].sum() < (~learned).sum()
    ]
    return float(np.mean(areas)) if areas else None


def _mean_labels(
    entries: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], positive: Bools, learned: Bools
) -> Floats:
    """Return for each impression (n,) the mean over its entries of the mean label of learned impressions with that entry."""
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(lengths.size), lengths)
    _, codes = np.unique(entries, return_inverse=True)
    size = int(codes.max(initial=0)) + 1
    known = learned[rows]
    num = np.bincount(codes[known], minlength=size)
    hits = np.bincount(codes[known], weights=positive[rows[known]], minlength=size)
    prior = float(positive[learned].mean())
    means = (hits + prior) / (num + 1)  # one average impression keeps rare values from 0 and 1
    sums = np.bincount(rows, weights=means[codes], minlength=lengths.size)
    empty = lengths == 0
    without = float(positive[learned & empty].mean()) if (learned & empty).any() else prior
    return np.where(empty, without, sums / np.maximum(lengths, 1))
