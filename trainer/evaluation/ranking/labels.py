"""Of which impressions a label is judged, where it is positive, and how much each impression weighs. Pure numpy.

What labels mean is said in models/ranking/labels.py; this is the same for all impressions of the logs, on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.ranking.config import LabelConfig
from trainer.evaluation.ranking.metrics import Judged


@dataclass(frozen=True)
class LabelRules:
    """The labels that a model predicts, by name, in the order of its columns.

    negative_weight: of impressions without any label above 0, of which the logs may have kept a part only.
    """

    configs: Mapping[str, LabelConfig]
    negative_weight: float = 1.0

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.configs)

    def positive(self, label: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(M,) bool. columns: all labels of the logs, (M,) each."""
        own: np.ndarray = columns[label] > 0
        condition = self.configs[label].defined_when if label in self.configs else None
        return own if condition is None else own & self.positive(condition, columns)

    def defined(self, label: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(M,) bool: where the label's logits can be judged. With entire_space that is wherever its condition's can be."""
        config = self.configs.get(label)
        if config is None or config.defined_when is None:
            return np.ones(columns[label].size, np.bool_)
        known = self.defined(config.defined_when, columns)
        return known if config.entire_space else known & self.positive(config.defined_when, columns)

    def weights(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(M,) float64."""
        any_positive = np.logical_or.reduce([column > 0 for column in columns.values()])
        return np.where(any_positive, 1.0, self.negative_weight)

    def judged(self, label: str, user: np.ndarray, logits: np.ndarray, columns: Mapping[str, np.ndarray]) -> Judged:
        """What to judge the logits of a label by. user: (M,) ascending numbers."""
        positive, weights = self.positive(label, columns), self.weights(columns)
        return Judged(user, logits.astype(np.float64), positive, weights).take(self.defined(label, columns))
