"""Metrics of held-out items as plain arrays, and the training events that debiased ones weigh items by."""

import numpy as np

from trainer.evaluation.next_item.metrics import user_metrics

EVENTS = np.random.default_rng(12).geometric(0.1, 5000)  # of ids 1 .. 5000


def values_of(targets: np.ndarray, ranks: np.ndarray, offsets: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    """Return the values of the users by name, without their weights."""
    return {name: column.values for name, column in user_metrics(targets, ranks, offsets, ks, EVENTS).items()}


def mean_values(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each column."""
    return {name: float(values.mean()) for name, values in columns.items()}
