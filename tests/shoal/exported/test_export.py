"""An export has the scores of its model, from raw histories, with its folder only."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import shoal
from cluster.config.run_config import check_config, job_of
from cluster.data.prepare import prepare
from sharding.world import World
from tests.contracts.test_inputs import DYNAMIC, job_at, write_logs
from tests.support.rank_pool import RankPool
from trainer.config.job import SILENT, Job
from trainer.loop.train import Training


@dataclass(frozen=True)
class Run:
    """A trained run with its logs."""

    folder: Path
    events: pa.Table
    users: pa.Table


def train(world: World, job: Job) -> None:
    torch.set_num_threads(1)
    Training(job, world, SILENT).run()


def trained(job: Job, rank_pool: RankPool) -> Path:
    prepare(check_config(job.config_values, "test"), lambda _: None)
    rank_pool.run(1, train, job)
    (job.run_dir / "config.json").write_text(json.dumps(job.config_values))
    return job.run_dir


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory, ray_session: None, rank_pool: RankPool) -> Run:
    """Return a run with features of every kind, with times of requests, and with dynamic ids."""
    folder = tmp_path_factory.mktemp("recommender")
    write_logs(folder / "logs")
    run = trained(job_at(folder, "run", DYNAMIC), rank_pool)
    return Run(run, *(pq.read_table(folder / "logs" / f"{name}.parquet") for name in ("events", "users")))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory, ray_session: None, rank_pool: RankPool) -> Run:
    folder = tmp_path_factory.mktemp("ranker")
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(30), 12)
    item = random.integers(0, 20, users.size)
    shown = pa.table(
        {
            "user_id": users,
            "item_id": item,
            "time": 1_700_000_000 + random.integers(0, 10**6, users.size),
            "click": (random.random(users.size) < 0.2 + 0.03 * item).astype(np.float32),
            "device": [f"device-{n % 3}" for n in range(users.size)],
        }
    )
    people = pa.table({"user_id": np.arange(30), "age": random.random(30)})
    for name, table in (("events", shown), ("users", people)):
        pq.write_table(table, folder / f"{name}.parquet")
    values = {
        "run": {"dir": str(folder / "run"), "dataset": str(folder / "dataset"), "seed": 5},
        "logs": {
            "path": str(folder / "events.parquet"),
            "labels": ["click"],
            "history_label": "click",
            "features": {"device": {"kind": "categorical"}},
            "users": {"path": str(folder / "users.parquet"), "features": {"age": {"kind": "numeric"}}},
        },
        "split": {"kind": "global_time", "validation_time": 1_700_700_000, "test_time": 1_700_850_000},
        "model": {"task": "ranking", "kind": "din", "max_history": 4, "inputs": {"time": ["gap"]}},
        "tables": {"item": {"dim": 8, "learning_rate": 0.1}, "device": {"dim": 4}},
        "train": {"epochs": 2, "batch_size": 16, "early_stopping": None},
        "plan": {"measure": False},
    }
    return Run(trained(job_of(check_config(values, "test")), rank_pool), shown, people)


def test_an_export_recommends_as_its_model(recommender: Run, tmp_path: Path) -> None:
    manifest = shoal.export(recommender.folder, tmp_path / "export", index=False, quiet=True)
    assert manifest.parity["missed"] == []
    assert manifest.parity["same_top_10"] == 1.0
    model, exported = shoal.load(recommender.folder), shoal.load_export(tmp_path / "export")
    asked: dict[str, Any] = {"user_features": recommender.users, "at": 1_700_000_000 + 10**6}
    for more in ({}, {"items": [3, 5, 7, 11]}, {"filter_viewed": False}):
        expected = model.recommend(recommender.events, 5, **asked, **more)
        actual = exported.recommend(recommender.events, 5, **asked, **more)
        assert actual.drop_columns("score").equals(expected.drop_columns("score"))
        np.testing.assert_allclose(actual["score"], expected["score"], atol=1e-5)
    pairs = recommender.events.select(["user_id", "item_id"])
    actual, expected = (one.score(recommender.events, pairs, **asked)["score"] for one in (exported, model))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_user_scores_alone_as_in_any_batch(recommender: Run, tmp_path: Path) -> None:
    shoal.export(recommender.folder, tmp_path / "export", index=False, quiet=True)
    exported = shoal.load_export(tmp_path / "export")
    asked: dict[str, Any] = {"user_features": recommender.users, "at": 1_700_000_000 + 10**6}
    together = exported.user_vectors(recommender.events, **asked).to_pylist()
    for row in together[:6]:
        mine = recommender.events.filter(pa.compute.equal(recommender.events["user_id"], row["user_id"]))
        alone = exported.user_vectors(mine, **asked).to_pylist()
        np.testing.assert_allclose(alone[0]["vector"], row["vector"], atol=1e-5)
    # A single event is a size that tracing could exclude.
    model = shoal.load(recommender.folder)
    one, other = (of.user_vectors(recommender.events.slice(0, 1), **asked).to_pylist() for of in (exported, model))
    np.testing.assert_allclose(one[0]["vector"], other[0]["vector"], atol=1e-5)


def test_eight_bit_rows_keep_the_lists(recommender: Run, tmp_path: Path) -> None:
    full = shoal.export(recommender.folder, tmp_path / "full", index=False, quiet=True)
    small = shoal.export(recommender.folder, tmp_path / "small", index=False, quantise="int8", quiet=True)
    assert full.num_bytes["stored"] == full.num_bytes["float32"] == small.num_bytes["float32"]
    assert small.num_bytes["stored"] < 0.6 * full.num_bytes["float32"]
    assert small.parity["top_10_overlap"] >= 0.95
    assert small.parity["exported_ndcg@10"] == pytest.approx(small.parity["ndcg@10"], rel=0.005)
    assert 0.0 < small.parity["largest_relative_difference"] < 0.02
    asked: dict[str, Any] = {"user_features": recommender.users, "at": 1_700_000_000 + 10**6}
    best = [
        shoal.load_export(tmp_path / name).recommend(recommender.events, 1, **asked)["item_id"]
        for name in ("full", "small")
    ]
    assert np.mean(np.asarray(best[0]) == np.asarray(best[1])) > 0.9


def test_an_exported_ranker_has_the_probabilities_of_its_model(ranker: Run, tmp_path: Path) -> None:
    manifest = shoal.export(ranker.folder, tmp_path / "export", quiet=True)
    assert manifest.parity["missed"] == []
    model, exported = shoal.load(ranker.folder), shoal.load_export(tmp_path / "export")
    assert exported.labels == model.labels == ("click",)
    shuffled = ranker.events.take(np.random.default_rng(1).permutation(ranker.events.num_rows)[:100])
    for histories in (ranker.events, ranker.events.slice(0, 0)):  # with histories, and without any
        expected = model.score(histories, shuffled, user_features=ranker.users)
        actual = exported.score(histories, shuffled, user_features=ranker.users)
        assert actual.drop_columns("click").equals(expected.drop_columns("click"))
        np.testing.assert_allclose(actual["click"], expected["click"], atol=1e-5)


def test_an_export_is_loaded_without_ray_torchrec_and_the_dataset(recommender: Run, tmp_path: Path) -> None:
    shoal.export(recommender.folder, tmp_path / "export", index=False, quiet=True)
    code = """if True:
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("ray", "torchrec", "fbgemm_gpu", "tensorboard"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
        import shoal, pyarrow as pa
        model = shoal.load_export(sys.argv[1])
        columns = {"user_id": [1, 1], "item_id": [3, 5], "time": [1700000000, 1700000100]}
        columns |= {"word": [[1], None], "device": ["device-1", None], "price": [0.5, 0.1]}
        print(model.recommend(pa.table(columns), 3).num_rows)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "export")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "3"), result.stderr


@pytest.mark.parametrize("broken", ["program.pt2", "manifest.json"])
def test_a_damaged_export_is_refused(recommender: Run, tmp_path: Path, broken: str) -> None:
    shoal.export(recommender.folder, tmp_path / "export", index=False, quiet=True)
    (tmp_path / "export" / broken).write_bytes(b"{}")
    with pytest.raises(shoal.UserError, match=broken):
        shoal.load_export(tmp_path / "export")


def test_a_folder_with_other_files_is_not_replaced(recommender: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(shoal.UserError, match="holds no export that could be replaced"):
        shoal.export(recommender.folder, tmp_path, index=False, quiet=True)
