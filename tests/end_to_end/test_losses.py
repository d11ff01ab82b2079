"""Losses of processes that Ray Train cannot replace: the driver, its controller, the mailbox."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.commands import Submitted, finish, shoal
from tests.end_to_end.watched import (
    check_exact,
    kill_one,
    processes_of,
    recovered,
    report_restarts,
    step_of,
    wait_for,
)
from trainer.fault_points import VARIABLE
from trainer.metrics_log import read_metrics

WORKER = "ray::RayTrainWorker"
# Steps of a few milliseconds would be over before a test can act.
SLOW = [{"name": "slow", "point": "data", "rank": 0, "step": 26, "action": "slow", "seconds": 0.2, "repeats": True}]


def command_for(folder: Path, config: Path, undisturbed: Path, command: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of a command that continues the run in this folder, in slow steps."""
    (folder / "faults.json").write_text(json.dumps(SLOW))
    settings = {
        "run.dir": folder / "run",
        "run.dataset": undisturbed / "dataset",
        "cluster.recovery.failures_per_hour": 100,
        "cluster.recovery.backoff_seconds": 0.0,
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [command, str(config), *sets, "--json"], {VARIABLE: str(folder / "faults.json")}


def test_a_killed_driver_leaves_no_worker_and_the_same_command_resumes(
    config: Path, submitted: Submitted, tmp_path: Path
) -> None:
    run_dir, undisturbed = tmp_path / "run", submitted.run_dir
    arguments, environment = command_for(tmp_path, config, undisturbed, "train")
    driver = shoal(*arguments, environment=environment)
    wait_for("step 30", lambda: step_of(run_dir) >= 30, driver)
    workers = processes_of(driver, WORKER)
    others = psutil.Process(driver.pid).children(recursive=True)
    assert len(workers) == 2
    os.kill(driver.pid, signal.SIGKILL)
    killed = time.monotonic()
    _, alive = psutil.wait_procs(workers, timeout=30.0)
    print(f"workers gone {time.monotonic() - killed:.1f} s after the driver")
    assert not alive
    _, alive = psutil.wait_procs(others, timeout=60.0)
    assert not alive
    driver.communicate()
    code, _, err = finish(shoal(*arguments))
    assert code == 0, err
    assert "resumed from" in err
    check_exact(run_dir, undisturbed)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_lost_controller_or_mailbox_is_one_line_and_an_exact_resume_also_with_a_slow_rank(
    config: Path, submitted: Submitted, tmp_path: Path
) -> None:
    run_dir, undisturbed = tmp_path / "run", submitted.run_dir
    arguments, environment = command_for(tmp_path, config, undisturbed, "train")
    driver = shoal(*arguments, environment=environment)
    wait_for("step 30", lambda: step_of(run_dir) >= 30, driver)
    kill_one(driver, "ray::Mailbox")
    wait_for("training after the loss of the mailbox", recovered(run_dir, 1), driver)
    kill_one(driver, "ray::TrainController")
    wait_for("training after the loss of the controller", recovered(run_dir, 2), driver)
    code, _, err = finish(driver, 300.0)
    assert code == 0, err
    mailbox, controller = report_restarts(run_dir)
    assert mailbox.text.startswith("the mailbox of the workers died")
    assert controller.text.startswith("Ray Train's controller died")
    for restart in (mailbox, controller):
        assert restart.text in err
    assert no_noise(err), err
    check_slow_rank(run_dir, err)
    check_exact(run_dir, undisturbed)


def check_slow_rank(run_dir: Path, err: str) -> None:
    """Check that the rank that pauses in each step is named, on the terminal and in the metrics."""
    slow = [row for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "straggler"]
    assert slow
    assert {row["rank"] for row in slow} == {0}
    assert all(row["factor"] >= 2.0 and row["share"] >= 0.2 for row in slow)
    assert f"rank 0 on {socket.gethostname()} is slow" in err


def no_noise(err: str) -> bool:
    """Return whether a command printed no lines of Ray's processes and no traceback."""
    return not any(word in err for word in ("Traceback", "(raylet)", "ray::", "The actor is dead", "Exception"))
