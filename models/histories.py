"""Histories by their lengths, and what a next-item model learns of them. Imports no torch."""

from dataclasses import dataclass

import numpy as np

from models.config import NextItemConfig
from models.encoders.config import EncoderConfig


@dataclass(frozen=True)
class Histories:
    """The number of histories of each length."""

    lengths: np.ndarray  # (n,) int64, 1 or more
    counts: np.ndarray  # (n,)

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Histories":
        """Count the lengths of all histories. Empty histories cost nothing and are left out."""
        return cls(*np.unique(lengths[lengths > 0], return_counts=True))

    @property
    def num_events(self) -> float:
        return float((self.lengths * self.counts).sum())

    @property
    def mean(self) -> float:
        """Return the mean number of events of the histories that are not empty, or 0 if all are."""
        return self.num_events / max(1.0, float(self.counts.sum()))


def newest(encoder: EncoderConfig, histories: Histories) -> Histories:
    """Return the events that are encoded to the end: all, or with truncation or token merge the newest ones."""
    if encoder.num_newest is None:
        return histories
    return Histories(np.minimum(histories.lengths, encoder.num_newest), histories.counts)


def merged(encoder: EncoderConfig, histories: Histories) -> Histories:
    """Return what the first block receives of the histories: all events, or with token merge the tokens."""
    if encoder.merge_size is None or encoder.merge_recent is None:
        return histories
    older = np.maximum(histories.lengths - encoder.merge_recent, 0)
    return Histories(histories.lengths - older - (-older // encoder.merge_size), histories.counts)


def expected_targets(model: NextItemConfig, histories: Histories) -> float:
    """Return the expected number of targets per event that all blocks encode.

    It is 1, or the share of masked events (trainer/data/stream/masking.py), of which every history has at least one.
    """
    if not model.masks_items:
        return 1.0
    masking = model.masking
    lengths = histories.lengths
    masked = lengths * masking.probability + (1.0 - masking.probability) ** lengths
    masked = (1.0 - masking.last_probability) * masked + masking.last_probability
    return float((masked * histories.counts).sum()) / histories.num_events


def later_shares(model: NextItemConfig, histories: Histories) -> list[float]:
    """Return for each later target the share of targets that an event that much earlier also predicts."""
    numbers = range(1, model.later_targets + 1)
    left = (float((np.maximum(0, histories.lengths - n) * histories.counts).sum()) for n in numbers)
    return [events / max(1.0, histories.num_events) for events in left]
