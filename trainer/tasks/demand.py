"""Protocol of what a training step of a task looks up, from which the planner derives the loads of tables. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import expm1
from typing import Protocol

from trainer.config.train import TrainConfig


@dataclass(frozen=True)
class DatasetFacts:
    """Numbers of a dataset that determine the loads of tables."""

    num_items: int
    """Ids of items that the training part contains."""
    mean_events: float
    """Events of a user's history in the training part."""
    num_features: Mapping[str, int] = field(default_factory=dict)
    """By table, how many features of items look it up."""
    num_event_features: Mapping[str, int] = field(default_factory=dict)
    """By table, how many features of events look it up."""
    num_user_features: Mapping[str, int] = field(default_factory=dict)
    """By table, how many features of users look it up."""
    num_candidate_features: Mapping[str, int] = field(default_factory=dict)
    """By table, how many features of impressions look it up."""
    mean_candidates: float = 0.0
    """Training impressions of a user; 0 without impressions."""


@dataclass(frozen=True)
class StepDemand:
    """Mean look-ups of one rank in a training step."""

    histories: float
    """Histories in its share of the global batch."""
    inputs: float
    """Input events of these histories."""
    candidates: float
    """Impressions of these histories; 0 without impressions."""
    items: float
    """Distinct items, of histories, candidates and negatives together."""


class Demand(Protocol):
    """The look-ups of a model of one task."""

    @property
    def looks_up_all_items(self) -> bool:
        """True if every rank looks up the whole catalogue in every step."""

    @property
    def assumed_history(self) -> str:
        """The assumption about the length of histories where there is no dataset, as a sentence."""

    def of_step(self, train: TrainConfig, num_workers: int, num_items: int, facts: DatasetFacts | None) -> StepDemand:
        """Return the demand of a step.

        Args:
            train: The settings of training.
            num_workers: The world size.
            num_items: Items of the catalogue.
            facts: Facts of the dataset. If None, every history is as long as the model allows.
        """


def histories_per_rank(train: TrainConfig, num_workers: int, inputs_per_history: float) -> float:
    """Return the histories of a rank's share, from train.batch_size or train.batch_tokens."""
    if train.batch_tokens is not None:
        return train.batch_tokens / num_workers / max(1.0, inputs_per_history)
    return train.batch_size / num_workers


def expected_distinct(num_values: int, num_draws: float) -> float:
    """Return the expected number of distinct values among num_draws equally likely ones, nearly: n (1 - e^(-draws / n))."""
    return -num_values * expm1(-num_draws / num_values)
