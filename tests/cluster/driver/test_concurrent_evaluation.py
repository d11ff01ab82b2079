"""Concurrent evaluation without workers: what is evaluated, skipped and tried again, which checkpoint is the best, when to stop."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.driver.concurrent_evaluation import ConcurrentEvaluation
from cluster.driver.evaluation_queue import EvaluationQueue
from cluster.driver.promotion import Promotion
from cluster.errors import JobCancelledError, WorkersFailedError
from tests.support.committed import commit_checkpoint
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.train import EarlyStoppingConfig
from trainer.loop.state import Best
from trainer.loop.validations import Pins, due_mark, read_validations

DEADLINE = 20.0
STOPPING = EarlyStoppingConfig(metric="ndcg@10", patience=2)


def save(run_dir: Path, step: int, **options: Any) -> Path:
    """Commit a checkpoint that is due for validation."""
    metrics = {**due_mark(True), "skipped_in_a_row": options.pop("skipped_in_a_row", 0)}
    return commit_checkpoint(run_dir / "checkpoints", step, metrics=metrics, **options)


def stored(run_dir: Path, step: int, **options: Any) -> StoredCheckpoint:
    path = save(run_dir, step, **options)
    return StoredCheckpoint(path, checkpoint_folder.read(path))


def steps(checkpoints: list[StoredCheckpoint]) -> list[int]:
    return [each.manifest.step for each in checkpoints]


def taken(queue: EvaluationQueue) -> int | None:
    checkpoint = queue.take()
    return None if checkpoint is None else checkpoint.manifest.step


def test_only_the_newest_of_those_that_wait_is_kept(tmp_path: Path) -> None:
    queue = EvaluationQueue()
    assert queue.add(stored(tmp_path, 10)) == []
    assert taken(queue) == 10
    assert queue.add(stored(tmp_path, 20)) == []
    assert steps(queue.add(stored(tmp_path, 30))) == [20]
    assert (len(queue), queue.has(10), queue.has(20), queue.has(30)) == (2, True, False, True)
    queue.end()
    assert taken(queue) == 30
    queue.end()
    assert (taken(queue), len(queue)) == (None, 0)


def test_checkpoints_of_before_are_all_evaluated_in_order(tmp_path: Path) -> None:
    queue = EvaluationQueue()
    queue.add_earlier([stored(tmp_path, 20), stored(tmp_path, 10)])
    assert taken(queue) == 10
    queue.end()
    assert taken(queue) == 20


def test_a_failed_evaluation_waits_for_the_next_checkpoint_or_the_end(tmp_path: Path) -> None:
    queue = EvaluationQueue()
    queue.add(stored(tmp_path, 10))
    queue.take()
    assert queue.fail() == []
    assert (taken(queue), len(queue)) == (None, 1)
    assert queue.add(stored(tmp_path, 20)) == []
    assert taken(queue) == 10
    assert steps(queue.fail()) == [10]  # again, and a newer one waits
    assert taken(queue) == 20
    queue.fail()
    queue.retry()
    assert taken(queue) == 20


def test_checkpoints_from_which_training_has_gone_back_do_not_count(tmp_path: Path) -> None:
    queue = EvaluationQueue()
    queue.add(stored(tmp_path, 20))
    queue.take()
    queue.add(stored(tmp_path, 30))
    queue.forget_after(10)
    assert (queue.is_stale, queue.has(20), queue.has(30)) == (True, False, False)
    queue.end()
    queue.add(stored(tmp_path, 20))
    assert (taken(queue), queue.is_stale) == (20, False)


@dataclass
class Fake:
    """Workers that evaluate at once, except where the test lets them wait or fail.

    Attributes:
        values: the metric of each step; one that is missing fails.
        gates: an evaluation of the step begins when it is set.
    """

    values: dict[int, float]
    gates: dict[int, threading.Event] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def evaluate(self, checkpoint: StoredCheckpoint, cancelled: threading.Event) -> dict[str, float]:
        step = checkpoint.manifest.step
        self.asked.append(step)
        until(lambda: cancelled.is_set() or step not in self.gates or self.gates[step].is_set())
        if cancelled.is_set():
            raise JobCancelledError
        if step not in self.values:
            raise WorkersFailedError("rank 0 died")
        return {"ndcg@10": self.values[step]}

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.events if event["kind"] in ("warning", "phase")]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@contextmanager
def evaluating(
    run_dir: Path, fake: Fake, start: int = 0, best: Best | None = None, counted: int = 0, dataset: str = "dataset"
) -> Iterator[ConcurrentEvaluation]:
    """Yield the evaluations of a training that starts from a step."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    promotion = Promotion(run_dir, dataset, STOPPING)
    with ConcurrentEvaluation(
        run_dir / "checkpoints", dataset, promotion, fake.evaluate, fake.events.append
    ) as running:
        running.on_event({"kind": "starts", "step": start, "best": asdict(best or Best()), "counted": counted})
        yield running


