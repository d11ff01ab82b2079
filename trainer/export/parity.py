"""Differences between an export and the trained model, measured on users of the dataset when the export is made.

The users are those of the first row groups. Users are stored by hash, so that these are a random sample. A next-item model is
asked for the last event of each user from the events before it. A ranker scores all impressions of each.

Shapes: B users, K items of a list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.packed import PackedHistories, joined
from trainer.data.stream.row_groups import RowGroupReader
from trainer.export.search import Vectors, best_items
from trainer.inference.trained_model import TrainedModel

TOP = 10
LARGEST_CHANGE = 0.005  # of a metric with int8, relative
LEAST_OVERLAP = 0.95  # of int8
LARGEST_DIFFERENCE = 1e-5  # of float32, relative to the largest score


@dataclass(frozen=True)
class Sample:
    """Users on which an export is compared with its model."""

    packed: PackedHistories
    """Their histories, with all impressions in a dataset for ranking."""
    rows: np.ndarray
    """(B,) the rows among the packed ones."""


def sample_users(trained: TrainedModel, num_users: int) -> Sample:
    """Read users with at least one event before the last one, or at least one impression."""
    selection = columns_for(trained.catalogue)
    is_ranker = trained.manifest.task == "ranking"
    if is_ranker:
        selection = replace(selection, impressions=True)
    reader = RowGroupReader(trained.job.dataset_dir, trained.manifest, selection)
    pieces: list[PackedHistories] = []
    count = 0
    for group in range(len(reader.group_rows)):
        pieces.append(reader.read([group])[group])
        count += int(_is_usable(pieces[-1]).sum())
        if count >= num_users:
            break
    packed = joined(pieces)
    return Sample(packed, np.flatnonzero(_is_usable(packed))[:num_users])


def _is_usable(packed: PackedHistories) -> np.ndarray:
    if packed.impressions is not None:
        return np.asarray(packed.impressions.ends > packed.impressions.starts)
    return np.asarray(packed.ends - packed.starts > 1)


def last_events(sample: Sample) -> np.ndarray:
    """Return the item of the last event of each user, (B,) int64."""
    last = sample.packed.ends[sample.rows] - 1
    return sample.packed.items.take(last).astype(np.int64)  # type: ignore[no-any-return]


def compare_recommendations(
    sample: Sample, users: Tensor, items: Vectors, exported_users: Tensor, exported_items: Vectors
) -> dict[str, Any]:
    """Return the differences of an export of a next-item model.

    Args:
        sample: the users.
        users: their vectors by the trained model, (B, D).
        items: the vectors of items by the trained model.
        exported_users: by the export.
        exported_items: by the export.
    """
    targets = last_events(sample)
    ids, scores = best_items(users, items, TOP)
    exported_ids, _ = best_items(exported_users, exported_items, TOP)
    # The same items by both, so that no difference of lists hides a difference of scores.
    index = np.maximum(ids - 1, 0)
    pairs = (exported_users[:, None] * exported_items.rows(index.reshape(-1)).view(*index.shape, -1)).sum(dim=2)
    differences = np.abs(pairs.numpy() - scores)[ids > 0]
    largest = float(np.abs(scores[ids > 0]).max(initial=0.0))
    overlap = [len(set(a) & set(b) - {0}) / max(1, len(set(a) - {0})) for a, b in zip(ids, exported_ids, strict=True)]
    ndcg, exported_ndcg = (_ndcg(lists, targets) for lists in (ids, exported_ids))
    return {
        "num_users": int(sample.rows.size),
        "largest_score_difference": float(differences.max(initial=0.0)),
        "largest_relative_difference": float(differences.max(initial=0.0)) / largest if largest else 0.0,
        f"top_{TOP}_overlap": float(np.mean(overlap)) if overlap else 1.0,
        f"same_top_{TOP}": float((ids == exported_ids).all(axis=1).mean()) if overlap else 1.0,
        f"ndcg@{TOP}": ndcg,
        f"exported_ndcg@{TOP}": exported_ndcg,
    }


def _ndcg(lists: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean of 1 / log2(1 + place) of the targets in their lists, 0 for those that are not in them."""
    user, place = np.nonzero((lists == targets[:, None]) & (lists > 0))
    del user
    return float((1.0 / np.log2(place + 2.0)).sum() / max(1, targets.size))


def index_recall(
    users: Tensor, items: Vectors, search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Return the share of the best K items that an index finds, by K."""
    recalls = {}
    for k in (TOP, 10 * TOP):
        k = min(k, items.num_items)
        exact, _ = best_items(users, items, k)
        approximate, _ = search(users.numpy(), k)
        recalls[f"recall@{k}"] = float(
            np.mean([np.isin(a[a > 0], b).mean() for a, b in zip(exact, approximate, strict=True)])
        )
    return recalls


def compare_logits(
    sample: Sample, labels: tuple[str, ...], logits: Tensor, exported: Tensor, places: np.ndarray
) -> dict[str, Any]:
    """Return the differences of an export of a ranker.

    Args:
        sample: the users.
        labels: in the order of the columns of logits.
        logits: by the trained model, (M, T).
        exported: by the export.
        places: of the M impressions among all packed ones.
    """
    shown = sample.packed.impressions
    assert shown is not None
    largest = float(logits.abs().max()) if logits.numel() else 0.0
    difference = float((logits - exported).abs().max()) if logits.numel() else 0.0
    values: dict[str, Any] = {
        "num_users": int(sample.rows.size),
        "num_impressions": int(places.size),
        "largest_logit_difference": difference,
        "largest_relative_difference": difference / largest if largest else 0.0,
        "largest_probability_difference": float((logits.sigmoid() - exported.sigmoid()).abs().max()),
    }
    for column, label in enumerate(labels):
        positive = shown.labels[label][places] > 0
        before, after = (_auc(scores[:, column].numpy(), positive) for scores in (logits, exported))
        values |= {f"auc.{label}": before, f"exported_auc.{label}": after}
    return values


def _auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve, where equal scores count half; None without both outcomes."""
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if not num_positive or not num_negative:
        return None
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    place = np.cumsum(counts) - (counts - 1) / 2.0  # mean place of equal scores, from 1
    above = place[index][positive].sum() - num_positive * (num_positive + 1) / 2.0
    return float(above / (num_positive * num_negative))


def misses(parity: Mapping[str, Any], precision: str) -> list[str]:
    """Return which targets the measured differences miss, in words."""
    if precision == "float32":
        difference = parity["largest_relative_difference"]
        if difference <= LARGEST_DIFFERENCE:
            return []
        return [f"scores differ by up to {difference:.1e} of the largest, more than {LARGEST_DIFFERENCE:.0e}"]
    missed = []
    overlap = parity.get(f"top_{TOP}_overlap", 1.0)
    if overlap < LEAST_OVERLAP:
        missed.append(f"only {overlap:.1%} of the top {TOP} are the same, less than {LEAST_OVERLAP:.0%}")
    for name, change in _changes(parity).items():
        if abs(change) > LARGEST_CHANGE:
            missed.append(f"{name} changes by {change:+.2%}, more than {LARGEST_CHANGE:.1%}")
    return missed


def _changes(parity: Mapping[str, Any]) -> dict[str, float]:
    """Return the relative change of each metric."""
    exported = {name: parity.get(f"exported_{name}") for name in parity}
    return {name: value / parity[name] - 1.0 for name, value in exported.items() if value is not None and parity[name]}
