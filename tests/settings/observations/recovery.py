"""Observations of recovery for the settings' tests: restarts that a budget allows, hung ranks, and how checkpoints are written."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from cluster.config.run_config import Config
from cluster.workers.budget import Budget, Kind
from cluster.workers.mailbox import Beat, Place, Status
from cluster.workers.moves import Moves
from cluster.workers.nodes import Node
from cluster.workers.watchdog import Watchdog
from tests.settings.lab import Lab
from tests.settings.observations.training import training_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.errors import CheckpointError
from trainer.fault_points import VARIABLE

Observe = Callable[[Lab, Config], Any]
MANY = 50


def allowed(kind: Kind, progress: bool = True) -> Observe:
    """Return the observation of the number of failures that a budget allows."""

    def observe(lab: Lab, config: Config) -> int:
        budget = Budget(config.cluster.recovery, lambda: 0.0)
        return next(
            (number for number in range(MANY) if budget.count(kind, number if progress else 0) is not None), MANY
        )

    observe.__name__ = f"allowed {kind}s"
    return observe


def second_wait(lab: Lab, config: Config) -> float:
    """Return the seconds before the second restart."""
    budget = Budget(config.cluster.recovery, lambda: 0.0)
    for step in range(2):
        budget.count("failure", step)
    return budget.wait("failure")


def seconds_until_growth(lab: Lab, config: Config) -> int:
    """Return the seconds after its start in which a group with one worker is to grow to two."""
    cluster = config.cluster.model_copy(update={"address": "auto", "num_workers": 2, "min_workers": 1})
    nodes = [Node(name, "", 0, {"CPU": 1.0}, {"CPU": free}) for name, free in (("used", 0.0), ("added", 1.0))]
    moves = Moves(cluster, lambda: nodes, dict, lost=lambda nodes: set(), held=lambda group: {"used": {"CPU": 1.0}})
    status = Status([], 0, 1, {0: Beat(Place("here", "used", 1, 0.0))})
    moves.look(status, lambda: None, 100.0)
    return next(
        seconds for seconds in range(1, 1000) if moves.look(status, lambda: None, 100.0 + seconds).move is not None
    )


def blamed_after(phase: str, step: int, silent: bool = False) -> Observe:
    """Return the observation of the seconds after which a rank is named that stays in a phase, or that is silent."""

    def observe(lab: Lab, config: Config) -> int:
        def is_blamed(seconds: int) -> bool:
            watchdog = Watchdog(config.cluster.recovery)
            watchdog.look({0: Beat(Place("here", "node", 1, 0.0), "data", 1)}, 0.0)
            watchdog.look({0: Beat(Place("here", "node", 1, 0.0), "data", 1)}, 0.1)
            beat = Beat(
                Place("here", "node", 1, 0.0), phase, step, 0.0 if silent else seconds, seconds if silent else 0.0
            )
            return bool(watchdog.look({0: beat}, 0.2))

        return next(seconds for seconds in range(100_000) if is_blamed(seconds))

    observe.__name__ = f"seconds until a rank is named that {'is silent' if silent else f'stays in {phase}'}"
    return observe


def writing_threads(lab: Lab, config: Config) -> set[bool]:
    """Return whether checkpoints were committed by the thread that trains."""
    seen: set[bool] = set()
    commit = checkpoint_folder.commit

    def noted(*arguments: Any) -> Path:
        seen.add(threading.current_thread() is threading.main_thread())
        return commit(*arguments)

    with mock.patch.object(checkpoint_folder, "commit", noted):
        training_of(lab, lab.job(config), []).run()
    return seen


def ends_after_a_full_disk(lab: Lab, config: Config) -> str:
    """Return how a training ends of which one checkpoint, not the last, could not be written."""
    path = lab.new_folder() / "faults.json"
    fault = {"name": "full", "point": "writing", "rank": 0, "step": 1, "action": "no space"}
    path.write_text(json.dumps([fault]), encoding="utf-8")
    with mock.patch.dict("os.environ", {VARIABLE: str(path)}):
        try:
            return training_of(lab, lab.job(config), []).run().reason
        except CheckpointError:
            return "CheckpointError"
