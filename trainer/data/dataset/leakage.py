"""Which features of impressions give a label away: how well each one alone tells positives from negatives.

Looks at a bounded sample of training impressions, read from the written parts. It finds what a mistake of logging leaves (a
watch time beside the label "clicked"), not what several features tell together.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.dataset.hashing import whole
from trainer.data.dataset.manifest import Feature, Manifest

MAX_IMPRESSIONS = 50_000
MAX_OF_GROUP = 5_000  # so that a sample of a large dataset comes from many users
MAX_GROUPS = 256  # row groups that are read, however few training impressions they have
MAX_COMPONENTS = 64  # of a vector
SEED = 0

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Giveaway:
    """How well one feature alone ranks the positives of a label above its negatives, or below them: 0.5 is chance."""

    feature: str
    label: str
    auc: float


@dataclass(frozen=True)
class _Place:
    """A row group of the dataset: its pieces (part, number in it) by generation, and where its cuts are."""

    pieces: tuple[tuple[str, int], ...]
    cuts: tuple[str, int]
    first_row: int  # of the partition
    num_rows: int


def leaky_features(folder: Path, manifest: Manifest, max_impressions: int = MAX_IMPRESSIONS) -> list[Giveaway]:
    """For each feature of impressions and each label of a ranking dataset, the feature's own AUC; the highest first.

    Labels without positives or without negatives in the sample have none.
    """
    features = [feature for feature in manifest.features if feature.owner == "event"]
    labels = list(manifest.labels.get("names", ()))
    if not features or not labels:
        return []
    sample = training_sample(folder, manifest, features, labels, max_impressions)
    found = []
    for label in labels:
        positive = whole(sample.column(f"label.{label}")).to_numpy(zero_copy_only=False) > 0.0
        for feature in features:
            area = separation(feature.kind, whole(sample.column(f"impression.{feature.name}")), positive)
            if area is not None:
                found.append(Giveaway(feature.name, label, area))
    return sorted(found, key=lambda giveaway: (-giveaway.auc, giveaway.feature, giveaway.label))


def training_sample(
    folder: Path, manifest: Manifest, features: list[Feature], labels: list[str], max_impressions: int
) -> pa.Table:
    """Training impressions of row groups in random order: their columns label.NAME and impression.NAME as they are stored."""
    columns = [f"label.{name}" for name in labels] + [f"impression.{feature.name}" for feature in features]
    places = _places(manifest)
    taken: list[pa.Table] = []
    wanted = max_impressions
    for group in np.random.default_rng(SEED).permutation(len(places))[:MAX_GROUPS].tolist():
        table = _training_impressions(folder, places[group], columns)
        most = min(MAX_OF_GROUP, wanted)
        if table.num_rows > most:  # evenly spaced, so over all users of the group
            table = table.take(pa.array(np.arange(most) * table.num_rows // most))
        taken.append(table)
        wanted -= table.num_rows
        if not wanted:
            break
    return pa.concat_tables(taken)


def _places(manifest: Manifest) -> list[_Place]:
    """By number of the row group. Pieces of a partition's groups lie in the order of the groups, and so do its cuts."""
    pieces: dict[int, list[tuple[str, int]]] = {}
    home: dict[int, int] = {}
    for part in manifest.parts:
        for number, piece in enumerate(part.row_groups):
            pieces.setdefault(piece.group, []).append((part.path, number))
            home[piece.group] = part.partition
    cuts = {file.partition: file.path for file in manifest.cuts}
    places, rows_before, groups_before = [], dict[int, int](), dict[int, int]()
    for group, num_rows in enumerate(manifest.group_rows):
        partition = home[group]
        number, first_row = groups_before.get(partition, 0), rows_before.get(partition, 0)
        own = (cuts[partition], number) if partition in cuts else pieces[group][0]
        places.append(_Place(tuple(pieces[group]), own, first_row, num_rows))
        rows_before[partition], groups_before[partition] = first_row + num_rows, number + 1
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
    with pq.ParquetFile(folder / path, page_checksum_verification=True) as file:
        return file.read_row_group(number, columns=columns)


# How well a column tells positives from negatives


def separation(kind: str, values: pa.Array, positive: Bools) -> float | None:
    """AUC of the best single threshold rule on a stored column, 0.5 to 1; None without positives or negatives.

    Numbers rank by their value, up or down, with missing ones below all others; ids by the mean label that their value has
    on the other half of the sample; lists by the mean of that over their entries; vectors by their best component.
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
    """The share of (positive, negative) pairs that the scores order rightly, ties counting half (Mann and Whitney 1947)."""
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
    """Each half is scored by what the other says of its values, so that a value that occurs once says nothing."""
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
    """(n,) the mean over an impression's entries of the label's mean among learned impressions with the same entry."""
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(lengths.size), lengths)
    _, codes = np.unique(entries, return_inverse=True)
    size = int(codes.max(initial=0)) + 1
    known = learned[rows]
    num = np.bincount(codes[known], minlength=size)
    hits = np.bincount(codes[known], weights=positive[rows[known]], minlength=size)
    prior = float(positive[learned].mean())
    means = (hits + prior) / (num + 1)  # one impression of the average kind keeps rare values from the ends
    sums = np.bincount(rows, weights=means[codes], minlength=lengths.size)
    empty = lengths == 0
    without = float(positive[learned & empty].mean()) if (learned & empty).any() else prior
    return np.where(empty, without, sums / np.maximum(lengths, 1))
