"""The stages after prepare as the driver runs them, with the real trainer in one process in the place of Ray's workers.

What is done is not done again, what changed is, and what is evaluated is what was asked for.
"""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.config.run_config import Config
from cluster.driver import driver
from cluster.driver.progress import View
from cluster.driver.stage_record import StageRecord
from cluster.errors import RunFailedError, StoppedError, WorkersFailedError
from cluster.workers.group import OnEvent
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config
from tests.support.rank_pool import RankPool
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Channel
from trainer.data.dataset.splits import Split
from trainer.errors import UserError
from trainer.metrics_log import read_metrics


@dataclass(frozen=True)
class InProcess:
    """Does works at once, in this process. With a failure it fails as a group of workers does."""

    world: World
    failure: Exception | None = None

    def run(self, function: Any, argument: Any, on_event: OnEvent, stop: threading.Event | None = None) -> list[Any]:
        if self.failure is not None:
            raise self.failure
        asked = stop or threading.Event()
        return [function(argument, self.world, Channel(send=on_event, stop_requested=asked.is_set))]


@dataclass(frozen=True)
class Answer:
    """What a command answered: its result, or the error as (type, message); what it said; the status of every stage."""

    result: Any
    error: tuple[str, str] | None
    said: str
    stages: dict[str, str]


def command(world: World, config: Config, name: str, arguments: Sequence[Any] = (), **fault: Any) -> Answer:
    """Run driver.NAME(config, *arguments, view). fault: failure, of workers; terminate, send SIGTERM when training begins."""
    console = Console(record=True, width=400, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115

    class Watched(View):
        def on_event(self, event: dict[str, Any]) -> None:
            super().on_event(event)
            if fault.get("terminate") and event["kind"] == "plan":
                os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def opened(config: Config, view: View) -> Iterator[tuple[None, InProcess]]:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        yield None, InProcess(world, fault.get("failure"))

    result, error = None, None
    with Watched(console) as view, mock.patch.object(driver, "_opened", opened):
        try:
            result = getattr(driver, name)(config, *arguments, view)
        except (UserError, StoppedError, RunFailedError) as caught:
            error = type(caught).__name__, str(caught)
    stages = {stage: entry["status"] for stage, entry in StageRecord(config.run_dir).read()["stages"].items()}
    return Answer(result, error, console.export_text(), stages)


SETTINGS: dict[str, dict[str, Any]] = {
    "train": {
        "epochs": 3,
        "evaluate_every_epochs": 1,
        "ema_decay": 0.9,
        "learning_rate": 0.05,
        "early_stopping": {"metric": "ndcg@10", "patience": 9},
    },
    "checkpoint": {"every_steps": 5, "keep": 9},
    "cluster": {"num_workers": 1},
}


def config_in(tmp_path: Path, dataset: str = "dataset", **sections: dict[str, Any]) -> Config:
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {**SETTINGS, **sections}}
    return tiny_config(tmp_path / "run", tmp_path / dataset, **merged)


@pytest.fixture(scope="module")
def trained_run(rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    folder = tmp_path_factory.mktemp("trained")
    tiny_dataset(folder / "dataset")
    tiny_dataset(folder / "other", seed=9)
    return folder, rank_pool.run(1, command, config_in(folder), "run_train")[0]


@pytest.fixture
def trained(trained_run: tuple[Path, Answer]) -> Path:
    return trained_run[0]


def evaluated(rank_pool: RankPool, config: Config, split: Split = "test", name: str | None = None) -> Answer:
    answer: Answer = rank_pool.run(1, command, config, "run_evaluate", (split, name))[0]
    return answer


def test_training_is_recorded_with_its_plan(trained_run: tuple[Path, Answer]) -> None:
    folder, answer = trained_run
    assert answer.error is None
    assert answer.stages == {"train": "done"}
    assert json.loads((folder / "run/plan.json").read_text())["tables"]["item"]["sharding"] == "row_wise"
    ended = re.search(
        r"train: ended at step (\d+) in [\d.]+ s, [\d,]+ events/s in steps; best checkpoint at step", answer.said
    )
    assert ended is not None
    assert int(ended[1]) == answer.result.step
    assert "train: building the model and sharding its tables ..." in answer.said


def test_the_stage_reports_the_validation_metrics_of_the_averaged_weights(rank_pool: RankPool, trained: Path) -> None:
    lines = {r["step"]: r for r in read_metrics(trained / "run/metrics.jsonl") if r["kind"] == "validation"}
    for step in (8, 24):
        name = checkpoint_folder.name_of(step)
        results, _ = evaluated(rank_pool, config_in(trained), "validation", name).result
        assert results.checkpoint == name
        for metric in ("hr@5", "ndcg@10", "mrr"):
            assert results.metrics[metric] == pytest.approx(lines[step][metric], abs=1e-9), (step, metric)
    assert lines[8]["ndcg@10"] != lines[24]["ndcg@10"]


def test_each_split_is_evaluated_as_itself_and_once(rank_pool: RankPool, trained: Path) -> None:
    config = config_in(trained, evaluate={"ks": [3, 10]})
    both = rank_pool.run(1, command, config, "run_prepared", (["validation", "test"],))[0]
    assert "train: done before" in both.said
    _, results = both.result
    assert {split: value.split for split, value in results.items()} == {"validation": "validation", "test": "test"}
    tables = {
        split: {
            row["user"]: row for row in pq.read_table(trained / f"run/evaluation/{split}/per_user.parquet").to_pylist()
        }
        for split in results
    }
    assert tables["validation"].keys() == tables["test"].keys()
    for user, row in tables["test"].items():
        assert row["history_length"] == tables["validation"][user]["history_length"] + 1
    again = rank_pool.run(1, command, config, "run_prepared", (["validation", "test"],))[0]
    assert "evaluate: validation done before" in again.said
    assert "evaluate: test done before" in again.said
    assert {split: asdict(value) for split, value in again.result[1].items()} == {
        s: asdict(f) for s, f in results.items()
    }


def test_changed_inputs_are_evaluated_again(rank_pool: RankPool, trained: Path) -> None:
    config, other = config_in(trained), config_in(trained, evaluate={"ks": [7, 10]})
    for first, then, name in ((config, other, None), (other, other, "step_000000005")):
        before, _ = evaluated(rank_pool, first).result
        repeated = evaluated(rank_pool, first)
        assert "done before" in repeated.said
        assert asdict(repeated.result[0]) == asdict(before)
        changed = evaluated(rank_pool, then, "test", name)
        assert "done before" not in changed.said
        assert "hr@7" in changed.result[0].metrics
        assert (changed.result[0].checkpoint == "step_000000005") == (name is not None)
    report = trained / "run/evaluation/step_000000005/test/report.html"
    report.unlink()
    assert "done before" not in evaluated(rank_pool, other, "test", "step_000000005").said
    assert report.exists()


def test_files_of_an_interrupted_evaluation_are_not_read(rank_pool: RankPool, trained: Path) -> None:
    parts = trained / "run/evaluation/validation/parts"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "rank-7.parquet").write_bytes(b"half a file")
    assert evaluated(rank_pool, config_in(trained, evaluate={"ks": [4, 10]}), "validation").error is None


