"""The recipe in the form of MLPerf's DLRMv4 (docs/dlrmv4.md): its settings, and exact resumption within a day.

The recipe runs on a small log, with the settings of the file except folders, sizes and times.
"""

import json
import os
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import Config, check_config, job_of, load_config
from cluster.plan.command import make
from cluster.plan.request import read_request
from sharding.world import World
from tests.contracts.test_days import progressive
from tests.contracts.test_resume import train as train_and_fingerprint
from tests.contracts.test_world_size import global_batches, losses
from tests.support.prepared import made
from tests.support.rank_pool import RankPool
from trainer.config.job import SILENT, Job
from trainer.data.stream.examples import WINDOW_STEP
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.impressions import generate_impressions
from trainer.fault_points import VARIABLE
from trainer.loop.train import Training

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/dlrmv4_synthetic.toml"
DAY = 86_400
BEGIN = 1_700_006_400  # midnight
# Six days, of which four train: 11 steps of up to eight users. Days end after steps 1, 4, 8 and 11.
LOG = ImpressionConfig(num_users=40, num_items=40, mean_impressions_per_user=30.0, time_span_seconds=6 * DAY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dlrmv4")
    generate_impressions(LOG, folder / "logs")
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path, ray_session: None) -> Path:
    made(config_in(folder, "any"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(rank_pool: RankPool, prepared: Path) -> Callable[[int], list[Any]]:
    """Return a function that trains the recipe in whole-N on N ranks, once, and returns outcomes and fingerprints."""
    done: dict[int, list[Any]] = {}

    def run(world_size: int) -> list[Any]:
        if world_size not in done:
            job = job_in(prepared, f"whole-{world_size}")
            done[world_size] = rank_pool.run(world_size, train_and_fingerprint, job)
        return done[world_size]

    return run


def config_in(folder: Path, run: str) -> Config:
    """Return the recipe with small batches, and other folders and times."""
    values: dict[str, Any] = tomllib.loads(
        RECIPE.read_text(encoding="utf-8").replace("logs/synthetic-ranking", str(folder / "logs"))
    )
    values["run"] = {"dir": str(folder / run), "dataset": str(folder / "dataset")}
    values["split"] |= {"validation_time": BEGIN + 4 * DAY, "test_time": BEGIN + 5 * DAY}
    values["train"] |= {"batch_size": 8, "log_every_steps": 1, "warmup_steps": 10}
    # Written before training continues, so that a rank that dies later has it.
    values["checkpoint"]["background"] = False
    values["plan"] = {"measure": False}
    return check_config(values, "test")


def job_in(folder: Path, run: str) -> Job:
    return job_of(config_in(folder, run))


def die_at(world: World, job: Job, step: int, faults: str) -> None:
    """Train until all ranks fail before they take the batch after `step`."""
    if world.is_first:
        actions = [
            {"name": f"rank {rank}", "point": "data", "rank": rank, "step": step, "action": "exception"}
            for rank in range(world.world_size)
        ]
        Path(faults).write_text(json.dumps(actions), encoding="utf-8")
    world.gather_objects(None)  # the others read the file
    os.environ[VARIABLE] = faults
    try:
        Training(job, world, SILENT).run()
    finally:
        del os.environ[VARIABLE]


def day_of_newest_checkpoint(run_dir: Path) -> dict[str, Any]:
    newest = max((run_dir / "checkpoints").glob("step_*"))
    days: dict[str, Any] = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))["days"]
    return days


def sample_logs(run_dir: Path, world_size: int) -> list[str]:
    return [(run_dir / "sample_log" / f"rank-{rank}.jsonl").read_text(encoding="utf-8") for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_a_run_that_ended_within_a_day_resumes_bit_identically(
    rank_pool, prepared, undisturbed, tmp_path, world_size, ending
):
    """Weights, optimizer states, the ordered log of samples, losses and the evaluations of the days are the same."""
    whole, pieces = f"whole-{world_size}", f"{ending}-{world_size}"
    expected = undisturbed(world_size)
    assert expected[0][0].reason == "finished"
    if ending == "killed":
        # The newest checkpoint is that of step 5, so two steps are lost.
        with pytest.raises(RuntimeError, match="injected fault"):
            rank_pool.run(world_size, die_at, job_in(prepared, pieces), 7, str(tmp_path / "faults.json"))
    else:
        assert rank_pool.run(world_size, train_and_fingerprint, job_in(prepared, pieces), 7)[0][0].reason == "stopped"
    assert day_of_newest_checkpoint(prepared / pieces)["trained"] > 0, "the run was to end within a day"
    assert rank_pool.run(world_size, train_and_fingerprint, job_in(prepared, pieces)) == expected
    assert sample_logs(prepared / pieces, world_size) == sample_logs(prepared / whole, world_size)
    assert losses(prepared / pieces).tolist() == losses(prepared / whole).tolist()
    one, other = ([{**row, "seconds": 0} for row in progressive(prepared / run)] for run in (whole, pieces))
    assert one == other
    assert [row["day"] - BEGIN // DAY for row in one] == [1, 2, 3, 4]


def test_on_other_numbers_of_workers_each_user_is_trained_once_a_day_in_the_same_batches(
    rank_pool, prepared, undisturbed
):
    undisturbed(1)
    assert rank_pool.run(2, train_and_fingerprint, job_in(prepared, "moved"), 7)[0][0].reason == "stopped"
    assert day_of_newest_checkpoint(prepared / "moved")["trained"] > 0
    first = global_batches(prepared / "moved", 2)
    rank_pool.run(3, train_and_fingerprint, job_in(prepared, "moved"))
    batches = global_batches(prepared / "moved", 3)
    assert first == batches[:7]
    assert batches == global_batches(prepared / "whole-1", 1)
    trained = [example for batch in batches for example in batch]
    assert set(Counter(trained).values()) == {1}
    days = [example // WINDOW_STEP for example in trained]
    assert days == sorted(days), "days are trained in order"
    assert len(set(days)) == 4


def test_the_recipe_has_the_settings_that_the_reference_fixes() -> None:
    config = load_config(RECIPE)
    encoder, train = config.model.encoder, config.train
    assert (encoder.kind, encoder.num_blocks, encoder.attention.num_heads) == ("hstu", 3, 4)
    assert encoder.attention.normalisation == "silu"
    tables = config.tables.values()
    assert {(table.dim, table.optimizer, table.eps) for table in tables} == {(64, "rowwise_adagrad", 1e-8)}
    assert {table.learning_rate for table in tables} == {0.05}
    assert (train.optimizer, train.betas, train.eps, train.weight_decay) == ("adamw", [0.95, 0.999], 1e-8, 0.0)
    assert (train.schedule, train.schedule_tables, train.clip_norm) == ("constant", True, 1.0)
    assert train.warmup_steps > 0
    assert train.days is not None
    assert train.days.length == "1d"
    assert train.days.evaluate_next
    assert {name: label.loss for name, label in config.model.labels.items()} == {"click": "bce"}


@pytest.mark.parametrize("devices", [8, 64])
def test_the_plans_hold_the_tables_of_the_reference_in_the_memory_of_the_devices(devices: int) -> None:
    request = read_request(str(ROOT / f"configs/plans/dlrmv4_{devices}gpu.toml"), [], {})
    assert len(request.loads) == 11
    assert sum(load.num_rows for load in request.loads) == 293_051_712
    assert {(load.dim, load.optimizer) for load in request.loads} == {(512, "rowwise_adagrad")}
    assert request.topology.num_devices == devices
    planned = make(request)
    assert {table.kernel for table in planned.plan.tables.values()} == {"fused"}
