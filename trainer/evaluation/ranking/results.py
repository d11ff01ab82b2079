"""Merges the workers' partial results into metrics.json, per_impression.parquet and per_user.parquet. No torch.

The parts are merged in the order of the dataset's rows before anything is summed, so no figure depends on the number of workers.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.logs.config import LogsConfig
from trainer.evaluation.examples import NUM_EVENTS, NUM_ITEMS, ItemNames, example_places, read_histories
from trainer.evaluation.protocol import data_of, statement_of_ranking
from trainer.evaluation.ranking.intervals import intervals_of, shares_of_users
from trainer.evaluation.ranking.judged import (
    Judged,
    areas_of,
    auc_of_users,
    count_scores,
    log_losses,
    probabilities,
    sums_of,
)
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import BASELINES, PRIOR_IMPRESSIONS, name_of
from trainer.evaluation.ranking.reliability import reliability
from trainer.evaluation.ranking.scored import MODEL, Impressions
from trainer.evaluation.ranking.slices import USER_IMPRESSIONS, built_in_slices, worst_impressions
from trainer.evaluation.slices import Slice
from trainer.storage.files import renamed_when_whole, write_json_atomically
from trainer.storage.objects.paths import remove_tree
from trainer.storage.parquet import read_parquet, write_parquet

_KEPT = ("time", "history_length", "item_impressions", USER_IMPRESSIONS, "weight")  # columns of per_impression.parquet
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
    rows = impressions.column("row_id")
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
        num_users=int((np.diff(rows) != 0).sum()) + 1,
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
        values = _values_of(judged)
        intervals = intervals_of(judged, values)
        for metric, value in values.items():
            name = name_of(metric, label, impressions.labels)
            metrics[name] = value if math.isfinite(value) else None
            if metric in intervals:
                bounds[name] = intervals[metric]
    return metrics, bounds


def _counts(judged: Judged) -> dict[str, int]:
    users = auc_of_users(judged)
    return {
        "impressions": judged.positive.size,
        "positives": int(judged.positive.sum()),
        "users_with_both": int((~np.isnan(users.auc)).sum()),
    }


def _slice(impressions: Impressions, part: Slice) -> dict[str, Any]:
    metrics, bounds = _metrics(impressions, MODEL, part.inside)
    return {
        "name": part.name,
        "value": part.value,
        "num_users": int(np.unique(impressions.column("row_id")[part.inside]).size),
        "num_targets": int(part.inside.sum()),
        "metrics": metrics,
        "ci95": bounds,
    }


def examples_of(
    impressions: Impressions, folder: Path, manifest: Manifest, logs: LogsConfig | None, items: pa.Array
) -> list[dict[str, Any]]:
    """Return example users for the report: the history before their impressions, and what the model predicted of these.

    Args:
        impressions: the impressions of merge_parts.
        folder: the dataset.
        manifest: its manifest.
        logs: the settings of the logs, for titles of items.
        items: the value in the logs of each id from 1 on.
    """
    rows, first = np.unique(impressions.column("row_id"), return_index=True)
    places = example_places(rows.size)
    histories = read_histories(folder, manifest, rows[places].tolist(), bool(used_features(manifest)))
    users = []
    for place in places:
        stop = min(int(np.append(first, impressions.table.num_rows)[place + 1]), int(first[place]) + NUM_ITEMS)
        shown = impressions.table.slice(int(first[place]), stop - int(first[place])).to_pylist()
        history = histories[int(rows[place])]
        before = history.items[: np.searchsorted(history.times, shown[0]["time"], side="left")]
        users.append((shown, before))
    names = ItemNames(
        logs, items, (int(n) for shown, h in users for n in [*h[-NUM_EVENTS:], *(i["item"] for i in shown)])
    )
    return [
        {
            "user": str(shown[0]["user"]),
            "num_events": int(before.size),
            "history": [names[item] for item in before[-NUM_EVENTS:]],
            "impressions": [
                {
                    "item": names[row["item"]],
                    "labels": {label: _predicted(row, label) for label in impressions.labels},
                }
                for row in shown
            ],
        }
        for shown, before in users
    ]


def _predicted(row: dict[str, Any], label: str) -> dict[str, float | None]:
    """Return the model's probability of a label, and the label: 0, 1, or None where it is not defined."""
    outcome = row[f"label.{label}"]
    probability = float(probabilities(np.asarray(row[f"logit.{label}"], np.float64)))
    return {
        "probability": probability if math.isfinite(probability) else None,
        "outcome": None if math.isnan(outcome) else outcome,
    }


