"""Items described by features: sharded equals unsharded, and an item without any event gets a score that means something."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import check_config, job_of
from cluster.data.prepare import prepare
from sharding.world import World
from tests.support.rank_pool import RankPool
from tests.support.steps import observe_steps
from trainer.config.job import SILENT, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.evaluation.next_item.evaluate import make_evaluator
from trainer.loop.train import Training

NUM_GENRES, ITEMS_PER_GENRE = 6, 10
COLD = [f"g{genre}-new" for genre in range(NUM_GENRES)]  # known by the catalogue, and by events of the test period


def write_logs(folder: Path) -> None:
    """Every user stays with one genre; in the test period each of them takes the genre's new item."""
    random = np.random.default_rng(1)
    rows = []
    for user in range(240):
        genre = user % NUM_GENRES
        chosen = random.permutation(ITEMS_PER_GENRE)[:7]
        rows += [(user, f"g{genre}-{item}", time) for time, item in enumerate(chosen.tolist())]
        rows.append((user, f"g{genre}-{random.integers(ITEMS_PER_GENRE)}", 100))
        rows.append((user, COLD[genre], 200))
    users, items, times = zip(*rows, strict=True)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), folder / "events.parquet")
    names = [f"g{genre}-{item}" for genre in range(NUM_GENRES) for item in range(ITEMS_PER_GENRE)] + COLD
    genres = [name.split("-")[0] for name in names]
    content = [[float(genre == f"g{k}") for k in range(NUM_GENRES)] for genre in genres]
    pq.write_table(pa.table({"item_id": names, "genre": genres, "content": content}), folder / "items.parquet")


def job_at(folder: Path, features: list[str], run: str, **train: Any) -> Job:
    known = {"genre": {"kind": "categorical"}, "content": {"kind": "vector", "dim": NUM_GENRES}}
    items = {"path": str(folder / "logs/items.parquet"), "features": {name: known[name] for name in features}}
    return job_of(
        check_config(
            {
                "run": {"dir": str(folder / run), "dataset": str(folder / f"dataset-{'-'.join(features)}")},
                "logs": {"path": str(folder / "logs/events.parquet"), "items": items},
                "split": {"kind": "global_time", "validation_time": 100, "test_time": 200},
                "model": {"max_history": 8, "encoder": {"num_blocks": 1, "dropout": 0.0}},
                "tables": {"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.05}},
                "train": {
                    "epochs": 12, "evaluate_every_epochs": 4, "batch_size": 32, "optimizer": "adagrad", "learning_rate": 0.01,
                    "early_stopping": None, **train,
                },
                "evaluate": {"ks": [1, ITEMS_PER_GENRE + 1], "mask_seen": False},
            },
            "test",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    path = tmp_path_factory.mktemp("described")
    write_logs(path / "logs")
    for features in ([], ["genre"], ["genre", "content"]):
        job = job_at(path, features, "none")
        prepare(check_config(job.config_values, "test"), lambda _: None)
    return path


def train_and_test(world: World, job: Job) -> tuple[float, dict[str, float], list[int]]:
    """(last loss, metrics of the test split, best items of the first user)."""
    training = Training(job, world, SILENT)
    losses = []
    observe_steps(training, lambda batch, number, result: losses.append(result.loss))
    training.run()
    model, catalogue = training.built.model, training.built.catalogue
    evaluator = make_evaluator(
        job.dataset_dir,
        read_manifest(job.dataset_dir),
        catalogue,
        "test",
        job.config.evaluate,
        8,
        world,
        training.built.dynamic,
    )
    metrics = evaluator.mean_metrics(model)
    top = [ranked.top_items[0].tolist() for held, ranked in evaluator.rank_all(model, 3) if held.row_ids.size][:1]
    return losses[-1], metrics, top[0] if top else []


@pytest.mark.parametrize("features", [["genre"], ["genre", "content"]], ids=str)
def test_an_item_without_events_is_recommended_by_its_features(
    folder: Path, rank_pool: RankPool, features: list[str]
) -> None:
    job = job_at(folder, features, f"run-{len(features)}")
    _, metrics, top = rank_pool.run(1, train_and_test, job)[0]
    # Behind the ten items of the genre that were trained, and before the 55 others; by chance in 17 %.
    assert metrics["hr@11"] > 0.9
    manifest = read_manifest(job.dataset_dir)
    assert manifest.counts.num_items == NUM_GENRES * ITEMS_PER_GENRE
    values = read_vocabulary(job.dataset_dir, manifest, with_unknown=True).values.to_pylist()
    assert sorted(values[manifest.counts.num_items :]) == sorted(COLD)
    assert len({values[item - 1].split("-")[0] for item in top}) == 1  # all of the user's genre


def test_without_features_it_cannot_be(folder: Path, rank_pool: RankPool) -> None:
    _, metrics, _ = rank_pool.run(1, train_and_test, job_at(folder, [], "run-0"))[0]
    assert metrics["hr@11"] == 0.0


def test_any_number_of_ranks_trains_the_same_model(folder: Path, rank_pool: RankPool) -> None:
    """Feature tables are whole on one rank each, the item table in rows on all."""
    found = {
        size: rank_pool.run(size, train_and_test, job_at(folder, ["genre", "content"], f"ranks-{size}", epochs=2))[0]
        for size in (1, 2, 3)
    }
    for size in (2, 3):
        assert found[size][0] == pytest.approx(found[1][0], rel=1e-5)
        assert found[size][1] == pytest.approx(found[1][1], abs=1e-6)