def saved(running: ConcurrentEvaluation, run_dir: Path, step: int, **options: Any) -> None:
    """Save a checkpoint, and let it be evaluated."""
    path = save(run_dir, step, **options)
    running.on_event({"kind": "checkpoint", "step": step, "path": str(path), "seconds": 0.0})


def outcomes(run_dir: Path) -> dict[int, float | None]:
    return {each.step: None if each.metrics is None else each.metrics["ndcg@10"] for each in read_validations(run_dir)}


def noted_best(run_dir: Path) -> int | None:
    best = checkpoint_folder.read_best(run_dir / "checkpoints")
    return None if best is None else best["step"]


def never() -> bool:
    return False


def test_each_checkpoint_is_evaluated_and_the_best_is_named(tmp_path: Path) -> None:
    fake = Fake({10: 0.2, 20: 0.4, 30: 0.3})
    with evaluating(tmp_path, fake) as running:
        for step in (10, 20, 30):
            saved(running, tmp_path, step)
            until(lambda step=step: outcomes(tmp_path).get(step) == fake.values[step])
        assert running.finish(30, never)
    assert not running.early.is_set()
    assert noted_best(tmp_path) == 20
    validations = [event for event in fake.events if event["kind"] == "validation"]
    assert [(event["step"], event["metrics"], event["best"]["step"]) for event in validations] == [
        (10, {"ndcg@10": 0.2}, 10),
        (20, {"ndcg@10": 0.4}, 20),
        (30, {"ndcg@10": 0.3}, 20),
    ]


def test_training_is_asked_to_stop_when_patience_ends(tmp_path: Path) -> None:
    fake = Fake({10: 0.5, 20: 0.4, 30: 0.3})
    with evaluating(tmp_path, fake) as running:
        saved(running, tmp_path, 10)
        until(lambda: 10 in outcomes(tmp_path))
        saved(running, tmp_path, 20)
        until(lambda: 20 in outcomes(tmp_path))
        assert not running.early.is_set()
        saved(running, tmp_path, 30)
        until(running.early.is_set)
    assert fake.texts == ["train: no further improvement; stopping with a checkpoint"]


def test_a_model_without_a_finite_loss_in_its_last_step_is_never_the_best(tmp_path: Path) -> None:
    with evaluating(tmp_path, Fake({10: 0.2, 20: 0.9})) as running:
        saved(running, tmp_path, 10)
        until(lambda: 10 in outcomes(tmp_path))
        saved(running, tmp_path, 20, skipped_in_a_row=1)
        running.finish(20, never)
    assert noted_best(tmp_path) == 10


def test_the_last_checkpoint_is_evaluated_and_older_ones_are_skipped_in_a_line(tmp_path: Path) -> None:
    fake = Fake({10: 0.2, 40: 0.4}, gates={10: threading.Event()})
    with evaluating(tmp_path, fake) as running:
        saved(running, tmp_path, 10)
        until(lambda: fake.asked == [10])
        for step in (20, 30, 40):
            saved(running, tmp_path, step)
        fake.gates[10].set()
        assert running.finish(40, never)
    assert outcomes(tmp_path) == {10: 0.2, 20: None, 30: None, 40: 0.4}
    assert [text for text in fake.texts if "skipped" in text] == [
        "the evaluation of step_000000020 is skipped: step_000000030 is newer, and evaluations are slower than checkpoints",
        "the evaluation of step_000000030 is skipped: step_000000040 is newer, and evaluations are slower than checkpoints",
    ]


def test_a_checkpoint_is_kept_until_it_is_evaluated(tmp_path: Path) -> None:
    fake = Fake({10: 0.2, 30: 0.1}, gates={10: threading.Event()})

    def kept() -> list[int]:
        checkpoint_folder.retire(tmp_path / "checkpoints", 1, lambda text: None, Pins(tmp_path))
        return [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(tmp_path / "checkpoints")]

    with evaluating(tmp_path, fake) as running:
        saved(running, tmp_path, 10)
        until(lambda: fake.asked == [10])
        saved(running, tmp_path, 20)
        commit_checkpoint(tmp_path / "checkpoints", 25)
        assert kept() == [25, 20, 10]
        saved(running, tmp_path, 30)  # for which 20 is skipped
        assert kept() == [30, 10]
        fake.gates[10].set()
        running.finish(30, never)
    commit_checkpoint(tmp_path / "checkpoints", 35)
    assert kept() == [35, 10]  # the best