def write(folder: Path, results: RankingResults, impressions: Impressions, items: pa.Array) -> None:
    """Write metrics.json, per_impression.parquet and per_user.parquet, and remove the workers' parts.

    Args:
        folder: where to write.
        results: the content of metrics.json.
        impressions: the impressions of merge_parts.
        items: the value in the logs of each id from 1 on.
    """
    for name, table in (
        ("per_impression.parquet", impression_table(impressions, items)),
        ("per_user.parquet", _user_table(impressions)),
    ):
        with renamed_when_whole(folder / name) as path:
            write_parquet(table, path, write_page_checksum=True)
    write_json_atomically(folder / "metrics.json", asdict(results))
    remove_tree(folder / "parts", ignore_errors=True)


def impression_table(impressions: Impressions, items: pa.Array) -> pa.Table:
    """Return a table with a row per impression.

    Columns: user, item, time, history_length, item_impressions, user_impressions, weight; by label `label` (null where it is not
    defined), `probability`, and the probability of each baseline.
    """
    ids = impressions.column("item")
    columns: dict[str, Any] = {
        "user": impressions.table.column("user"),
        "item": items.take(pa.array(ids - 1, mask=ids == 0)),
        **{name: impressions.table.column(name) for name in _KEPT if name in impressions.table.column_names},
    }
    for label in impressions.labels:
        clicks = impressions.column(f"label.{label}")
        columns[name_of("label", label, impressions.labels)] = pa.array(clicks, mask=np.isnan(clicks))
        # float64, because in float32 different large probabilities would become equal.
        columns[name_of("probability", label, impressions.labels)] = _probability(impressions, f"logit.{label}")
        for baseline in BASELINES:
            columns[name_of(baseline, label, impressions.labels)] = _probability(
                impressions, f"logit.{baseline}.{label}"
            )
    return pa.table(columns)


def _probability(impressions: Impressions, column: str) -> np.ndarray:
    return probabilities(impressions.column(column).astype(np.float64))


def _user_table(impressions: Impressions) -> pa.Table:
    """Return a table with a row per user.

    Columns: user, impressions; by label `positives`, `user_auc` (null without both classes) and `user_logloss` of the user alone;
    by the name of each metric the user's share in it (shares_of_users).
    """
    rows, first = np.unique(impressions.column("row_id"), return_index=True)
    columns: dict[str, Any] = {
        "user": impressions.table.column("user").take(pa.array(first)),
        "impressions": np.diff(np.append(first, impressions.table.num_rows)),
    }
    for label in impressions.labels:
        judged = impressions.judged(label)
        values = {**_of_users_alone(judged, rows), **shares_of_users(judged, _values_of(judged), rows)}
        for name, column in values.items():
            columns[name_of(name, label, impressions.labels)] = pa.array(column, mask=np.isnan(column))
    return pa.table(columns)


def _of_users_alone(judged: Judged, rows: np.ndarray) -> dict[str, np.ndarray]:
    by_user = auc_of_users(judged)
    auc = np.full(rows.size, np.nan)
    auc[np.searchsorted(rows, by_user.user)] = by_user.auc
    place = np.searchsorted(rows, judged.user)
    weight = np.bincount(place, judged.weight, rows.size)
    lost = np.bincount(place, judged.weight * log_losses(judged.scores, judged.positive), rows.size)
    logloss = np.divide(lost, weight, out=np.full(rows.size, np.nan), where=weight > 0)
    positives = np.bincount(place, judged.positive, rows.size).astype(np.int64)
    return {"positives": positives, "user_auc": auc, "user_logloss": logloss}


def _values_of(judged: Judged) -> dict[str, float]:
    return metrics_of(sums_of(judged), areas_of(count_scores(judged)))


def read_scored(folder: Path, label: str, labels: tuple[str, ...], source: str = "probability") -> Judged:
    """Return the impressions of a per_impression.parquet on which a label is defined, with probabilities instead of logits.

    Args:
        folder: the folder of the evaluation.
        label: the label.
        labels: all labels of the model.
        source: the column of the probabilities.
    """
    columns = {name: name_of(name, label, labels) for name in ("label", source)}
    table = read_parquet(folder / "per_impression.parquet", columns=["weight", *columns.values()])
    table = table.filter(pc.is_valid(table.column(columns["label"])))
    weight, clicks, chance = (table.column(name).to_numpy() for name in ("weight", *columns.values()))
    return Judged(np.zeros(clicks.size, np.int64), chance, clicks > 0, weight)
