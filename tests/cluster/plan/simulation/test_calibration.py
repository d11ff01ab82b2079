"""Constants that are fitted to runs: known ones are found again, and a trained run gives some."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config.run_config import Config
from cluster.plan.calibration import Fitted
from cluster.plan.simulation.calibration import fitted_constants, read_run
from cluster.plan.simulation.examples import dense_work
from cluster.plan.simulation.profiles import Constant, Constants, cpu_profile
from cluster.plan.simulation.step import Machine, step_seconds
from sharding.planning.calibrate import Calibration
from sharding.planning.topology import CONSTANTS
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import job_of, tiny_config
from trainer.config.job import SILENT, Job
from trainer.costing.matmul_peak import MatmulPeak, write_peak
from trainer.errors import UserError
from trainer.loop.train import Training

FITTED = Fitted((), "cpu", Calibration(CONSTANTS["cpu"], 1, {}, {}))
TRUE = replace(
    cpu_profile(8),
    peak_flops=Constant(2e11, ""),
    # The dense work takes 0.4 times as long as in the profile.
    efficiency=Constant(cpu_profile(8).efficiency.value / 0.4, ""),
    memory_factor=Constant(cpu_profile(8).memory_factor.value * 0.4, ""),
    step_seconds=Constant(5e-4, ""),
    block_seconds=Constant(2e-4, ""),
    busy_core_speed=Constant(0.8, ""),
    sum_latency_seconds=Constant(4e-3, ""),
)
# Widths, batches and blocks of runs on one worker.
ALONE = ((8, 8, 1), (64, 32, 2), (256, 8, 4), (16, 256, 2), (128, 64, 1), (8, 8, 8))


def run_folder(
    folder: Path, dataset: Path, dim: int, batch: int, workers: int, constants: Constants, num_blocks: int = 1
) -> str:
    """Write the run folder of a training with the step times that the constants predict; return its path."""
    config = tiny_config(
        folder,
        dataset,
        model={"encoder": {"kind": "sasrec", "num_blocks": num_blocks, "dropout": 0.0}},
        tables={"item": {"dim": dim}},
        train={"batch_size": batch},
        cluster={"num_workers": workers},
    )
    folder.mkdir(parents=True)
    write_config(folder, config)
    # A first peak and time, so that the run can be read.
    write_steps(folder, workers, 0.5, 0.5, 1.0)
    run = read_run(str(folder), FITTED)
    machine = Machine(constants, run.planned.request.topology, 1)
    work = dense_work(config, run.examples, workers)
    parts = step_seconds(config, run.planned, run.examples, work, machine)
    # The clock of a step counts what each block costs as part of the dense work.
    dense = parts.dense + constants.block_seconds.value * work.num_blocks * machine.slowdown
    write_steps(folder, workers, dense, parts.total - dense, constants.peak_flops.value * workers)
    return str(folder)


def write_config(folder: Path, config: Config) -> None:
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))


def write_steps(folder: Path, workers: int, dense: float, others: float, flops: float) -> None:
    steps = {"num_steps": 5, "seconds": {"dense": [dense] * workers, "update": [others] * workers}}
    (folder / "placement.json").write_text(json.dumps({"steps": steps}))
    write_peak(folder, MatmulPeak(flops, workers, 1024, "float32"))


def test_known_constants_are_found_again(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    runs = [
        run_folder(tmp_path / f"run{number}", tmp_path / "dataset", dim, batch, 1, TRUE, blocks)
        for number, (dim, batch, blocks) in enumerate(ALONE)
    ]
    runs.append(run_folder(tmp_path / "pair", tmp_path / "dataset", 64, 64, 2, with_all_cores_busy(TRUE)))
    profile = replace(cpu_profile(2), cores_per_host=Constant(2, ""))
    constants = fitted_constants(runs, profile, FITTED)
    for name in ("peak_flops", "efficiency", "memory_factor", "step_seconds", "block_seconds", "busy_core_speed"):
        assert constants.number(name) == pytest.approx(TRUE.number(name), rel=0.05), name
    assert constants.sum_latency_seconds.value == pytest.approx(TRUE.sum_latency_seconds.value, rel=0.25)
    assert constants.efficiency.source.startswith("fitted to ")


def with_all_cores_busy(constants: Constants) -> Constants:
    """Return the constants of a host with two cores, which two workers fill."""
    return replace(constants, cores_per_host=Constant(2, ""))


def test_runs_on_several_workers_alone_give_the_peak_only(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    run = run_folder(tmp_path / "pair", tmp_path / "dataset", 64, 64, 2, TRUE)
    constants = fitted_constants([run], cpu_profile(8), FITTED)
    changed = {name for name, one in asdict(constants).items() if one != asdict(cpu_profile(8))[name]}
    assert changed == {"peak_flops"}


def test_a_run_without_measured_steps_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no record of steps"):
        read_run(str(tmp_path), FITTED)


def train(world: World, job: Job) -> None:
    torch.set_num_threads(1)
    Training(job, world, SILENT).run()


@pytest.mark.ranks
def test_a_trained_run_gives_constants_to_the_command(rank_pool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    config = tiny_config(
        tmp_path / "run",
        tmp_path / "dataset",
        train={"max_steps": 6},
        plan={"measure": True},
        cluster={"num_workers": 1},
    )
    rank_pool.run(1, train, job_of(config))
    write_config(tmp_path / "run", config)
    arguments = ["--simulate", "--workers", "1,2", "--calibrate", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "run" / "config.json"), "--json", *arguments])
    assert done.exit_code == 0, done.exception
    values = json.loads(done.stdout)
    assert values["constants"]["efficiency"]["source"] == f"fitted to {tmp_path / 'run'}"
    assert 0.0 < values["constants"]["efficiency"]["value"] <= 1.0
    assert [point["workers"] for point in values["points"]] == [1, 2]
    on_gpus = CliRunner().invoke(app, ["plan", str(tmp_path / "run" / "config.json"), "--device", "cuda", *arguments])
    assert "the runs were on cpu devices, and the plan is for cuda" in str(on_gpus.exception)
