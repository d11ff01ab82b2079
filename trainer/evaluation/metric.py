"""A metric as one value: its name, its range, which direction is better, and what it means. No torch.

Each task lists its metrics in one tuple, `METRICS` of trainer/evaluation/next_item/metrics.py and of
trainer/evaluation/ranking/metrics.py, and adds there how a metric is computed. Configs, tables, reports, plots, early stopping,
the choice of the best checkpoint and studies read these tuples, mostly through trainer/tasks/metrics.py.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.evaluation.confidence import Range

HEADLINE_CUTOFF = 10  # the cut-off that summaries show where it was evaluated


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Metric of either task. The class of a task adds its computation."""

    name: str
    """In lower case, without cut-off and label, for example "hr"."""
    explanation: str
    """One sentence for reports."""
    larger_is_better: bool | None
    """None if neither direction is better, as for calibration."""
    within: Range
    """The values that the metric can take."""
    has_cutoff: bool = False
    """True if there is one value per cut-off K of evaluate.ks, as in "hr@10"."""
    has_label: bool = False
    """True if there is one value per label, as in "auc/click"."""
    selects: bool = True
    """True if it may decide early stopping, the best checkpoint and a study."""
    undefined_when: str = ""
    """When the metric has no value, in words; empty if it always has one."""
    headline: bool = False
    """True if summaries show it: terminal output, tiles, slices and curves of reports."""

    @property
    def pattern(self) -> str:
        """A regular expression that matches all names of the metric's values."""
        return re.escape(self.name) + "@[1-9][0-9]*" * self.has_cutoff + "(/.+)?" * self.has_label

    @property
    def placeholder(self) -> str:
        """The name as documentation writes it, for example "hr@K"."""
        return self.name + "@K" * self.has_cutoff

    def matches(self, name: str) -> bool:
        """Return whether a value of this name is one of this metric, for example "hr@10" or "auc/click"."""
        return re.fullmatch(self.pattern, name) is not None

    def value_name(self, k: int | None = None) -> str:
        """Return the name of the value at a cut-off, for example "hr@10"; metrics without a cut-off ignore it."""
        return f"{self.name}@{k}" if self.has_cutoff else self.name


def cutoff_of(name: str) -> int | None:
    """Return the cut-off in the name of a value: 10 for "hr@10", None for "mrr"."""
    _, _, digits = name.partition("@")
    return int(digits) if digits.isdecimal() else None


def headline_names(metrics: Iterable[Metric], names: Iterable[str]) -> list[str]:
    """Return which of the named values summaries show, in the order of the names.

    Of metrics with cut-offs these are the values at HEADLINE_CUTOFF, or else at the largest cut-off below it, or else at the
    smallest.
    """
    shown = [name for name in names if any(metric.headline and metric.matches(name) for metric in metrics)]
    cutoffs = {k for name in shown if (k := cutoff_of(name)) is not None}
    chosen = max((k for k in cutoffs if k <= HEADLINE_CUTOFF), default=min(cutoffs, default=None))
    return [name for name in shown if cutoff_of(name) in (None, chosen)]
