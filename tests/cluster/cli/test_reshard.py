"""`shoal checkpoint reshard`: a run resumes from its result as from the original, and names what prevents it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import SILENT, Job
from trainer.errors import UserError
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

AFTER = {"sharding": "data_parallel"}


def job_in(folder: Path, run: str, **table: Any) -> Job:
    item = {"dim": 8, "learning_rate": 0.1, "optimizer": "adagrad", **table}
    train = {"max_steps": 6, "epochs": 1}
    return tiny_job(folder / run, folder / "dataset", tables={"item": item}, train=train, checkpoint={"every_steps": 3})


def train(world: World, job: Job) -> dict[str, Any]:
    """Train to the end, and return the plan of the tables."""
    training = Training(job, world, SILENT)
    training.run()
    return json.loads(json.dumps(training.built.planned_tables.plan.values()))


def reshard(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["checkpoint", "reshard", *map(str, arguments)])


def losses(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"}


@pytest.fixture(scope="module")
def trained(rank_pool, tmp_path_factory) -> Path:
    """Return a folder with a run of two workers, and its checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_dataset(folder / "dataset")
    rank_pool.run(2, train, job_in(folder, "two", sharding="row_wise"))
    return folder


def test_a_run_resumes_from_the_new_checkpoint_as_from_the_original(trained, rank_pool):
    source = trained / "two" / "checkpoints" / "step_000000003"
    out = trained / "resharded" / "checkpoints"
    done = reshard(source, out, "--workers", 1, "--set", "tables.item.sharding=data_parallel", "--json")
    assert done.exit_code == 0, done.exception
    answer = json.loads(done.stdout)
    assert (answer["checkpoint"], answer["world_size"]) == (str(out / source.name), 1)
    assert answer["placed"] == "item data_parallel"
    manifest = checkpoint_folder.verify(out / source.name)
    assert manifest.config["tables"]["item"]["sharding"] == "data_parallel"

    shutil.copytree(source, trained / "loaded" / "checkpoints" / source.name)
    plans = [rank_pool.run(1, train, job_in(trained, run, **AFTER))[0] for run in ("resharded", "loaded")]
    assert manifest.plan == plans[0]
    last = [losses(trained / run) for run in ("resharded", "loaded")]
    assert last[0] == last[1]
    assert last[0].keys() == {4, 5, 6}
    files = [
        checkpoint_folder.read(trained / run / "checkpoints/step_000000006").files for run in ("resharded", "loaded")
    ]
    assert files[0]["__0_0.distcp"] == files[1]["__0_0.distcp"]  # every tensor, bit for bit
    whole = losses(trained / "two")
    assert last[0] == pytest.approx({step: whole[step] for step in (4, 5, 6)}, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tables.item.optimizer=rowwise_adagrad", "tables.item.optimizer: was 'adagrad', is 'rowwise_adagrad'"),
        ("tables.item.dim=16", "tables.item.dim: was 8, is 16"),
        ("tables.item.shard=row_wise", "shard"),
    ],
)
def test_settings_that_prevent_a_resume_are_named_and_nothing_is_written(trained, tmp_path, setting, message):
    done = reshard(trained / "two/checkpoints/step_000000003", tmp_path / "out", "--set", setting)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_resharded(trained, tmp_path):
    path = shutil.copytree(trained / "two/checkpoints/step_000000003", tmp_path / "step_000000003")
    content = bytearray((path / "__0_0.distcp").read_bytes())
    content[-1] ^= 1
    (path / "__0_0.distcp").write_bytes(content)
    done = reshard(path, tmp_path / "out", "--workers", 1)
    assert isinstance(done.exception, UserError)
    assert "__0_0.distcp is corrupt" in str(done.exception)
    assert not (tmp_path / "out").exists()
