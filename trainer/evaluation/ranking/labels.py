"""Of which impressions a label is judged, and how much each of them weighs. Pure numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trainer.evaluation.ranking.metrics import Judged


@dataclass(frozen=True)
class LabelRules:
    """The labels that a model predicts, in the order of its columns.

    defined_when: a label to another, where only impressions with that other above 0 tell anything of it, as a conversion may
    follow only a click. negative_weight: of impressions without any label above 0, of which the log may hold a part only.
    """

    labels: tuple[str, ...]
    defined_when: Mapping[str, str] = field(default_factory=dict)
    negative_weight: float = 1.0

    def defined(self, label: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(M,) bool. columns: all labels of the log, (M,) each; above 0 is positive."""
        condition = self.defined_when.get(label)
        return np.ones(columns[label].size, np.bool_) if condition is None else columns[condition] > 0

    def weights(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(M,) float64."""
        any_positive = np.logical_or.reduce([column > 0 for column in columns.values()])
        return np.where(any_positive, 1.0, self.negative_weight)

    def judged(self, label: str, user: np.ndarray, logits: np.ndarray, columns: Mapping[str, np.ndarray]) -> Judged:
        """What to judge the logits of a label by. user: (M,) ascending numbers."""
        of_all = Judged(user, logits.astype(np.float64), columns[label] > 0, self.weights(columns))
        return of_all.take(self.defined(label, columns)) if label in self.defined_when else of_all
