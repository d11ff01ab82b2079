"""Metrics by task, for everything that handles names of metrics of either task. No torch."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from trainer.evaluation.confidence import Range, mean_interval
from trainer.evaluation.metric import Metric, cutoff_of
from trainer.evaluation.metric import headline_names as of_metrics
from trainer.evaluation.next_item import metrics as next_item
from trainer.evaluation.ranking import metrics as ranking
from trainer.evaluation.ranking.intervals import share_interval
from trainer.evaluation.ranking.names import name_of

METRICS: dict[str, tuple[Metric, ...]] = {"next_item": next_item.METRICS, "ranking": ranking.METRICS}
_ALL = tuple(metric for metrics in METRICS.values() for metric in metrics)


def metric_of(name: str) -> Metric:
    """Return the metric of a value of either task, for example of "hr@10" or "auc/click". Raises KeyError if there is none."""
    for metric in _ALL:
        if metric.matches(name):
            return metric
    raise KeyError(f"no metric is called {name!r}")


def larger_is_better(name: str) -> bool:
    """Return whether a larger value of a metric that selects checkpoints is better."""
    return metric_of(name).larger_is_better is True


def range_of(name: str) -> Range:
    """Return the range of a metric of either task."""
    return metric_of(name).within


def headline_names(names: Iterable[str]) -> list[str]:
    """Return which of the named values of either task summaries show (trainer.evaluation.metric)."""
    return of_metrics(_ALL, names)


def interval_of(name: str) -> Callable[[np.ndarray, Range], tuple[float, float]]:
    """Return the function that computes a metric's interval from the values of its users in per_user.parquet."""
    metric = metric_of(name)
    plain = isinstance(metric, next_item.NextItemMetric) and not metric.weighs_users
    return mean_interval if plain else share_interval


def selection_names(task: str, ks: Sequence[int], labels: tuple[str, ...]) -> list[str]:
    """Return the names of the metrics that can select checkpoints of a run. Arguments as of unusable_reason."""
    usable = _usable(task)
    if labels:
        return [name_of(metric.name, label, labels) for label in labels for metric in usable]
    of_cutoffs = [metric.value_name(k) for metric in usable if metric.has_cutoff for k in sorted(set(ks))]
    return [*of_cutoffs, *(metric.name for metric in usable if not metric.has_cutoff)]


def selection_pattern(task: str) -> str:
    """Return a regular expression for the names of a task's metrics that can select a checkpoint or a variant."""
    return "|".join(f"^{metric.pattern}$" for metric in _usable(task))


def unusable_reason(name: str, task: str, ks: Sequence[int], labels: tuple[str, ...]) -> str | None:
    """Return why a metric cannot select checkpoints of a run, or None if it can.

    Args:
        name: the metric as a setting names it.
        task: the task of the run's model.
        ks: the cut-offs that are evaluated.
        labels: the labels that the model learns; none for next-item models.
    """
    usable = _usable(task)
    if labels:
        names = selection_names(task, ks, labels)
        return None if name in names else f"a model of these labels has {', '.join(names)}"
    if not any(metric.matches(name) for metric in usable):
        *others, last = (metric.placeholder for metric in usable)
        return f"a model of the next item has {', '.join(others)} and {last}"
    k = cutoff_of(name)
    return f"it needs {k} among evaluate.ks = {list(ks)}" if k is not None and k not in ks else None


def _usable(task: str) -> list[Metric]:
    """Return the metrics of a task that can select checkpoints."""
    return [metric for metric in METRICS[task] if metric.selects]
