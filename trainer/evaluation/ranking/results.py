"""The content of metrics.json of a ranking model, from the merged impressions of all workers. No torch.

The parts are merged in the order of the dataset's rows before anything is summed, so no figure depends on the number of workers.
Impressions, and values of users, are in temporary files, never in memory as a whole.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.merged_parts import ROW_ID
from trainer.evaluation.protocol import data_of, statement_of_ranking
from trainer.evaluation.ranking.intervals import intervals_of
from trainer.evaluation.ranking.judged import Judged, areas_of, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import BASELINES, PRIOR_IMPRESSIONS, name_of
from trainer.evaluation.ranking.reliability import reliability
from trainer.evaluation.ranking.scored import MODEL, Impressions
from trainer.evaluation.ranking.slices import built_in_slices, worst_impressions
from trainer.evaluation.slices import Slice
from trainer.evaluation.spooled import blocks, chosen, unique_keys

_Values = dict[str, float | None]


@dataclass(frozen=True)
class RankingResults:
    """The content of metrics.json of a ranking model. A metric that is not defined is None."""

    task: str
    """Always "ranking"."""
    split: str
    """"validation" or "test"."""
    checkpoint: str
    """Name of the checkpoint's folder."""
    protocol: dict[str, Any]
    """Protocol of the figures: split, history, ties and so on."""
    num_users: int
    """Users with impressions in the split."""
    num_targets: int
    """Impressions."""
    labels: dict[str, dict[str, int]]
    """By label, on how many "impressions" it is defined, how many of these are "positives", and "users_with_both" classes."""
    metrics: _Values
    """Metrics of the model by name."""
    ci95: dict[str, list[float]]
    """95 % confidence intervals by name of the metrics that have one."""
    baselines: dict[str, _Values]
    """Metrics by baseline."""
    baselines_ci95: dict[str, dict[str, list[float]]]
    """Intervals by baseline."""
    slices: list[dict[str, Any]]
    """Metrics of parts of the impressions: "name", "value", "num_users", "num_targets", "metrics", "ci95"."""
    reliability: dict[str, list[dict[str, Any]]]
    """By label, groups of similar predictions (trainer.evaluation.ranking.reliability)."""
    worst_slices: dict[str, Any] = field(default_factory=dict)
    """Slices that are significantly worse than all others, and the test (trainer.evaluation.slices.name_worst)."""


def summarize(
    impressions: Impressions,
    split: str,
    checkpoint: str,
    manifest: Manifest,
    max_history: int,
    ticks_per_second: int | None,
    names: Sequence[str] | None = None,
    by_features: Sequence[Slice] = (),
) -> RankingResults:
    """Return the results.

    Args:
        impressions: the impressions of merge_parts.
        split: the evaluated split.
        checkpoint: the name of the evaluated checkpoint.
        manifest: the dataset's.
        max_history: the number of most recent events that the model sees.
        ticks_per_second: of the logs' times; None if these are not times of a clock.
        names: the setting evaluate.slices.
        by_features: slices besides the built-in ones.
    """
    metrics, ci95 = _metrics(impressions, MODEL, None)
    baselines = {name: _metrics(impressions, name, None) for name in BASELINES}
    rows = impressions.column(ROW_ID)
    slices = [*built_in_slices(impressions, ticks_per_second, names), *by_features]
    return RankingResults(
        task="ranking",
        split=split,
        checkpoint=checkpoint,
        protocol={
            "split": manifest.split,
            "history": f"events strictly before each impression, the most recent {max_history}",
            "ties": "equal scores count half",
            "gauc": "users with both classes, weighted by their impressions",
            "negative_sampling_rate": manifest.labels.get("negative_sampling_rate", 1.0),
            "baselines": f"training rates, smoothed by {PRIOR_IMPRESSIONS:g} impressions at the overall rate",
            "trained_on": "training part only; impressions of the validation part are history at test time, never trained on",
            **data_of(manifest),
            "statement": statement_of_ranking(split, manifest),
        },
        num_users=unique_keys(rows).size,
        num_targets=rows.size,
        labels={label: _counts(impressions.judged(label)) for label in impressions.labels},
        metrics=metrics,
        ci95=ci95,
        baselines={name: values for name, (values, _) in baselines.items()},
        baselines_ci95={name: bounds for name, (_, bounds) in baselines.items()},
        slices=[_slice(impressions, part) for part in slices],
        reliability={
            label: [asdict(group) for group in reliability(impressions.judged(label))] for label in impressions.labels
        },
        worst_slices=worst_impressions(impressions, slices),
    )


def _metrics(
    impressions: Impressions, source: str, inside: np.ndarray | None
) -> tuple[_Values, dict[str, list[float]]]:
    metrics: _Values = {}
    bounds: dict[str, list[float]] = {}
    for label in impressions.labels:
        judged = impressions.judged(label, source, inside)
        values = values_of(judged)
        intervals = intervals_of(judged, values)
        for metric, value in values.items():
            name = name_of(metric, label, impressions.labels)
            metrics[name] = value if math.isfinite(value) else None
            if metric in intervals:
                bounds[name] = intervals[metric]
    return metrics, bounds


def values_of(judged: Judged) -> dict[str, float]:
    """Return all metrics by name; NaN where one is not defined."""
    return metrics_of(sums_of(judged), areas_of(judged.counts))


def _counts(judged: Judged) -> dict[str, int]:
    auc = judged.by_user.auc
    return {
        "impressions": judged.positive.size,
        "positives": int(judged.positive.sum()),
        "users_with_both": auc.size - sum(int(np.isnan(auc[users]).sum()) for users in blocks(auc.size)),
    }


def _slice(impressions: Impressions, part: Slice) -> dict[str, Any]:
    metrics, bounds = _metrics(impressions, MODEL, part.inside)
    return {
        "name": part.name,
        "value": part.value,
        "num_users": unique_keys(chosen(impressions.column(ROW_ID), part.inside)).size,
        "num_targets": int(part.inside.sum()),
        "metrics": metrics,
        "ci95": bounds,
    }
