"""Synthetic logs, from prepare to evaluation: a model that knows the truth has the known probabilities.

Rankers that attend to histories learn what a ranker without histories cannot know.
"""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from benchmarks.oracle import compare
from cluster.config.run_config import Config, check_config, job_of
from cluster.data.prepare import prepare
from models.features.catalogue import Catalogue
from models.features.request import ItemRequest
from models.ranking.batch import RankingBatch
from models.ranking.config import LabelConfig
from models.ranking.reach import Reach
from sharding.world import World
from tests.support.prepared import made
from tests.support.rank_pool import RankPool
from trainer.config.evaluate import EvaluateConfig
from trainer.config.job import SILENT, Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.synthetic.impression_world import ImpressionConfig, build_impression_world
from trainer.data.synthetic.impressions import generate_impressions, logits
from trainer.evaluation.ranking import results, scored, tables
from trainer.evaluation.ranking.evaluate import RankingEvaluator, make_ranking_evaluator, write_scores
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

SETTINGS = ImpressionConfig(num_users=90, num_items=60, mean_impressions_per_user=40.0, users_per_file=50)
RECIPE = Path(__file__).parents[2] / "configs/synthetic_ranking.toml"
ALONE = World(0, 1, torch.device("cpu"))
LABELS = {"click": LabelConfig(), "conversion": LabelConfig(defined_when="click")}