def test_a_named_checkpoint_is_verified_before_it_is_evaluated(rank_pool: RankPool, trained: Path) -> None:
    path = trained / "run/checkpoints/step_000000010"
    shard = next(path.glob("*.distcp"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    answer = evaluated(rank_pool, config_in(trained), "test", path.name)
    shard.write_bytes(whole)
    assert answer.error is not None
    assert f"{shard.name} is corrupt" in answer.error[1]


def test_a_checkpoint_of_another_dataset_is_refused_and_the_stage_has_failed(
    rank_pool: RankPool, trained: Path
) -> None:
    answer = evaluated(rank_pool, config_in(trained, "other"), "test", "step_000000015")
    assert answer.error is not None
    assert answer.error[0] == "CheckpointError"
    assert "was made from another dataset" in answer.error[1]
    assert answer.stages["evaluate/step_000000015/test"] == "failed"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    tiny_dataset(tmp_path / "dataset")
    tiny_dataset(tmp_path / "other", seed=9)
    return tmp_path


def test_training_is_done_once_for_one_goal_and_one_dataset(rank_pool: RankPool, fresh: Path) -> None:
    def train(config: Config) -> Answer:
        answer: Answer = rank_pool.run(1, command, config, "run_train")[0]
        return answer

    short, longer = (config_in(fresh, train={"max_steps": steps}) for steps in (4, 6))
    assert train(short).result.step == 4
    assert "train: done before, at step 4" in train(short).said
    assert train(longer).result.step == 6
    refused = train(config_in(fresh, "other", train={"max_steps": 6}))
    assert refused.error is not None
    assert "another dataset" in refused.error[1]
    assert refused.stages["train"] == "failed"
    assert train(longer).result.step == 6
    for path in checkpoint_folder.committed(fresh / "run/checkpoints"):
        path.rename(path.with_name(f"moved_{path.name}"))
    anew = train(longer)
    assert "done before" not in anew.said
    assert anew.result.step == 6


def test_sigterm_stops_training_with_a_checkpoint_and_the_next_command_resumes(
    rank_pool: RankPool, fresh: Path
) -> None:
    config = config_in(fresh, train={"max_steps": 3})
    stopped = rank_pool.run(1, terminated, config)[0]
    assert stopped.error == (
        "StoppedError",
        "stopped at step 1, with a checkpoint; run the same command again to resume",
    )
    assert stopped.stages == {"train": "stopped"}
    assert [p.name for p in checkpoint_folder.committed(fresh / "run/checkpoints")] == ["step_000000001"]
    resumed = rank_pool.run(1, command, config, "run_train")[0]
    assert "resumed from" in resumed.said
    assert resumed.result.step == 3


def terminated(world: World, config: Config) -> Answer:
    """Train and send SIGTERM; a handler of our own comes first, so that an unhandled signal does not end the process."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        return command(world, config, "run_train", terminate=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def failed(world: World, config: Config) -> Answer:
    return command(world, config, "run_train", failure=WorkersFailedError("rank 1 died: killed", "the whole trace"))


def test_a_failure_of_workers_is_one_line_and_its_trace_a_file(rank_pool: RankPool, fresh: Path) -> None:
    answer = rank_pool.run(1, failed, config_in(fresh))[0]
    assert answer.error is not None
    assert answer.error[0] == "RunFailedError"
    assert answer.error[1].startswith("train: rank 1 died: killed; details in ")
    assert answer.stages == {"train": "failed"}
    assert (fresh / "run/failure.log").read_text() == "the whole trace"
