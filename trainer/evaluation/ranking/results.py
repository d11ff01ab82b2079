"""From what ranks found per impression to metrics.json, per_impression.parquet and per_user.parquet. No torch: the driver calls it.

The parts of all ranks are merged in the order of the dataset's rows before anything is summed, so no number depends on how many
ranks there were.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.evaluation.ranking.intervals import intervals_of, shares_of_users
from trainer.evaluation.ranking.metrics import (
    Judged,
    auc_of,
    auc_of_users,
    count_scores,
    log_losses,
    metrics_of,
    probabilities,
    sums_of,
)
from trainer.evaluation.ranking.names import BASELINES, PRIOR_IMPRESSIONS, name_of
from trainer.evaluation.ranking.reliability import reliability
from trainer.storage.files import renamed_when_whole, write_json_atomically

MODEL = "model"
_HOURS = 4  # in a slice by the hour of the day
_Values = dict[str, float | None]


@dataclass(frozen=True)
class RankingResults:
    """The content of metrics.json of a model of impressions. What is not defined is None.

    labels: by name, on how many impressions it is defined, and how many of these are positive; reliability: by label, groups of
    like predictions with what became of them.
    """

    task: str
    split: str
    checkpoint: str
    protocol: dict[str, Any]
    num_users: int
    num_targets: int
    labels: dict[str, dict[str, int]]
    metrics: _Values
    ci95: dict[str, list[float]]
    baselines: dict[str, _Values]
    baselines_ci95: dict[str, dict[str, list[float]]]
    slices: list[dict[str, Any]]
    reliability: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Impressions:
    """All impressions of a split in the order of the dataset, as evaluation found them. labels: those of the model."""

    table: pa.Table
    labels: tuple[str, ...]

    def column(self, name: str) -> np.ndarray:
        found: np.ndarray = self.table.column(name).to_numpy()
        return found

    def defined(self, label: str) -> np.ndarray:
        """(M,) where the label tells something."""
        known: np.ndarray = ~np.isnan(self.column(f"label.{label}"))
        return known

    def judged(self, label: str, source: str = MODEL, inside: np.ndarray | None = None) -> Judged:
        """Impressions on which the label is defined, of those where `inside` is true. source: the model, or a baseline."""
        logit = f"logit.{label}" if source == MODEL else f"logit.{source}.{label}"
        clicks, logits = self.column(f"label.{label}"), self.column(logit).astype(np.float64)
        of_all = Judged(self.column("row_id"), logits, clicks > 0, self.column("weight"))
        wanted = self.defined(label) if inside is None else self.defined(label) & inside
        return of_all.take(wanted)


def merge_parts(parts: Path, labels: tuple[str, ...]) -> Impressions:
    """All ranks' impressions, sorted by row and place. Raises UserError if there are none."""
    tables = [pq.read_table(path) for path in sorted(parts.glob("rank-*.parquet"))]
    merged = pa.concat_tables(tables) if tables else None
    if merged is None or merged.num_rows == 0:
        raise UserError(
            "evaluation: there are no impressions in this split; use more logs, or move split.validation_time and split.test_time"
        )
    return Impressions(merged.sort_by([("row_id", "ascending"), ("place", "ascending")]).combine_chunks(), labels)


def summarize(
    found: Impressions, split: str, checkpoint: str, manifest: Manifest, max_history: int, ticks_per_second: int | None
) -> RankingResults:
    """The results. ticks_per_second: of the logs' times, none if these are not a clock's."""
    metrics, ci95 = _metrics(found, MODEL, None)
    baselines = {name: _metrics(found, name, None) for name in BASELINES}
    rows = found.column("row_id")
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
        },
        num_users=int((np.diff(rows) != 0).sum()) + 1,
        num_targets=rows.size,
        labels={label: _counts(found.judged(label)) for label in found.labels},
        metrics=metrics,
        ci95=ci95,
        baselines={name: values for name, (values, _) in baselines.items()},
        baselines_ci95={name: bounds for name, (_, bounds) in baselines.items()},
        slices=[_slice(found, *entry) for entry in _slices(found, ticks_per_second)],
        reliability={label: [asdict(group) for group in reliability(found.judged(label))] for label in found.labels},
    )


def _metrics(found: Impressions, source: str, inside: np.ndarray | None) -> tuple[_Values, dict[str, list[float]]]:
    metrics: _Values = {}
    bounds: dict[str, list[float]] = {}
    for label in found.labels:
        judged = found.judged(label, source, inside)
        values = _values_of(judged)
        intervals = intervals_of(judged, values)
        for metric, value in values.items():
            name = name_of(metric, label, found.labels)
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


