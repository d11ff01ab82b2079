"""Negatives: the ids that the targets of a step are compared with.

The invariant: a draw is a function of (seed, data position) and of the ids it is drawn from. These are the catalogue,
or the targets of the global batch. Of those the counts are known, but no order. So all ranks draw the same, for any
number of ranks. Only in-batch negatives are drawn from the share of one rank.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.batches.history_batch import FIRST_ITEM
from models.objectives.config import (
    CrossRankNegatives,
    InBatchNegatives,
    MixedNegatives,
    PopularityNegatives,
    SampledObjectiveConfig,
    UniformNegatives,
)
from sharding.dynamic_ids.id_counts import IdCounts
from trainer.data.stream.order import Position

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
NOTHING = np.zeros(0, dtype=np.int64)
PURPOSE = 2  # separates these random numbers from those of other uses


def needs_train_events(objective: object) -> bool:
    """Return whether draws depend on how often an item occurs in training."""
    return isinstance(objective, SampledObjectiveConfig) and isinstance(objective.negatives, PopularityNegatives)


def needs_target_counts(objective: object) -> bool:
    """Return whether the correction of draws depends on how often an item is a target in training."""
    if not isinstance(objective, SampledObjectiveConfig) or objective.logq != "counts":
        return False
    return isinstance(objective.negatives, InBatchNegatives | CrossRankNegatives | MixedNegatives)


@dataclass(frozen=True)
class NegativeDraws:
    """Draws of negatives."""

    # Settings of the objective.
    objective: SampledObjectiveConfig
    # Ids below it are items that the training part knows.
    num_known: int
    # Seed of the run.
    seed: int
    # (num_known,) int64 training events of every id, if `needs_train_events`.
    train_events: Int64 | None = None
    # (num_known,) in any unit: how often every id is a target, if `needs_target_counts`.
    target_counts: Int64 | None = None

    @property
    def from_global_batch(self) -> bool:
        """True if negatives are drawn from the targets of all ranks, after these have been exchanged."""
        return isinstance(self.objective.negatives, CrossRankNegatives | MixedNegatives)

    def ahead(self, position: Position, targets: np.ndarray, rank: int) -> Int64:
        """Draw negatives while a batch is read: (C,) ids, or none if they come from the global batch.

        Args:
            position: data position before the batch.
            targets: ids of this rank's share, including ids that are not learned.
            rank: number of this rank.
        """
        count = self.objective.num_negatives
        match self.objective.negatives:
            case UniformNegatives():
                return self._generator(position).integers(FIRST_ITEM, self.num_known, count)
            case PopularityNegatives():
                return self._places_in(self._cumulative_weights, self._generator(position).random(count))
            case InBatchNegatives():
                learned = targets[(targets >= FIRST_ITEM) & (targets < self.num_known)]
                places = self._generator(position, rank).integers(0, max(1, learned.size), count)
                return learned.astype(np.int64)[places] if learned.size else NOTHING
            case _:
                return NOTHING

    def from_targets(self, position: Position, targets: IdCounts) -> Int64:
        """Draw negatives from the targets of the global batch: (C,) ids, with the uniform draws of a mixture first.

        Without targets it returns none.
        """
        generator = self._generator(position)
        total = int(targets.counts.sum())
        if not total:
            return NOTHING
        uniform = generator.integers(FIRST_ITEM, self.num_known, self._num_uniform)
        places = generator.integers(0, total, self.objective.num_negatives - uniform.size)
        of_targets = targets.ids[np.searchsorted(np.cumsum(targets.counts), places, side="right")]
        return np.concatenate((uniform, of_targets))

    def log_q(self, ids: Int64, shares: Float64 | None = None) -> Float64:
        """Return the log probability that a single draw gives each of the ids (known ones).

        Args:
            ids: the ids.
            shares: the share of all targets of each id; by default that of target_counts.
        """
        num_items = self.num_known - FIRST_ITEM
        match self.objective.negatives:
            case UniformNegatives():
                return np.full(ids.size, -np.log(num_items))
            case PopularityNegatives():
                probability: Float64 = self._weights[ids] / self._cumulative_weights[-1]
            case _:
                share = self._share_of_targets[ids] if shares is None else shares
                uniform_share = self._num_uniform / self.objective.num_negatives
                probability = uniform_share / num_items + (1.0 - uniform_share) * share
        return np.log(probability)

    @property
    def _num_uniform(self) -> int:
        negatives = self.objective.negatives
        if not isinstance(negatives, MixedNegatives):
            return 0
        return round(negatives.uniform_share * self.objective.num_negatives)

    @cached_property
    def _weights(self) -> Float64:
        """Weight of every id in a draw by popularity; 0 for the unknown item."""
        negatives = self.objective.negatives
        assert self.train_events is not None
        assert isinstance(negatives, PopularityNegatives)
        weights = self.train_events.astype(np.float64) ** negatives.power
        weights[:FIRST_ITEM] = 0.0
        return weights

    @cached_property
    def _cumulative_weights(self) -> Float64:
        return np.cumsum(self._weights)

    @cached_property
    def _share_of_targets(self) -> Float64:
        assert self.target_counts is not None
        share: Float64 = self.target_counts / self.target_counts.sum()
        return share

    def _places_in(self, cumulative: Float64, uniform: Float64) -> Int64:
        places: Int64 = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        return np.minimum(places, self.num_known - 1)  # a product may round up to the last sum

    def _generator(self, position: Position, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, position.epoch, PURPOSE, position.trained, *more])