def test_after_a_kill_only_what_is_missing_is_evaluated(tmp_path: Path) -> None:
    first = Fake({10: 0.2}, gates={20: threading.Event()})
    with evaluating(tmp_path, first) as running:
        saved(running, tmp_path, 10)
        until(lambda: 10 in outcomes(tmp_path))
        saved(running, tmp_path, 20)
        until(lambda: first.asked == [10, 20])  # and cancelled at the end, as a kill would do
    commit_checkpoint(tmp_path / "checkpoints", 30)  # not due
    second = Fake({20: 0.1, 40: 0.3})
    with evaluating(tmp_path, second, start=30, best=Best(0.2, 10, 0), counted=10) as running:
        until(lambda: 20 in outcomes(tmp_path))
        saved(running, tmp_path, 40)
        assert running.finish(40, never)
        assert not running.early.is_set()
    assert second.asked == [20, 40]
    assert outcomes(tmp_path) == {10: 0.2, 20: 0.1, 40: 0.3}
    assert noted_best(tmp_path) == 40


def test_patience_counts_what_the_checkpoint_counts_only_once(tmp_path: Path) -> None:
    """The training starts from a checkpoint with an evaluation without improvement. One more is the second."""
    first = Fake({10: 0.5, 20: 0.4})
    with evaluating(tmp_path, first) as running:
        for step in (10, 20):
            saved(running, tmp_path, step)
            until(lambda step=step: step in outcomes(tmp_path))
    with evaluating(tmp_path, Fake({30: 0.3}), start=20, best=Best(0.5, 10, 1), counted=20) as running:
        assert not running.early.is_set()
        saved(running, tmp_path, 30)
        until(running.early.is_set)


def test_evaluations_of_steps_that_are_trained_again_are_forgotten(tmp_path: Path) -> None:
    fake = Fake({10: 0.2, 20: 0.4})
    with evaluating(tmp_path, fake) as running:
        for step in (10, 20):
            saved(running, tmp_path, step)
            until(lambda step=step: step in outcomes(tmp_path))
        assert noted_best(tmp_path) == 20
        fake.values[20] = 0.1
        running.on_event({"kind": "starts", "step": 10, "best": asdict(Best(0.2, 10, 0)), "counted": 10})
        assert outcomes(tmp_path) == {10: 0.2}
        assert noted_best(tmp_path) == 10
        saved(running, tmp_path, 20, content=" again")
        until(lambda: 20 in outcomes(tmp_path))
    assert outcomes(tmp_path) == {10: 0.2, 20: 0.1}
    assert noted_best(tmp_path) == 10


def test_a_failure_is_tried_again_at_the_end_and_then_ends_the_stage(tmp_path: Path) -> None:
    fake = Fake({})
    with evaluating(tmp_path, fake) as running:
        saved(running, tmp_path, 10)
        until(lambda: len(fake.texts) == 1)
        with pytest.raises(WorkersFailedError, match="rank 0 died"):
            running.finish(10, never)
    assert fake.asked == [10, 10]
    assert fake.texts[0] == (
        "the evaluation of step_000000010 failed (rank 0 died); it is tried again after the next checkpoint, or at the end"
    )
    assert outcomes(tmp_path) == {}  # so that the next start evaluates it


def test_a_corrupt_checkpoint_is_skipped(tmp_path: Path) -> None:
    fake = Fake({20: 0.1})
    with evaluating(tmp_path, fake) as running:
        path = save(tmp_path, 10)
        (path / "weights.bin").write_bytes(b"other bytes      ")
        running.on_event({"kind": "checkpoint", "step": 10, "path": str(path), "seconds": 0.0})
        until(lambda: 10 in outcomes(tmp_path))
        saved(running, tmp_path, 20)
        assert running.finish(20, never)
    assert outcomes(tmp_path) == {10: None, 20: 0.1}
    assert fake.texts[0].startswith("the evaluation of step_000000010 is skipped: checkpoint ")


def test_a_request_to_stop_cancels_evaluations(tmp_path: Path) -> None:
    fake = Fake({}, gates={10: threading.Event()})
    with evaluating(tmp_path, fake) as running:
        saved(running, tmp_path, 10)
        until(lambda: fake.asked == [10])
        assert not running.finish(10, lambda: True)
    assert outcomes(tmp_path) == {}


def test_checkpoints_of_another_dataset_are_skipped(tmp_path: Path) -> None:
    save(tmp_path, 10, dataset_digest="before")
    fake = Fake({10: 0.9})
    with evaluating(tmp_path, fake, start=10) as running:
        assert running.finish(10, never)
    assert (fake.asked, outcomes(tmp_path), noted_best(tmp_path)) == ([], {10: None}, None)
    assert fake.texts == [
        "the evaluation of step_000000010 is skipped: the dataset has changed since it was saved",
    ]


def test_a_disk_that_refuses_the_record_is_no_reason_to_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake({10: 0.2})

    def refuse(run_dir: Path, record: Any) -> None:
        raise OSError("no space")

    with evaluating(tmp_path, fake) as running:
        with monkeypatch.context() as patched:
            patched.setattr("cluster.driver.promotion.write_validations", refuse)
            saved(running, tmp_path, 10)
            until(lambda: bool(fake.texts))
        assert running.finish(10, never)
    assert fake.asked == [10, 10]
    assert json.loads((tmp_path / "validations.json").read_text())[0]["step"] == 10
