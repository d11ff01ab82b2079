"""Evaluation by ranks: the metrics of the plain definitions over all impressions, at any number of ranks."""

from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.ranking.config import LabelConfig
from sharding.world import World
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.scored import plain_metrics, random_judged
from tests.trainer.evaluation.ranking.worlds import (
    LABELS,
    MAX_HISTORY,
    KnowsItems,
    Shown,
    evaluator_of,
    logits_of,
    random_shown,
    write_world,
)
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.ranking.evaluate import write_scores
from trainer.evaluation.ranking.judged import Areas, Judged, areas_of, count_scores
from trainer.evaluation.ranking.metrics import METRICS
from trainer.evaluation.ranking.names import PRIOR_IMPRESSIONS
from trainer.evaluation.ranking.over_ranks import areas_over_ranks

NAMES = [metric.name for metric in METRICS]
ALONE = World(0, 1, torch.device("cpu"))
BUY_AFTER_CLICK = LabelConfig(defined_when="click")
Row = dict[str, object]


@pytest.fixture(scope="module")
def shown() -> Shown:
    return random_shown()


@pytest.fixture(scope="module")
def world(tmp_path_factory, shown) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("world")
    return folder, write_world(folder, shown)


def expected_rows(shown: Shown, low: int, high: int) -> list[Row]:
    """By user and time: the impressions in [low, high) with what the model says of them."""
    found: list[Row] = []
    for user, item, time, click, buy in sorted(shown, key=lambda row: (row[0], row[2])):
        if low <= time < high:
            before = sum(u == user and t < time and c > 0 for u, _, t, c, _ in shown)
            seen = min(before, MAX_HISTORY)
            logit = logits_of(*(torch.tensor(value) for value in (item, time, seen))).item()
            found.append(
                {"user": user, "item": item, "time": time, "click": click, "buy": buy, "seen": seen, "logit": logit}
            )
    return found


def judged_of(rows: list[Row], label: str) -> Judged:
    users = {user: number for number, user in enumerate(sorted({str(row["user"]) for row in rows}))}
    logits = [row["logit"] if label == "click" else row["logit"] / 2 - 0.5 for row in rows]
    return Judged(
        np.asarray([users[str(row["user"])] for row in rows]),
        np.asarray(logits, dtype=np.float32).astype(np.float64),
        np.asarray([row[label] > 0 for row in rows]),
        np.ones(len(rows)),
    )


@pytest.mark.parametrize(("split", "low", "high"), [("validation", 60, 80), ("test", 80, 1000)])
def test_metrics_are_those_of_all_impressions_of_the_split(world, shown, split, low, high):
    rows = expected_rows(shown, low, high)
    found = evaluator_of(*world, ALONE, split).mean_metrics(KnowsItems())
    assert list(found) == [f"{metric}/{label}" for label in LABELS for metric in NAMES]
    for label in LABELS:
        for metric, value in plain_metrics(judged_of(rows, label)).items():
            assert found[f"{metric}/{label}"] == pytest.approx(value, rel=1e-8), (metric, label)


def test_a_single_label_has_metrics_by_their_plain_names(world):
    of_both = evaluator_of(*world, ALONE).mean_metrics(KnowsItems())
    found = evaluator_of(*world, ALONE, labels=("click",)).mean_metrics(KnowsItems(("click",)))
    assert found == {metric: of_both[f"{metric}/click"] for metric in NAMES}


def test_a_label_is_judged_where_it_is_defined(world, shown):
    rows = [row for row in expected_rows(shown, 80, 1000) if row["click"]]
    found = evaluator_of(*world, ALONE, buy=BUY_AFTER_CLICK).mean_metrics(KnowsItems())
    for metric, value in plain_metrics(judged_of(rows, "buy")).items():
        assert found[f"{metric}/buy"] == pytest.approx(value, rel=1e-8)
    everywhere = evaluator_of(*world, ALONE).mean_metrics(KnowsItems())
    entire = evaluator_of(*world, ALONE, buy=LabelConfig(defined_when="click", entire_space=True))
    assert entire.mean_metrics(KnowsItems()) == everywhere, "who buys has clicked"
    assert found["auc/click"] == everywhere["auc/click"]
    assert found["auc/buy"] != everywhere["auc/buy"]


def test_the_model_keeps_its_mode(world):
    model = KnowsItems()
    evaluator_of(*world, ALONE).mean_metrics(model)
    assert model.training


def test_each_batch_is_reported(world):
    evaluator = evaluator_of(*world, ALONE)
    reported = []
    evaluator.mean_metrics(KnowsItems(), lambda *progress: reported.append(progress))
    total = evaluator.held_out.num_batches()
    assert total > 1
    assert reported == [(done, total) for done in range(1, total + 1)]


def _metrics_of_rank(world: World, folder: Path, manifest: Manifest) -> dict[str, float]:
    return evaluator_of(folder, manifest, world, buy=BUY_AFTER_CLICK).mean_metrics(KnowsItems())


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_metrics_are_bit_for_bit_the_same_at_any_number_of_ranks(world, rank_pool: RankPool, world_size):
    alone = _metrics_of_rank(ALONE, *world)
    for found in rank_pool.run(world_size, _metrics_of_rank, *world):
        assert found == alone


