"""What the settings' tests see of an objective, and the same by the plain formulas of models/objectives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import models.next_item.model
from cluster.config.run_config import Config
from models.batches.history_batch import FIRST_ITEM
from models.objectives.sampled import (
    SampledTargets,
    binary_cross_entropy_reference,
    sampled_softmax_reference,
)
from models.objectives.softmax import softmax_cross_entropy_reference
from tests.settings.lab import Lab
from tests.settings.observations.models import model_of
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.order import Position


@dataclass(frozen=True)
class Asked:
    """What the objective of a batch is asked about: vectors of targets' histories, vectors of items, the batch."""

    users: Tensor
    items: Tensor
    batch: Any

    @property
    def num_items(self) -> int:
        """Return the number of items that can be negatives."""
        return int(self.batch.num_candidates) - FIRST_ITEM

    def sample(self, temperature: float = 1.0, log_q: Callable[[Tensor], Tensor] | None = None) -> SampledTargets:
        """Return targets and negatives for the plain formulas."""
        batch = self.batch
        return SampledTargets(
            self.users,
            self.items[batch.target_index],
            self.items[batch.negative_index],
            batch.target_ids,
            batch.negative_ids,
            temperature,
            None if log_q is None else log_q(batch.target_ids),
            None if log_q is None else log_q(batch.negative_ids),
        )


def asked(lab: Lab, config: Config, normalize: bool = False) -> Asked:
    """Return the vectors that the model hands to its objective."""
    model, handed = model_of(lab, config), []

    def record(objective: Any, users: Tensor, items: Tensor, batch: Any, kernels: Any) -> Tensor:
        handed.append(Asked(users.detach(), items.detach(), batch))
        return users.sum() * 0.0

    with mock.patch.object(models.next_item.model, "loss_of", record):
        model.built.model.loss(model.rows, model.batch)
    [result] = handed
    if normalize:
        return Asked(F.normalize(result.users, dim=-1), F.normalize(result.items, dim=-1), result.batch)
    return result


Formula = Callable[[Lab, Config], float]


def full_softmax(temperature: float = 1.0, smoothing: float = 0.0, normalize: bool = False) -> Formula:
    """Return the mean cross-entropy over the whole catalogue with these numbers, whatever the settings are."""

    def by_hand(lab: Lab, config: Config) -> float:
        given = asked(lab, config, normalize)
        items, targets = given.items[FIRST_ITEM : given.batch.num_candidates], given.batch.target_ids - FIRST_ITEM
        return float(softmax_cross_entropy_reference(given.users, items, targets, temperature, smoothing)) / len(
            targets
        )

    return by_hand


def sampled(
    kind: str,
    temperature: float = 1.0,
    normalize: bool = False,
    weights: Callable[[Asked], tuple[float, float]] | None = None,
    balanced: bool = True,
    power: float | None = None,
) -> Formula:
    """Return the mean loss of a sampled objective with these numbers, whatever the settings are.

    weights: of targets and of negatives; those of the defaults if not given. power: correct scores for negatives that are
    drawn by popularity to this power.
    """

    def by_hand(lab: Lab, config: Config) -> float:
        given = asked(lab, config, normalize)
        sample = given.sample(temperature, None if power is None else _log_popularity(lab, config, power))
        if kind == "sampled_softmax":
            return float(sampled_softmax_reference(sample)) / len(sample.users)
        positive, negative = (weights or _WEIGHTS[kind])(given)
        offset = math.log(negative * sample.num_negatives / positive) if balanced else 0.0
        if power is not None:
            offset = math.log(negative * sample.num_negatives) + (
                math.log(given.num_items / positive) if balanced else 0.0
            )
        return float(binary_cross_entropy_reference(sample, positive, negative, offset)) / len(sample.users)

    return by_hand


def _log_popularity(lab: Lab, config: Config, power: float) -> Callable[[Tensor], Tensor]:
    weights = _train_events(lab, config) ** power
    table = torch.from_numpy(np.log(weights / weights.sum()).astype(np.float32))
    return lambda ids: table[ids - FIRST_ITEM]


def _train_events(lab: Lab, config: Config) -> np.ndarray:
    return read_vocabulary(lab.dataset(config), lab.manifest(config)).train_events.astype(np.float64)


def train_targets(lab: Lab, config: Config) -> np.ndarray:
    """Return how often each item is a target in one epoch."""
    model = model_of(lab, config)
    result = [step.batch.target_ids.numpy() - FIRST_ITEM for step in model.stream.steps(Position(0, 0), 1)]
    return np.bincount(np.concatenate(result), minlength=_train_events(lab, config).size).astype(np.float64)


def bce_weights(negatives_per_target: float) -> Callable[[Asked], tuple[float, float]]:
    """Return the weights under which all negatives together weigh as much as so many."""
    return lambda given: (1.0, negatives_per_target / len(given.batch.negative_ids))


def gbce_weights(calibration: float) -> Callable[[Asked], tuple[float, float]]:
    """Return the weights of gBCE: beta = a (t (1 - 1 / a) + 1 / a) with the sampling rate a."""

    def weights(given: Asked) -> tuple[float, float]:
        rate = min(1.0, len(given.batch.negative_ids) / (given.num_items - 1))
        return rate * (calibration * (1.0 - 1.0 / rate) + 1.0 / rate), 1.0

    return weights


_WEIGHTS = {"bce": bce_weights(1.0), "gbce": gbce_weights(0.75)}


def num_negatives(lab: Lab, config: Config) -> int:
    """Return how many negatives a step has."""
    return int(model_of(lab, config).batch.negative_ids.numel())


def negatives(lab: Lab, config: Config) -> list[int]:
    """Return the negatives of the first step."""
    ids: list[int] = model_of(lab, config).batch.negative_ids.tolist()
    return ids


def negatives_are_targets(lab: Lab, config: Config) -> bool:
    """Return whether all negatives of the first step are targets of its batch."""
    batch = model_of(lab, config).batch
    return set(batch.negative_ids.tolist()) <= set(batch.target_ids.tolist())


def log_q(lab: Lab, config: Config) -> Tensor | None:
    """Return how likely a draw gives each target of the first step, as the loss is corrected for it."""
    result: Tensor | None = model_of(lab, config).batch.target_log_q
    return result


def log_q_by_counts(
    probability: Callable[[np.ndarray], np.ndarray], counted: Callable[[Lab, Config], np.ndarray] = _train_events
) -> Callable[[Lab, Config], Tensor]:
    """Return the same by hand. probability: of each item, from numbers of training events, or of what else is counted."""

    def by_hand(lab: Lab, config: Config) -> Tensor:
        counts = counted(lab, config)
        targets = model_of(lab, config).batch.target_ids.numpy() - FIRST_ITEM
        return torch.from_numpy(np.log(probability(counts)[targets]).astype(np.float32))

    return by_hand


def estimated_gaps(lab: Lab, config: Config) -> Tensor:
    """Return the estimated number of draws between two of each item after three epochs of batches."""
    model = model_of(lab, config)
    for step in model.stream.steps(Position(0, 0), 3):
        model.built.task.complete_batch(step.batch, step.before, lab.world)
    return model.built.task.tensors()["target_frequency.gaps"]
