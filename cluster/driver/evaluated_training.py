"""Training with concurrent evaluation: two groups of workers, one that trains and one that validates its checkpoints."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cluster.config.run_config import ClusterConfig
from cluster.driver.concurrent_evaluation import ConcurrentEvaluation, Evaluate
from cluster.driver.promotion import Promotion
from cluster.driver.rank_logs import logs_folder
from cluster.ray_cluster.session import check_both_groups
from cluster.workers import jobs
from cluster.workers.group import OnEvent, Workers
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import first_line
from trainer.loop.validations import validated_steps, without_line
from trainer.metrics_log import read_metrics

LOGS = "evaluation"  # folder of the logs of the ranks that evaluate, below that of the others


def train_and_evaluate(
    cluster: ClusterConfig, job: Job, evaluation: Job, workers: Workers, on_event: OnEvent, stop: threading.Event
) -> Outcome:
    """Run the training job, and validate its checkpoints on other workers meanwhile.

    Args:
        cluster: the workers of both groups.
        job: the training.
        evaluation: the same job with the plan of its tables for the workers that evaluate.
        workers: those that train.
        on_event: called with the events of both groups, one at a time.
        stop: when it is set, training ends with a checkpoint, and evaluations are cancelled.

    Raises what `Workers.run` raises, also of an evaluation that failed again at the end.
    """
    others = cluster.of_evaluation
    assert others is not None
    workers.connect()
    check_both_groups(cluster)
    sending = threading.Lock()

    def send(event: dict[str, Any]) -> None:
        with sending:  # two threads send events
            on_event(event)

    dataset = read_manifest(job.dataset_dir).digest
    promotion = Promotion(job.run_dir, dataset, job.config.train.early_stopping)
    logs = f"{logs_folder(job.run_dir)}/{LOGS}"
    with workers.others(others, lambda text: send({"kind": "phase", "text": f"evaluation {text}"}), logs) as evaluators:
        evaluate = _evaluate_with(evaluators, evaluation, send)
        with ConcurrentEvaluation(
            job.checkpoints_dir, dataset, promotion, evaluate, send, workers.note_validation
        ) as evaluations:

            def follow(event: dict[str, Any]) -> None:
                send(event)
                evaluations.on_event(event)

            outcome: Outcome = workers.run(jobs.train, job, follow, _EitherSet(stop, evaluations.early))[0]
            if outcome.reason == "stopped" and not stop.is_set():
                outcome = replace(outcome, reason="early")
            if outcome.reason != "stopped" and not evaluations.finish(outcome.step, stop.is_set):
                outcome = replace(outcome, reason="stopped")
    if outcome.reason != "stopped":
        _clear_up(job, outcome, promotion, workers, send)
    best = promotion.best
    return replace(outcome, best_step=None if best.value is None else best.step, best_value=best.value)


def _clear_up(
    job: Job, outcome: Outcome, promotion: Promotion, workers: Workers, send: Callable[[dict[str, Any]], None]
) -> None:
    """Log the evaluations that ended after the training, and delete checkpoints that were kept for them."""
    validated = validated_steps(read_metrics(job.run_dir / "metrics.jsonl"))
    if without_line(promotion.record, validated, outcome.step):
        workers.run(jobs.log_validations, (job, outcome.step), send)

    def warn(text: str) -> None:
        send({"kind": "warning", "text": text})

    try:
        checkpoint_folder.retire(job.checkpoints_dir, job.config.checkpoint.keep, warn)
    except OSError as error:  # of an object storage that does not answer
        warn(f"old checkpoints could not be deleted ({first_line(error)}); the next training tries it again")


def _evaluate_with(evaluators: Workers, job: Job, send: Callable[[dict[str, Any]], None]) -> Evaluate:
    """Return the function that evaluates a checkpoint on the workers. Their restarts are warnings, and lines of the restart log."""

    def evaluate(checkpoint: StoredCheckpoint, cancelled: threading.Event) -> dict[str, float]:
        def warn(event: dict[str, Any]) -> None:
            match event["kind"]:
                case "restart":
                    text = f"{event['reason']}; trying again"
                    line = f"the evaluation of {checkpoint.path.name}: {event['reason']}"
                    send({"kind": "evaluation_restart", "text": line, "trace": event.get("trace", "")})
                case "warning":
                    text = event["text"]
                case _:
                    return
            send({"kind": "warning", "text": f"the evaluation of {checkpoint.path.name}: {text}"})

        asked = jobs.ValidationJob(job, checkpoint)
        metrics: dict[str, float] = evaluators.run(jobs.validate, asked, warn, cancel=cancelled)[0]
        return metrics

    return evaluate


@dataclass(frozen=True)
class _EitherSet:
    """Two requests, either of which is enough."""

    # By the user.
    one: threading.Event
    # By early stopping.
    other: threading.Event

    def is_set(self) -> bool:
        """Return whether one of them was made."""
        return self.one.is_set() or self.other.is_set()
