"""Folders as `shoal evaluate` leaves them, from numbers that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.evaluation.ranking.intervals import shares_of_users
from trainer.evaluation.ranking.judged import Judged, auc_of, count_scores, log_losses, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.metrics_log import ATTEMPTS

PROTOCOL = {"split": {"kind": "leave_one_out"}, "catalogue": 500, "seen_items": "masked", "targets": "all"}
CONFIG = {"run": {"dir": "runs/a", "seed": 1}, "train": {"learning_rate": 0.1}, "cluster": {"num_workers": 2}}


def ranks_to_metrics(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics of users with one target each; ranks: (users,) from 1."""
    hit = ranks <= 10
    return {
        "hr@10": hit.astype(np.float64),
        "ndcg@10": np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0),
        "recall@10": hit.astype(np.float64),
        "mrr": 1.0 / ranks,
    }


def write_run(
    folder: Path,
    ranks: np.ndarray,
    *,
    users: Sequence[Any] | None = None,
    seed: int = 1,
    settings: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    split: str = "test",
    columns: dict[str, Any] | None = None,
    targets: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Write a run folder with one evaluation of a next_item model, and return it.

    Args:
        folder: of the run.
        ranks: (users,) the rank of each user's target.
        users: the users; numbers from 0 by default.
        seed: run.seed of its config.
        settings: sections that replace those of CONFIG.
        protocol: entries that replace those of PROTOCOL.
        split: the evaluated split.
        columns: further columns of per_user.parquet.
        targets: the targets of each user; by default the user's number modulo 500.
    """
    number = len(ranks)
    metrics = ranks_to_metrics(ranks)
    table = {
        "user": list(range(number)) if users is None else list(users),
        "history_length": (np.arange(number) * 7) % 90 + 2,
        "targets": [[k % 500] for k in range(number)] if targets is None else targets,
        "ranks": [[int(rank)] for rank in ranks],
        "popularity_ranks": [[(k * 13) % 500] for k in range(number)],
        "top_items": [[1, 2]] * number,
        **metrics,
        **(columns or {}),
    }
    values = {
        "task": "next_item",
        "split": split,
        "checkpoint": "step_000000020",
        "protocol": PROTOCOL | (protocol or {}),
        "num_users": number,
        "num_targets": number,
        "metrics": {name: float(of.mean()) for name, of in metrics.items()} | {"coverage@10": 0.5},
    }
    config = {**CONFIG, **(settings or {}), "run": {"dir": str(folder), "seed": seed}}
    return _write(folder, split, values, config, {"per_user.parquet": table})


def write_ranking_run(
    folder: Path,
    user: np.ndarray,
    logits: np.ndarray,
    positive: np.ndarray,
    *,
    settings: dict[str, Any] | None = None,
    history: int = 50,
) -> Path:
    """Write a run folder with one evaluation of a ranking model with the label click, and return it.

    Args:
        folder: of the run.
        user: (M,) the user of each impression, ascending from 0 without gaps.
        logits: (M,) the scores.
        positive: (M,) bool, the labels.
        settings: sections that replace those of CONFIG.
        history: model.max_history, which its protocol mentions.
    """
    judged = Judged(user, logits.astype(np.float64), positive, np.ones(user.size))
    users = np.unique(user)
    metrics = metrics_of(sums_of(judged), auc_of(count_scores(judged)))
    counts = np.bincount(user)
    of_user = {
        "user": users,
        "impressions": counts,
        "positives": np.bincount(user, positive).astype(np.int64),
        "user_auc": pa.array(np.full(users.size, 0.5)),
        "user_logloss": np.bincount(user, log_losses(judged.scores, positive)) / counts,
        **shares_of_users(judged, metrics, users),
    }
    of_impression = {
        "user": user,
        "item": np.arange(user.size) % 40,
        "time": np.arange(user.size),
        "history_length": np.arange(user.size) % 9,
        "item_impressions": np.arange(user.size) % 31,
        "weight": np.ones(user.size),
        "label": positive.astype(np.float64),
        "probability": 1.0 / (1.0 + np.exp(-judged.scores)),
        "popularity": np.full(user.size, 0.5),
    }
    values = {
        "task": "ranking",
        "split": "test",
        "checkpoint": "step_000000020",
        "protocol": {
            "split": {"kind": "global_time"},
            "history": f"events strictly before each impression, the most recent {history}",
        },
        "num_users": int(users.size),
        "num_targets": int(user.size),
        "labels": {"click": {"impressions": int(user.size), "positives": int(positive.sum())}},
        "metrics": metrics,
    }
    config = {**CONFIG, **(settings or {}), "run": {"dir": str(folder), "seed": 1}}
    return _write(
        folder, "test", values, config, {"per_user.parquet": of_user, "per_impression.parquet": of_impression}
    )


def _write(folder: Path, split: str, values: dict, config: dict, tables: dict[str, dict[str, Any]]) -> Path:
    place = folder / "evaluation" / split
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(values))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / ATTEMPTS).write_text(json.dumps([[1000.0, 1090.0]]))
    line = {"step": 20, "kind": "train", "loss": 2.0, "events_per_second": 1234.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for name, table in tables.items():
        pq.write_table(pa.table(table), place / name)
    return folder
