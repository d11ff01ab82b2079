"""Scores of a ranker in one process: of impressions, and of the same candidates for many users."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.ranking.reach import reach_of
from trainer.data.stream.columns import Column, take_all
from trainer.data.stream.impressions import gather_impressions, ranking_batch
from trainer.data.stream.packed import PackedHistories, PackedImpressions
from trainer.inference.requests import Histories
from trainer.inference.trained_model import TrainedModel

BATCH_ENTRIES = 16_384  # events and impressions that are scored at a time


@dataclass(frozen=True)
class RankedCandidates:
    """Items that a ranker scores for every user, with the features of their impressions."""

    ids: np.ndarray
    """(C,) int64, ascending."""
    features: Mapping[str, Column]
    """By name: an entry per candidate."""

    def part(self, first: int, stop: int) -> "RankedCandidates":
        """Return the candidates first .. stop - 1, at least one; the last ones are repeated where there are fewer."""
        places = np.minimum(np.arange(first, stop), self.ids.size - 1)
        return RankedCandidates(self.ids[places], take_all(self.features, places))


def probabilities(trained: TrainedModel, packed: PackedHistories) -> dict[str, np.ndarray]:
    """Return the probability of each label for each packed impression, (M,) float32 by label.

    packed: histories with impressions, as HistoryEncoder.with_impressions returns them.
    """
    shown = packed.impressions
    assert shown is not None
    reach = reach_of(trained.model.config)
    counts = shown.ends - shown.starts
    logits = np.zeros((shown.items.size, len(trained.model.labels)), np.float32)
    # Many impressions of a user are scored in several pieces, (row, low, high).
    pieces = -(-counts // BATCH_ENTRIES)
    rows = np.repeat(np.arange(counts.size), pieces)
    low = (np.arange(rows.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * BATCH_ENTRIES
    high = np.minimum(low + BATCH_ENTRIES, counts[rows])
    events = np.minimum(packed.ends - packed.starts - 1, reach.receptive)
    number = np.cumsum(events[rows] + high - low) // BATCH_ENTRIES
    with torch.no_grad():
        for part in np.split(np.arange(rows.size), np.flatnonzero(np.diff(number)) + 1) if rows.size else []:
            of_rows, first, last = rows[part], low[part], high[part]
            gathered = gather_impressions(packed, of_rows, first, last, of_rows, reach)
            batch = ranking_batch(gathered, trained.catalogue, reach)
            batch = replace(batch, items=trained.dynamic.rows_of(batch.items))
            places = gathered.candidates.place + np.repeat(shown.starts[of_rows], last - first)
            logits[places] = trained.model.logits(trained.look_up(batch.items), batch).numpy()
    values = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return {label: values[:, place] for place, label in enumerate(trained.model.labels)}


def with_candidates(
    packed: PackedHistories, lengths: np.ndarray, at: np.ndarray, candidates: RankedCandidates, labels: tuple[str, ...]
) -> PackedHistories:
    """Return histories with one impression of each candidate, in the order of the candidates.

    Args:
        packed: histories with times, of B users.
        lengths: (B,) number of events of each history.
        at: (B,) times of the impressions. They are scored from the events strictly before.
        candidates: the items.
        labels: the labels of the dataset.
    """
    assert packed.times is not None
    owner = np.repeat(np.arange(lengths.size), lengths)
    place = np.repeat(packed.starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(owner.size)
    before = np.bincount(owner[packed.times[place] < at[owner]], minlength=lengths.size)
    number, size = lengths.size, candidates.ids.size
    starts = np.arange(number, dtype=np.int64) * size
    shown = PackedImpressions(
        items=np.tile(candidates.ids.astype(np.int32), number),
        times=np.repeat(at, size),
        history_end=np.repeat(before.astype(np.int64), size),
        labels={name: np.zeros(number * size, np.float32) for name in labels},
        features=take_all(candidates.features, np.tile(np.arange(size), number)),
        starts=starts,
        ends=starts + size,
    )
    return replace(packed, impressions=shown)


def candidate_scores(
    trained: TrainedModel, histories: Histories, at: np.ndarray, candidates: RankedCandidates, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted sum of the labels' probabilities for each user and candidate, (B, C) float32.

    Args:
        trained: the model.
        histories: of the B users.
        at: (B,) times at which the candidates are shown.
        candidates: the items.
        weights: (labels,) of the labels.
    """
    names = tuple(trained.manifest.labels["names"])
    packed = with_candidates(histories.packed, histories.lengths, at, candidates, names)
    values = probabilities(trained, packed)
    stacked = np.stack([values[label] for label in trained.model.labels], axis=1)
    scores: np.ndarray = (stacked @ weights.astype(np.float32)).reshape(len(at), candidates.ids.size)
    return scores


def best_candidates(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (B, K) and scores (B, K) of the best candidates, equal scores by id; id 0 where nothing is left.

    Args:
        scores: (B, C); minus infinity for a candidate that is left out.
        ids: (C,) of the candidates, ascending.
        k: the number of items.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isneginf(best), 0, ids[order]), best


def leave_out_viewed(scores: np.ndarray, histories: Histories, ids: np.ndarray) -> None:
    """Set the scores (B, C) of candidates `ids`, ascending, that are in the user's history to minus infinity."""
    seen, offsets = histories.seen()
    owner = np.repeat(np.arange(scores.shape[0]), np.diff(offsets))
    place = np.minimum(np.searchsorted(ids, seen), ids.size - 1)
    viewed = ids[place] == seen
    scores[owner[viewed], place[viewed]] = -np.inf