class KnowsTheTruth:
    """Looks at candidates and at the history before them as a batch has it; what was shown where, it takes from the log."""

    training = False
    labels = tuple(LABELS)

    def __init__(self, folder: Path, manifest: Manifest, dataset: Path) -> None:
        self.world = build_impression_world(SETTINGS)
        self.items = np.asarray([-1, *read_vocabulary(dataset, manifest).values.to_pylist()], dtype=np.int32)
        shown = [row for path in folder.glob("impressions-*.parquet") for row in pq.read_table(path).to_pylist()]
        self.shown = {(row["item_id"], row["time"]): row for row in shown}
        assert len(self.shown) == len(shown), "an item is never shown to two users in one second"
        self.segment = {
            row["user_id"]: row["segment"]
            for path in folder.glob("users-*.parquet")
            for row in pq.read_table(path).to_pylist()
        }

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        return {}

    def logits(self, rows: dict[str, Tensor], batch: RankingBatch) -> Tensor:
        events = self.items[batch.lookup_ids[batch.history_index].numpy()]
        candidates = self.items[batch.candidate_ids.numpy()]
        found = np.zeros((candidates.size, 2), np.float32)
        for place, (item, time) in enumerate(zip(candidates.tolist(), batch.shown_at.tolist(), strict=True)):
            first = int(batch.layout.offsets[batch.history_of[place]])
            before = events[first : first + int(batch.history_end[place])][-SETTINGS.window :]
            recent = np.full((SETTINGS.window, 1), -1, np.int32)
            recent[: before.size, 0] = self.world.item_category[before]
            row = self.shown[item, time]
            slate = np.full((1, row["position"] + 1), item)  # as if it stood at every place down to its own
            segment, device = np.asarray([self.segment[row["user_id"]]]), np.asarray([row["device"]])
            of_labels = logits(SETTINGS, self.world, slate, segment, device, recent)
            found[place] = [of_label[0, -1] for of_label in of_labels]
        return torch.from_numpy(found)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known") / "logs"
    generate_impressions(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def config(log: Path) -> Config:
    """Return the recipe, with other folders."""
    return check_config({**recipe_of(log), "run": {"dataset": str(log.parent / "dataset")}}, "test")


def recipe_of(log: Path) -> dict[str, Any]:
    return tomllib.loads(RECIPE.read_text(encoding="utf-8").replace("logs/synthetic-ranking", str(log)))


@pytest.mark.usefixtures("ray_session")
def test_an_evaluation_of_the_truth_finds_the_optimum(log: Path, config: Config, tmp_path: Path) -> None:
    manifest = made(config)
    assert manifest.counts.test_targets > 300
    num_ids = manifest.num_item_rows
    evaluator: RankingEvaluator = make_ranking_evaluator(
        config.dataset_dir,
        manifest,
        Catalogue(num_ids, num_ids),
        "test",
        EvaluateConfig(batch_size=16),
        Reach(config.model.max_history, config.model.max_history),
        ALONE,
        DynamicTables({}, (), 1),
        LABELS,
    )
    model = KnowsTheTruth(log, manifest, config.dataset_dir)
    write_scores(evaluator, model, tmp_path / "parts", lambda done, total: None)
    found = scored.merge_parts(tmp_path / "parts", tuple(LABELS))
    summary = results.summarize(found, "test", "truth", manifest, config.model.max_history, 1)
    tables.write(tmp_path, summary, found, read_vocabulary(config.dataset_dir, manifest).values)
    rows = pq.read_table(tmp_path / "per_impression.parquet").to_pylist()
    assert len(rows) == manifest.counts.test_targets
    for row in rows:
        known = model.shown[row["item"], row["time"]]
        assert row["user"] == known["user_id"]
        assert row["probability/click"] == pytest.approx(known["click_probability"], rel=1e-5)
        assert row["probability/conversion"] == pytest.approx(known["conversion_probability"], rel=1e-5)
        assert row["label/click"] == known["click"]
    for name, values in compare(log, tmp_path).items():
        assert values["model"] == pytest.approx(values["best"], abs=1e-4), name
    assert summary.metrics["auc/click"] > summary.baselines["popularity"]["auc/click"]


# What attention over histories is for: learned from a log, by every ranker

LEARNED_FROM = ImpressionConfig(num_users=800, num_items=100, mean_impressions_per_user=60.0)
BY_PLACE = {"encoder": {"attention": {"bias": "position"}}}
RANKERS: dict[str, dict[str, object]] = {"din": {}, "bst": BY_PLACE, "hstu": BY_PLACE}


def validated(world: World, job: Job) -> dict[str, float]:
    torch.set_num_threads(1)
    Training(job, world, SILENT).run()
    return [line for line in read_metrics(job.run_dir / "metrics.jsonl") if line["kind"] == "validation"][-1]


@pytest.fixture(scope="module")
def learned_from(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    generate_impressions(LEARNED_FROM, folder / "logs")
    prepare(ranker_config(folder, "logistic", {}), lambda _: None)
    return folder


def ranker_config(folder: Path, kind: str, model: dict[str, object]) -> Config:
    given = recipe_of(folder / "logs")
    return check_config(
        {
            **given,
            "run": {"dir": str(folder / kind), "dataset": str(folder / "dataset")},
            "model": {**given["model"], "kind": kind, **model},
            "train": {**given["train"], "epochs": 5, "batch_size": 16, "learning_rate": 0.01, "schedule": "constant"},
            "plan": {"measure": False},
        },
        "test",
    )


@pytest.fixture(scope="module")
def without_history(learned_from: Path, rank_pool: RankPool) -> dict[str, float]:
    return rank_pool.run(1, validated, job_of(ranker_config(learned_from, "logistic", {})))[0]


@pytest.mark.parametrize("kind", RANKERS)
def test_a_ranker_learns_from_histories_what_no_other_feature_shows(
    learned_from: Path, without_history: dict[str, float], rank_pool: RankPool, kind: str
) -> None:
    found = rank_pool.run(1, validated, job_of(ranker_config(learned_from, kind, RANKERS[kind])))[0]
    assert without_history["auc/click"] > 0.67
    assert found["auc/click"] > without_history["auc/click"] + 0.015
    assert found["gauc/click"] > without_history["gauc/click"] + 0.015
    assert found["ne/click"] < without_history["ne/click"] - 0.01
    assert found["calibration/click"] == pytest.approx(1.0, abs=0.2)
