"""Metrics over ranks that keep scores in files and exchange them in many small rounds: those of all impressions together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ranking.config import LabelConfig
from sharding.world import World
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.scored import random_judged
from tests.trainer.evaluation.ranking.worlds import KnowsItems, evaluator_of, random_shown, write_world
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation import spooled
from trainer.evaluation.ranking import over_ranks
from trainer.evaluation.ranking.judged import Areas, Judged, MergedCounts, ScoreCounts, areas_of, count_scores
from trainer.evaluation.ranking.over_ranks import areas_over_ranks

ALONE = World(0, 1, torch.device("cpu"))
ROUND = 8  # counts that a rank sends at a time, to all ranks together
BLOCK = 16
BUY_AFTER_CLICK = LabelConfig(defined_when="click")


@contextmanager
def small_rounds() -> Iterator[list[int]]:
    """Send few counts in a round, and keep all arrays in files. Yields a list that receives an entry per round."""
    rounds: list[int] = []
    add = MergedCounts.add

    def counted(merged: MergedCounts, counts: ScoreCounts) -> None:
        rounds.append(counts.scores.size)
        add(merged, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over_ranks, "ROUND", ROUND)
        patch.setattr(spooled, "BLOCK", BLOCK)
        patch.setattr(spooled, "LEAST_BYTES", 0)
        patch.setattr(MergedCounts, "add", counted)
        yield rounds


def _areas_of_share(world: World, judged: Judged, share_of: np.ndarray) -> tuple[Areas, list[int]]:
    with small_rounds() as rounds:
        counts = count_scores(judged.take(share_of == world.rank))
        assert isinstance(counts.scores, np.memmap) or not counts.scores.size
        return areas_over_ranks(counts, world), rounds


def _spread(kind: str, world_size: int) -> tuple[Judged, np.ndarray]:
    """Return impressions, and the rank of each."""
    judged = random_judged(9, count=1200, levels={"few levels": 3, "many ties": 60}.get(kind))
    share_of = np.random.default_rng(1).integers(0, world_size, judged.user.size)
    if kind == "one rank has most":
        share_of[100:] = world_size - 1
    elif kind == "one rank has none":
        share_of[:] = 0
    elif kind == "positives only":
        share_of = share_of[judged.positive]
        judged = judged.take(judged.positive)
    return judged, share_of


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "kind", ["all differ", "many ties", "few levels", "one rank has most", "one rank has none", "positives only"]
)
def test_areas_are_those_of_all_impressions_bit_for_bit(rank_pool: RankPool, kind: str, world_size: int) -> None:
    judged, share_of = _spread(kind, world_size)
    expected = astuple(areas_of(count_scores(judged)))
    for areas, rounds in rank_pool.run(world_size, _areas_of_share, judged, share_of):
        assert astuple(areas) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
        assert max(rounds) <= ROUND // world_size * world_size, "a rank receives few counts at a time"
        if kind not in ("many ties", "few levels"):
            assert len(rounds) > 20


def test_areas_of_fractional_weights_agree_up_to_rounding(rank_pool: RankPool) -> None:
    """Their sums are rounded, so they depend on the order of addition."""
    judged = random_judged(9, count=1200, levels=60, negative_weight=10 / 3)
    share_of = np.random.default_rng(1).integers(0, 3, judged.user.size)
    expected = astuple(areas_of(count_scores(judged)))
    for areas, _ in rank_pool.run(3, _areas_of_share, judged, share_of):
        assert astuple(areas) == pytest.approx(expected, abs=0, rel=1e-12)


def _metrics_of_rank(world: World, folder: Path, manifest: Manifest) -> dict[str, float]:
    with small_rounds():
        return evaluator_of(folder, manifest, world, buy=BUY_AFTER_CLICK).mean_metrics(KnowsItems())


def test_metrics_during_training_are_the_same_bits_at_any_number_of_ranks(rank_pool: RankPool, tmp_path: Path) -> None:
    manifest = write_world(tmp_path, random_shown())
    plain = evaluator_of(tmp_path, manifest, ALONE, buy=BUY_AFTER_CLICK).mean_metrics(KnowsItems())
    assert _metrics_of_rank(ALONE, tmp_path, manifest) == plain
    for world_size in (2, 3):
        assert rank_pool.run(world_size, _metrics_of_rank, tmp_path, manifest) == [plain] * world_size
