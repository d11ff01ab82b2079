"""All stages of a run on an object storage in memory, in one process: trained, resumed, evaluated, recommended from, explained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import Config, check_config
from cluster.data import prepare as preparing
from cluster.driver import existing_run
from cluster.driver.all_runs import read_runs
from cluster.driver.evaluate_stage import run_evaluate_stages
from cluster.driver.explain_stage import run_explain_stage
from cluster.driver.prepare_stage import run_prepare_stage
from cluster.driver.progress import View, plain_console
from cluster.driver.rank_logs import DriverLog, follow_log, log_path
from cluster.driver.recommend_stage import run_recommend_stage
from cluster.driver.run_folder import open_run
from cluster.driver.run_lock import holder_of, locked
from cluster.driver.status import read_status
from cluster.driver.stop_request import is_answered, request_stop, withdraw
from cluster.driver.train_stage import run_train_stage
from cluster.ray_cluster.task_pool import TaskLimit
from sharding.world import World
from tests.support.object_store import Store, memory_store
from tests.support.rank_pool import RankPool
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Channel
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.errors import UserError
from trainer.explanation.command.request import Options as ExplainOptions
from trainer.recommend.folder import read_recommendations
from trainer.recommend.request import Options
from trainer.restart_log import note_restart, read_restarts
from trainer.storage.objects.paths import ObjectPath, path_of

RUNS = "s3://bucket/runs"


def config_at(logs: Path, run: str, epochs: int) -> Config:
    values = {
        "run": {"dir": run},
        "logs": {"path": f"{logs}/events-*.parquet"},
        "model": {"max_history": 10},
        "tables": {"item": {"dim": 8}},
        "train": {"epochs": epochs, "batch_size": 16, "sample_log": True, "log_every_steps": 1},
        "checkpoint": {"every_steps": 2},
        "evaluate": {"baselines": ["popularity"]},
        "cluster": {"num_workers": 1, "prepare_tasks": 1},
    }
    return check_config(values, "test")


@dataclass
class Alone:
    """Workers of a run: this process, the only rank of a group."""

    world: World
    run_name: str = "test"

    def run(self, function: Callable[..., Any], argument: Any, on_event: Any, stop: Any = None) -> list[Any]:
        return [function(argument, self.world, Channel(send=lambda event: None, stop_requested=lambda: False))]


def stages(config: Config, world: World) -> dict[str, Any]:
    """Run all stages under the lock, as the driver does. Return what they return."""
    workers: Any = Alone(world)
    with locked(config.run_dir), View(plain_console(stderr=False)) as view, DriverLog(config.run_dir) as log:
        view.keep_lines(log.write)
        open_run(config)
        manifest = run_prepare_stage(config, view)
        outcome = run_train_stage(config, manifest, workers, view)
        evaluated = run_evaluate_stages(config, ["test"], None, workers, view)
        recommended = run_recommend_stage(config, Options(k=3), None, None, workers, view)
        explained = run_explain_stage(config, ExplainOptions(sample=3), None, None, workers, view)
    return {"step": outcome.step, "results": evaluated["test"][0], "recommended": recommended, "explained": explained}


def whole_run(world: World, logs: Path, local: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, memory_store(patch) as store:

        def run_tasks(
            task: Callable[..., Any], job: Any, numbers: list[int], limit: TaskLimit
        ) -> Iterator[tuple[int, Any]]:
            for number in numbers:
                yield number, task(job, number)

        patch.setattr(preparing, "run_tasks", run_tasks)
        run = path_of(f"{RUNS}/demo")
        stages(config_at(logs, str(run), 1), world)
        resumed = stages(config_at(logs, str(run), 2), world)
        at_once = stages(config_at(logs, str(local), 2), world)
        check_equal_to_local(run, local, resumed, at_once)
        check_again(config_at(logs, str(run), 2), world, store)
        check_tools(config_at(logs, str(run), 2), store)


def check_equal_to_local(run: Path, local: Path, done: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare a run that was resumed on the storage with one at once on a local disk."""
    assert done["step"] == expected["step"]
    for name in ("sample_log/rank-0.jsonl", "recommendations/part-00000.parquet", "evaluation/test/per_user.parquet"):
        assert (run / name).read_bytes() == (local / name).read_bytes(), name
    assert done["results"].metrics == expected["results"].metrics
    newest = [checkpoint_folder.committed(folder / "checkpoints")[0] for folder in (run, local)]
    hashes = [
        {Path(k).name: v[checkpoint_folder.FILE_HASH] for k, v in checkpoint_folder.verify(n).files.items()}
        for n in newest
    ]
    assert hashes[0]["__0_0.distcp"] == hashes[1]["__0_0.distcp"]
    kept = [path.name for path in checkpoint_folder.committed(run / "checkpoints")]
    assert kept == [path.name for path in checkpoint_folder.committed(local / "checkpoints")]


def check_again(config: Config, world: World, store: Store) -> None:
    """Run the stages of a finished run again, and see nothing change."""
    before = {name: data for name, data in store.objects.items() if "driver.log" not in name and "state" not in name}
    stages(config, world)
    assert {name: store.objects[name][0] for name in before if "config.json" not in name} == {
        name: data for name, (data, _) in before.items() if "config.json" not in name
    }


def check_tools(config: Config, store: Store) -> None:
    """Look at the run, stop it, and copy it."""
    run = config.run_dir
    (line,) = read_runs(path_of(RUNS))
    assert (line.run, line.stage) == ("demo", "explain done")
    status = read_status(run)
    assert status.checkpoints[0] == checkpoint_folder.name_of(line.step or 0)
    assert status.reports == [f"{run}/evaluation/test/report.html"]
    assert "../../dataset/card.html" in (run / "evaluation/test/report.html").read_text()
    (text,) = follow_log(run, log_path(run, None), follow=False, tail=2)
    assert len(text.splitlines()) == 2
    assert read_recommendations(run / "recommendations") is not None
    note_restart(run, "failure", "rank 1 died", "trace")
    assert [restart.text for restart in read_restarts(run)] == ["rank 1 died"]
    with pytest.raises(UserError, match="nothing to stop"):
        request_stop(run)
    with locked(run):
        holder = holder_of(run)
        assert request_stop(run) == holder
        assert not is_answered(run)
        withdraw(run)
    with pytest.raises(UserError, match="this run is finished"):
        existing_run.describe_existing(config, "train")
    copied = existing_run.fork(config, path_of(f"{RUNS}/copy"))
    assert checkpoint_folder.to_evaluate(copied.run_dir / "checkpoints", print).manifest.step == line.step
    assert isinstance(copied.dataset_dir, ObjectPath)
    assert [n for n in store.names("bucket/runs/") if ".attempt" in n or "/parts/" in n or ".lease/" in n] == []


def test_a_run_on_an_object_storage_equals_a_local_one(rank_pool: RankPool, tmp_path: Path) -> None:
    generate(SyntheticConfig(num_users=60, num_items=150, mean_events_per_user=12.0), tmp_path / "logs")
    rank_pool.run(1, whole_run, tmp_path / "logs", tmp_path / "run", deadline=300.0)


def test_a_folder_with_other_objects_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_store(monkeypatch):
        run = path_of(f"{RUNS}/demo")
        (run / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="holds files that are not of a run"), locked(run):
            pass


def test_a_run_that_is_in_use_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.storage.objects.lease.RENEW_SECONDS", 0.05)
    with memory_store(monkeypatch):
        run = path_of(f"{RUNS}/demo")
        with locked(run), pytest.raises(UserError, match=r"in use by process \d+ on "), locked(run):
            pass
