"""The record of measured and predicted look-ups, and the cost model fitted to it."""

import json

import pytest
import torch

from cluster.plan.command import run
from sharding.planning.calibrate import calibrate
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.config.job import SILENT, Job
from trainer.errors import UserError
from trainer.loop.train import Training
from trainer.placement.plan import read_constants
from trainer.placement.record import RECORD_FILE, observations_in


def train(world: World, job: Job) -> None:
    torch.set_num_threads(1)
    Training(job, world, SILENT).run()


def job_of(tmp_path, **plan) -> Job:
    table = {"dim": 16, "sharding": "row_wise", "learning_rate": 0.05}
    return tiny_job(
        tmp_path / "run",
        tmp_path / "dataset",
        tables={"item": table},
        train={"max_steps": 6},
        plan={"measure": True, **plan},
    )


def test_the_record_has_measured_and_predicted_cost_of_every_table_phase_and_rank(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset")
    job = job_of(tmp_path)
    rank_pool.run(2, train, job)
    record = json.loads((job.run_dir / RECORD_FILE).read_text())
    assert record["plan"]["tables"]["item"]["sharding"] == "row_wise"
    measured, predicted = record["measured"], record["predicted"]
    num_trials = len(measured["num_ids"]["item"])
    assert num_trials == 3
    for phase in ("input", "lookup", "output", "gradient", "update"):
        for side in (measured, predicted):
            values = torch.tensor(side["seconds"]["item"][phase])
            assert values.shape == (num_trials, 2)
            assert (values > 0).all()
    # The prediction counts the buffers of a step besides what is held.
    for held, expected in zip(measured["memory_bytes"]["item"], predicted["memory_bytes"]["item"], strict=True):
        assert 0 < held < expected
    steps = record["steps"]
    assert steps["num_steps"] == 5  # the last is known when the next has agreed
    assert {part: len(values) for part, values in steps["seconds"].items()} == dict.fromkeys(
        ("look_up", "dense", "agree", "update"), 2
    )
    assert min(min(values) for values in steps["seconds"].values()) > 0
    assert min(steps["process_bytes"]) > 50e6

    # The prediction of plans for other numbers of workers can be fitted to it.
    config = tmp_path / "config.json"
    config.write_text(json.dumps(job.config_values))
    answer = run(str(config), ["devices=4"], [], None, str(tmp_path / "plan"), [str(job.run_dir)])
    assert answer.fitted is not None
    fitted = json.loads((tmp_path / "plan" / "calibration.json").read_text())
    assert read_constants(str(tmp_path / "plan" / "calibration.json")) == answer.fitted.calibration.constants
    assert answer.planned.request.topology.constants == answer.fitted.calibration.constants
    assert fitted["num_observations"] == 5 * num_trials * 2
    with pytest.raises(UserError, match="the runs were on cpu devices, and the plan is for cuda; add --device cpu"):
        run(str(config), ["device=cuda"], [], None, str(tmp_path / "plan"), [str(job.run_dir)])

    observations, topology = observations_in(job.run_dir)
    assert len(observations) == 5 * num_trials * 2
    result = calibrate(observations, topology.costs)
    before = sum(result.error_before.values())
    assert sum(result.error_after.values()) < before


def test_a_run_measures_once_for_a_plan_or_never(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset")
    job = job_of(tmp_path)
    rank_pool.run(1, train, job)
    path = job.run_dir / RECORD_FILE
    first = json.loads(path.read_text())["measured"]
    again = tiny_job(
        job.run_dir,
        job.dataset_dir,
        tables={"item": job.config_values["tables"]["item"]},
        train={"max_steps": 8},
        plan={"measure": True},
    )
    rank_pool.run(1, train, again)
    assert json.loads(path.read_text())["measured"] == first
    silent = tiny_job(tmp_path / "silent", job.dataset_dir, train={"max_steps": 2})
    rank_pool.run(1, train, silent)
    with pytest.raises(UserError, match="measured look-ups; train it first"):
        observations_in(silent.run_dir)
    with pytest.raises(UserError, match=r"nowhere: has no placement\.json"):
        run("configs/demo.toml", [], [], None, str(tmp_path / "plan"), ["nowhere"])