def _areas_of_share(world: World, judged: Judged, share_of: np.ndarray) -> Areas:
    return areas_over_ranks(count_scores(judged.take(share_of == world.rank)), world)


@pytest.mark.parametrize("kind", ["many", "few levels", "all equal", "one rank has all", "positives only", "none"])
def test_areas_over_ranks_is_exact_however_scores_are_spread(rank_pool: RankPool, kind):
    levels = {"few levels": 3, "many": None}.get(kind, 12)
    judged = random_judged(9, count=2000, levels=levels)
    share_of = np.random.default_rng(1).integers(0, 3, judged.user.size)
    if kind == "all equal":
        judged = Judged(judged.user, np.zeros_like(judged.scores), judged.positive, judged.weight)
    elif kind == "one rank has all":
        share_of[:] = 1
    elif kind == "positives only":
        judged = judged.take(judged.positive)
        share_of = share_of[: judged.user.size]
    elif kind == "none":
        judged, share_of = judged.take(np.zeros(0, np.int64)), share_of[:0]
    expected = astuple(areas_of(count_scores(judged)))
    for found in rank_pool.run(3, _areas_of_share, judged, share_of):
        assert astuple(found) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


# Parts


def _write(world: World, folder: Path, manifest: Manifest, parts: Path) -> list[tuple[int, int]]:
    steps: list[tuple[int, int]] = []
    evaluator = evaluator_of(folder, manifest, world, buy=BUY_AFTER_CLICK)
    write_scores(evaluator, KnowsItems(), parts, lambda done, total: steps.append((done, total)))
    return steps


def read(parts: Path) -> list[Row]:
    rows = [row for path in parts.glob("rank-*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["row_id"], row["place"]))


def test_parts_hold_every_impression_of_the_split_with_its_prediction(world, shown, tmp_path):
    steps = _write(ALONE, *world, tmp_path)
    assert steps == [(k + 1, len(steps)) for k in range(len(steps))]
    rows = sorted(read(tmp_path), key=lambda row: (row["user"], row["time"], row["item"]))
    expected = sorted(expected_rows(shown, 80, 1000), key=lambda row: (row["user"], row["time"], row["item"]))
    trained = Counter(item for _, item, time, _, _ in shown if time < 60)
    assert len(rows) == len(expected)
    for row, plain in zip(rows, expected, strict=True):
        assert (row["user"], row["item"], row["time"]) == (plain["user"], plain["item"], plain["time"])
        assert (row["history_length"], row["item_impressions"]) == (plain["seen"], trained[row["item"]])
        assert row["logit.click"] == pytest.approx(plain["logit"])
        assert row["label.click"] == plain["click"]
        assert row["label.buy"] == plain["buy"] if plain["click"] else np.isnan(row["label.buy"])
        assert row["weight"] == 1.0


def test_baselines_are_smoothed_rates_of_training_impressions(world, shown, tmp_path):
    _write(ALONE, *world, tmp_path)
    trained = [row for row in shown if row[2] < 60]

    def logit(rate: float) -> float:
        return float(np.log(rate / (1 - rate)))

    for label, place, counted in (("click", 3, trained), ("buy", 4, [row for row in trained if row[3]])):
        overall = np.mean([row[place] for row in counted])

        def rate(rows, overall=overall, place=place):
            return (sum(r[place] for r in rows) + PRIOR_IMPRESSIONS * overall) / (len(rows) + PRIOR_IMPRESSIONS)

        for row in read(tmp_path)[::7]:
            item = logit(rate([r for r in counted if r[1] == row["item"]]))
            user = logit(rate([r for r in counted if r[0] == row["user"]]))
            assert row[f"logit.popularity.{label}"] == pytest.approx(item, rel=1e-5)
            assert row[f"logit.user_rate.{label}"] == pytest.approx(user, rel=1e-5)
            both = item + user - logit(overall)
            assert row[f"logit.item_and_user.{label}"] == pytest.approx(both, rel=1e-5)


def test_ranks_write_the_same_impressions_as_one(world, rank_pool: RankPool, tmp_path):
    _write(ALONE, *world, tmp_path / "one")
    steps = rank_pool.run(3, _write, *world, tmp_path / "three")
    assert len({len(of_rank) for of_rank in steps}) == 1
    assert len(list((tmp_path / "three").glob("rank-*.parquet"))) == 3
    one, three = read(tmp_path / "one"), read(tmp_path / "three")
    assert [{k: str(v) for k, v in row.items()} for row in three] == [
        {k: str(v) for k, v in row.items()} for row in one
    ]


def test_impressions_that_the_log_left_out_weigh_as_much_as_those_it_kept(tmp_path, shown):
    manifest = write_world(tmp_path, shown)
    manifest.labels["negative_sampling_rate"] = 0.25
    found = evaluator_of(tmp_path, manifest, ALONE, labels=("click",)).mean_metrics(KnowsItems(("click",)))
    judged = judged_of(expected_rows(shown, 80, 1000), "click")
    weighted = Judged(judged.user, judged.scores, judged.positive, np.where(judged.positive, 1.0, 4.0))
    for metric, value in plain_metrics(weighted).items():
        assert found[metric] == pytest.approx(value, rel=1e-8)
