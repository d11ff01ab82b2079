"""Training with concurrent evaluation as the driver runs it, with fake workers: how the training ends, and what is logged."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cluster.driver import evaluated_training
from cluster.driver.evaluated_training import train_and_evaluate
from cluster.driver.train_stage import _note_restarts, planned_job
from cluster.errors import JobCancelledError
from cluster.ray_cluster import session
from cluster.ray_cluster.room import NodeRoom
from cluster.workers import jobs
from tests.support.committed import commit_checkpoint
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import UserError
from trainer.loop.state import Best
from trainer.loop.validations import due_mark, read_validations
from trainer.restart_log import read_restarts

DEADLINE = 20.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@dataclass
class Group:
    """Both groups of workers. The training saves a checkpoint every ten steps, once the one before is evaluated.

    Attributes:
        values: the metric of each checkpoint.
        last: the step at which training ends unless it is asked to stop.
        stop: set by the training at its end, as by the user.
    """

    values: dict[int, float]
    last: int = 90
    stop: threading.Event | None = None
    logged: list[int] = field(default_factory=list)
    noted: int = 0

    def connect(self) -> None:
        pass

    def note_validation(self) -> None:
        self.noted += 1

    @contextmanager
    def others(self, config: Any, on_phase: Callable[[str], None], logs: str) -> Iterator["Group"]:
        assert Path(logs).name == "evaluation"
        on_phase(f"workers: starting {config.num_workers}")
        yield self

    def run(self, function: Any, argument: Any, on_event: Any, stop: Any = None, cancel: Any = None) -> list[Any]:
        if function is jobs.validate:
            on_event({"kind": "phase", "text": "validate: building the model"})
            return [{"ndcg@10": self.values[argument.checkpoint.manifest.step]}]
        if function is jobs.log_validations:
            self.logged.append(argument[1])
            return [None]
        return [self.train(argument, on_event, stop)]

    def train(self, job: Job, on_event: Any, stop: Any) -> Outcome:
        dataset = read_manifest(job.dataset_dir).digest
        on_event({"kind": "starts", "step": 0, "best": asdict(Best()), "counted": 0})
        for step in range(10, self.last + 1, 10):
            path = commit_checkpoint(job.checkpoints_dir, step, dataset, due_mark(True))
            on_event({"kind": "checkpoint", "step": step, "path": str(path), "seconds": 0.0})
            if step < self.last:
                until(
                    lambda step=step: stop.is_set() or any(each.step == step for each in read_validations(job.run_dir))
                )
            if stop.is_set():
                return Outcome("stopped", step + 3, None, None)
        if self.stop is not None:
            self.stop.set()
        return Outcome("finished", self.last, None, None)


def ended(tmp_path: Path, group: Group) -> tuple[Outcome, list[dict[str, Any]]]:
    """Return how a training with these workers ends, and the events."""
    tiny_dataset(tmp_path / "dataset")
    config = tiny_config(
        tmp_path / "run",
        tmp_path / "dataset",
        train={"early_stopping": {"metric": "ndcg@10", "patience": 2}},
        cluster={"num_workers": 1, "evaluation": {"num_workers": 1}},
    )
    job, _ = planned_job(config)
    job.checkpoints_dir.mkdir(parents=True)
    events: list[dict[str, Any]] = []
    workers: Any = group
    with mock.patch.object(evaluated_training, "check_both_groups"):
        outcome = train_and_evaluate(config.cluster, job, job, workers, events.append, group.stop or threading.Event())
    return outcome, events


def test_a_training_that_no_longer_improves_ends_early_with_the_best_checkpoint(tmp_path: Path) -> None:
    group = Group({10: 0.3, 20: 0.5, 30: 0.4, 40: 0.2, **dict.fromkeys(range(50, 100, 10), 0.1)})
    outcome, events = ended(tmp_path, group)
    assert outcome.reason == "early"
    assert outcome.step in (43, 53)  # after the evaluation of step 40
    assert (outcome.best_step, outcome.best_value) == (20, 0.5)
    assert checkpoint_folder.read_best(tmp_path / "run/checkpoints") == {"step": 20, "metric": "ndcg@10", "value": 0.5}
    assert group.logged == [outcome.step]
    kept = [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(tmp_path / "run/checkpoints")]
    assert kept == [outcome.step - 3, outcome.step - 13, 20]  # the newest two and the best
    assert group.noted == len(read_validations(tmp_path / "run"))
    texts = [event["text"] for event in events if event["kind"] == "phase"]
    assert texts[0] == "evaluation workers: starting 1"
    assert "train: no further improvement; stopping with a checkpoint" in texts


def test_the_last_checkpoint_is_evaluated_after_the_training(tmp_path: Path) -> None:
    outcome, _ = ended(tmp_path, Group({10: 0.3, 20: 0.5}, last=20))
    assert outcome == Outcome("finished", 20, 20, 0.5)


def test_a_user_who_stops_the_wait_for_evaluations_stops_the_run(tmp_path: Path) -> None:
    group = Group({}, last=10, stop=threading.Event())
    with mock.patch.object(Group, "run", _with_evaluations_that_wait(Group.run)):
        outcome, _ = ended(tmp_path, group)
    assert outcome == Outcome("stopped", 10, None, None)
    assert group.logged == []


def test_a_restart_of_evaluation_workers_is_in_the_restart_log_of_the_run(tmp_path: Path) -> None:
    with mock.patch.object(Group, "run", _with_a_restart(Group.run)):
        outcome, events = ended(tmp_path, Group({10: 0.3}, last=10))
    assert outcome.reason == "finished"
    for event in events:
        _note_restarts(tmp_path / "run", event)
    assert [(restart.cause, restart.text, restart.trace) for restart in read_restarts(tmp_path / "run")] == [
        ("evaluation", "the evaluation of step_000000010: rank 0 died", "its trace")
    ]
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert warnings == ["the evaluation of step_000000010: rank 0 died; trying again"]


def _with_a_restart(run: Any) -> Any:
    def restarted(
        self: Group, function: Any, argument: Any, on_event: Any, stop: Any = None, cancel: Any = None
    ) -> Any:
        if function is jobs.validate:
            on_event({"kind": "restart", "reason": "rank 0 died", "text": "restart", "trace": "its trace"})
        return run(self, function, argument, on_event, stop, cancel)

    return restarted


def _with_evaluations_that_wait(run: Any) -> Any:
    def waiting(self: Group, function: Any, argument: Any, on_event: Any, stop: Any = None, cancel: Any = None) -> Any:
        if function is jobs.validate:
            until(cancel.is_set)
            raise JobCancelledError
        return run(self, function, argument, on_event, stop, cancel)

    return waiting


def test_a_cluster_that_cannot_hold_both_groups_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, cluster={"num_workers": 2, "evaluation": {"num_workers": 1}})
    others = config.cluster.of_evaluation
    assert others is not None
    assert (others.num_workers, others.of_evaluation) == (1, None)
    monkeypatch.setattr(session, "nodes_here", lambda: [NodeRoom("a", {"CPU": 3.0})])
    session.check_both_groups(config.cluster)
    monkeypatch.setattr(session, "nodes_here", lambda: [NodeRoom("a", {"CPU": 2.0})])
    with pytest.raises(UserError, match=r"num_workers = 1 in addition to cluster\.num_workers = 2 do not fit"):
        session.check_both_groups(config.cluster)
