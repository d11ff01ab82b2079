"""Concurrent evaluation by the command itself: a worker that dies while it evaluates, and a driver that is killed."""

import json
import os
import signal
from pathlib import Path

from tests.end_to_end.commands import finish, shoal
from tests.end_to_end.watched import WAIT_SECONDS, wait_for
from trainer.checkpoint import folder as checkpoint_folder
from trainer.fault_points import VARIABLE
from trainer.loop.validations import read_validations
from trainer.metrics_log import read_metrics

DUE = [30, 60, 90, 120, 150, 180]  # the ends of epochs

# Only evaluations reach the point "evaluation", as the training does not wait for them.
FAULTS = [
    {"name": "died", "point": "evaluation", "rank": 0, "step": 30, "action": "kill"},
    {"name": "waits", "point": "evaluation", "rank": 0, "step": 60, "action": "slow", "seconds": 600.0},
]


def test_every_checkpoint_that_is_due_is_evaluated_once_although_a_worker_and_the_driver_are_killed(
    config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "faults.json").write_text(json.dumps(FAULTS))
    settings = {
        "run.dir": run_dir,
        "cluster.num_workers": 1,
        "cluster.evaluation.num_workers": 1,
        "cluster.recovery.backoff_seconds": 0.0,
        "train.early_stopping.patience": 9,
        "checkpoint.keep": 1,
    }
    command = ["run", str(config), *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]
    killed = shoal(*command, environment={VARIABLE: str(tmp_path / "faults.json")})
    wait_for("the second evaluation", (tmp_path / "faults.json.waits.happened").exists, killed)
    os.kill(killed.pid, signal.SIGKILL)
    _, said, _ = finish(killed)
    retried = [
        line for line in said.splitlines() if line.startswith("warning: the evaluation of step_000000030: rank 0")
    ]
    assert len(retried) == 1, said
    assert retried[0].endswith("; trying again")

    code, out, err = finish(shoal(*command, "--json"), WAIT_SECONDS)
    assert code == 0, out + err
    record = read_validations(run_dir)
    assert [each.step for each in record] == DUE
    evaluated = {each.step: each.metrics["ndcg@10"] for each in record if each.metrics is not None}
    assert {30, 180} <= set(evaluated)
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "validation"]
    assert {line["step"]: line["ndcg@10"] for line in lines} == evaluated
    assert len(lines) == len(evaluated)
    best = max(evaluated, key=lambda step: (evaluated[step], -step))
    training = json.loads(out)["training"]
    assert training == {"reason": "finished", "step": 180, "best_step": best, "best_value": evaluated[best]}
    kept = [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(run_dir / "checkpoints")]
    assert set(kept) == {best, 180}
    assert (run_dir / "logs/evaluation/rank-0.log").exists()
