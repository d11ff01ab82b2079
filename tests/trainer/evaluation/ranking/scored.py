"""Random impressions with scores, and their metrics pair by pair and user by user."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.evaluation.ranking.judged import Judged
from trainer.evaluation.ranking.scored import Impressions


@dataclass(frozen=True)
class HeldRows:
    """Rows of impressions in memory, as one block."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        yield self.table.select(list(names))


def table_of(impressions: Impressions) -> pa.Table:
    """All impressions as one table."""
    return pa.concat_tables(impressions.rows.blocks(impressions.column_names)).combine_chunks()


def random_judged(
    seed: int, count: int = 300, num_users: int = 25, levels: int | None = 12, negative_weight: float = 1.0
) -> Judged:
    """Scores of few levels, so that many are tied (None: all differ); a few users have one impression, or one class."""
    random = np.random.default_rng(seed)
    user = np.sort(random.integers(0, num_users, count)) * 3
    scores = random.normal(size=count).astype(np.float32).astype(np.float64)
    if levels is not None:
        scores = np.round(scores * levels / 4) * 4 / levels
    positive = random.random(count) < 1 / (1 + np.exp(-scores))
    positive[user == 0] = True
    positive[user == 3] = False
    return Judged(user, scores, positive, np.where(positive, 1.0, negative_weight))


def plain_auc(judged: Judged) -> float:
    """Over all pairs of a positive and a negative."""
    won = lost = 0.0
    for score, positive, weight in zip(judged.scores, judged.positive, judged.weight, strict=True):
        if positive:
            for other, clicked, times in zip(judged.scores, judged.positive, judged.weight, strict=True):
                if not clicked:
                    share = 1.0 if score > other else 0.5 if score == other else 0.0
                    won += share * weight * times
                    lost += (1 - share) * weight * times
    return won / (won + lost) if won + lost else math.nan


def plain_average_precision(judged: Judged) -> float:
    """Positive by positive: the share of positives among the impressions with at least its score."""
    total = judged.weight[judged.positive].sum()
    mean = 0.0
    for score, weight in zip(judged.scores[judged.positive], judged.weight[judged.positive], strict=True):
        above = judged.scores >= score
        mean += weight / total * judged.weight[above & judged.positive].sum() / judged.weight[above].sum()
    return mean if total else math.nan


def plain_metrics(judged: Judged) -> dict[str, float]:
    """By their definitions."""
    weighted, total = 0.0, 0.0
    for user in sorted(set(judged.user.tolist())):
        own = judged.take(judged.user == user)
        if len(set(own.positive.tolist())) == 2:
            weighted += plain_auc(own) * own.weight.sum()
            total += own.weight.sum()
    chance = 1 / (1 + np.exp(-judged.scores))
    lost = -np.log(np.where(judged.positive, chance, 1 - chance))
    logloss = np.average(lost, weights=judged.weight)
    rate = np.average(judged.positive, weights=judged.weight)
    spread = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    return {
        "auc": plain_auc(judged),
        "pr_auc": plain_average_precision(judged),
        "gauc": weighted / total,
        "logloss": logloss,
        "ne": logloss / spread,
        "calibration": (judged.weight * chance).sum() / (judged.weight * judged.positive).sum(),
    }
