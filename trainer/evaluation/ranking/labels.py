"""Rules of labels: the impressions on which a label is defined, where it is positive, and their weights. Pure numpy.

models/ranking/labels.py describes the labels; this module applies the same rules to all impressions of the logs, on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.ranking.config import LabelConfig
from trainer.evaluation.ranking.judged import Judged


@dataclass(frozen=True)
class LabelRules:
    """The labels that a model predicts, in the order of its columns."""

    configs: Mapping[str, LabelConfig]
    """The settings of each label by name."""
    negative_weight: float = 1.0
    """The weight of impressions without any label above 0, of which the logs may have kept a part only."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(self.configs)

    def positive(self, label: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return where a label is positive, (M,) bool. columns: all labels of the logs, (M,) each."""
        own: np.ndarray = columns[label] > 0
        condition = self.configs[label].defined_when if label in self.configs else None
        return own if condition is None else own & self.positive(condition, columns)

    def defined(self, label: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return where a label is defined, (M,) bool. With entire_space that is wherever its condition is defined."""
        config = self.configs.get(label)
        if config is None or config.defined_when is None:
            return np.ones(columns[label].size, np.bool_)
        known = self.defined(config.defined_when, columns)
        return known if config.entire_space else known & self.positive(config.defined_when, columns)

    def weights(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the weight of each impression, (M,) float64."""
        any_positive = np.logical_or.reduce([column > 0 for column in columns.values()])
        return np.where(any_positive, 1.0, self.negative_weight)

    def judged(self, label: str, user: np.ndarray, logits: np.ndarray, columns: Mapping[str, np.ndarray]) -> Judged:
        """Return the impressions on which a label is defined, with the model's logits.

        Args:
            label: the label.
            user: (M,) numbers of users, ascending.
            logits: (M,) of the label.
            columns: all labels of the logs, (M,) each.
        """
        positive, weights = self.positive(label, columns), self.weights(columns)
        return Judged(user, logits.astype(np.float64), positive, weights).take(self.defined(label, columns))