def _slices(found: Impressions, ticks_per_second: int | None) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, value, (M,) bool): by quarter of history length and of the item's training impressions, and by hour of the day."""
    for name, column in (("history_length", "history_length"), ("item_impressions", "item_impressions")):
        values = found.column(column)
        some = values[values > 0]
        cuts = np.unique(np.quantile(some, [0.25, 0.5, 0.75], method="inverted_cdf")) if some.size else np.zeros(0)
        quarter = np.where(values > 0, np.searchsorted(cuts, values, side="left") + 1, 0)
        for number in np.unique(quarter):
            inside = quarter == number
            low, high = int(values[inside].min()), int(values[inside].max())
            yield name, f"{low}" if low == high else f"{low}-{high}", inside
    if ticks_per_second is not None:
        hour = found.column("time") // (3600 * ticks_per_second) % 24
        for first in range(0, 24, _HOURS):
            inside = (hour >= first) & (hour < first + _HOURS)
            if inside.any():
                yield "hour", f"{first:02d}-{first + _HOURS - 1:02d}", inside


def _slice(found: Impressions, name: str, value: str, inside: np.ndarray) -> dict[str, Any]:
    metrics, bounds = _metrics(found, MODEL, inside)
    return {
        "name": name,
        "value": value,
        "num_users": int(np.unique(found.column("row_id")[inside]).size),
        "num_targets": int(inside.sum()),
        "metrics": metrics,
        "ci95": bounds,
    }


def write(folder: Path, results: RankingResults, found: Impressions, items: pa.Array) -> None:
    """metrics.json, per_impression.parquet and per_user.parquet, with ids as in the logs; the ranks' parts are removed.

    items: the values of ids 1 and up.
    """
    for name, table in (
        ("per_impression.parquet", impression_table(found, items)),
        ("per_user.parquet", _user_table(found)),
    ):
        with renamed_when_whole(folder / name) as path:
            pq.write_table(table, path, write_page_checksum=True)
    write_json_atomically(folder / "metrics.json", asdict(results))
    shutil.rmtree(folder / "parts", ignore_errors=True)


def impression_table(found: Impressions, items: pa.Array) -> pa.Table:
    """A row per impression: user, item, time, history_length, item_impressions, weight; by label `label` (null where it is not
    defined), `probability` and that of each baseline."""
    ids = found.column("item")
    columns: dict[str, Any] = {
        "user": found.table.column("user"),
        "item": items.take(pa.array(ids - 1, mask=ids == 0)),
        **{name: found.table.column(name) for name in ("time", "history_length", "item_impressions", "weight")},
    }
    for label in found.labels:
        clicks = found.column(f"label.{label}")
        columns[name_of("label", label, found.labels)] = pa.array(clicks, mask=np.isnan(clicks))
        # Not float32, in which large probabilities that differ would become equal.
        columns[name_of("probability", label, found.labels)] = _probability(found, f"logit.{label}")
        for baseline in BASELINES:
            columns[name_of(baseline, label, found.labels)] = _probability(found, f"logit.{baseline}.{label}")
    return pa.table(columns)


def _probability(found: Impressions, column: str) -> np.ndarray:
    return probabilities(found.column(column).astype(np.float64))


def _user_table(found: Impressions) -> pa.Table:
    """A row per user: impressions; by label `positives`, and `user_auc` (null without both classes) and `user_logloss` of the user
    alone; and by the name of each metric the user's share in it (shares_of_users)."""
    rows, first = np.unique(found.column("row_id"), return_index=True)
    columns: dict[str, Any] = {
        "user": found.table.column("user").take(pa.array(first)),
        "impressions": np.diff(np.append(first, found.table.num_rows)),
    }
    for label in found.labels:
        judged = found.judged(label)
        values = {**_of_users_alone(judged, rows), **shares_of_users(judged, _values_of(judged), rows)}
        for name, column in values.items():
            columns[name_of(name, label, found.labels)] = pa.array(column, mask=np.isnan(column))
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
    return metrics_of(sums_of(judged), auc_of(count_scores(judged)))


def read_scored(folder: Path, label: str, labels: tuple[str, ...], source: str = "probability") -> Judged:
    """Of a per_impression.parquet: where the label is defined, with probabilities in the place of logits. source: their column."""
    columns = {name: name_of(name, label, labels) for name in ("label", source)}
    table = pq.read_table(folder / "per_impression.parquet", columns=["weight", *columns.values()])
    table = table.filter(pc.is_valid(table.column(columns["label"])))
    weight, clicks, chance = (table.column(name).to_numpy() for name in ("weight", *columns.values()))
    return Judged(np.zeros(clicks.size, np.int64), chance, clicks > 0, weight)
