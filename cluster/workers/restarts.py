"""Decision of Ray Train's controller after a failure: restart the workers, or end the run. Runs in the controller's process.

A restart keeps the launch: the new workers run the newest job again, which resumes from the newest committed checkpoint.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.failure_handling.default import (
    RETRYABLE_CONTROLLER_ERRORS,
    _is_preemption_failure,
)
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cluster.config.run_config import RecoveryConfig
from cluster.errors import MoveError
from cluster.workers.budget import Budget, Kind
from cluster.workers.failures import Cause, cause_of, innermost
from cluster.workers.kill import is_alive
from cluster.workers.mailbox import Beat, Move
from cluster.workers.nodes import alive_nodes, unreachable


class RestartPolicy(FailurePolicy):
    """Ray Train's failure policy with Shoal's budgets, which reports each failure and its decision to the mailbox."""

    def __init__(self, config: FailureConfig, mailbox: Any, limits: RecoveryConfig) -> None:
        super().__init__(config)
        self._mailbox = mailbox
        self._budget = Budget(limits)

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return RETRY if the workers are restarted, RAISE if the run ends."""
        error = training_failed_error
        if isinstance(error, ControllerError) and not isinstance(error.controller_failure, RETRYABLE_CONTROLLER_ERRORS):
            return FailureDecision.RAISE
        errors = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        try:
            move: Move | None = ray.get(self._mailbox.move.remote())
            if move is not None and errors and all(isinstance(innermost(one), MoveError) for one in errors.values()):
                return self._restart(move.cause, Cause(move.text, ""))
            failures, killed, beats, step = ray.get(self._mailbox.failed.remote())
            ended = {**_lost_ranks(beats), **killed}
            cause = cause_of(failures, {**_ended_here(beats), **errors}, ended, beats) or Cause(
                f"the group of workers failed: {error}", ""
            )
            if cause.user_message is not None:
                return FailureDecision.RAISE
            return self._restart("preemption" if _is_preemption_failure(error) else "failure", cause, step)
        except RayError:  # the driver ended the launch with its mailbox
            return FailureDecision.RAISE

    def _restart(self, kind: Kind | Literal["resize"], cause: Cause, step: int = 0) -> FailureDecision:
        """Restart the workers if the budget allows it, and tell the driver."""
        counted, seconds = "", 0.0
        if kind != "resize":
            reason = self._budget.count(kind, step)
            if reason is not None:
                ray.get(self._mailbox.push.remote({"kind": "warning", "text": f"no restart: {reason}"}))
                return FailureDecision.RAISE
            counted, seconds = f" ({kind} {self._budget.number(kind)} of this hour)", self._budget.wait(kind)
        event = {
            "kind": "restart",
            "text": f"{cause.text}; restarting from the newest checkpoint{counted}",
            "cause": kind,
            "trace": cause.trace,
            "reason": cause.text,
        }
        ray.get(self._mailbox.restart.remote(event))
        time.sleep(seconds)
        return FailureDecision.RETRY


def _ended_here(beats: Mapping[int, Beat]) -> dict[int, BaseException]:
    """Return an error for each rank on this machine with a process that has ended.

    Ray may learn of it after another rank has reported that its connection broke.
    """
    here = _own_node()
    gone = {rank for rank, beat in beats.items() if beat.place.node == here and not is_alive(beat.place)}
    return {rank: RuntimeError("its process has ended") for rank in sorted(gone)}


def _own_node() -> str:
    """Return Ray's id of the node of this process."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _lost_ranks(beats: Mapping[int, Beat]) -> dict[int, str]:
    """Return the ranks on nodes that are lost. Ray learns of it much later, and until then only the other ranks fail."""
    try:
        nodes = [node for node in alive_nodes() if any(beat.place.node == node.id for beat in beats.values())]
        left = {node.id for node in nodes} - unreachable(nodes)
    except Exception:  # noqa: BLE001 - Ray's head may be busy; the cause is only for people
        return {}
    return {rank: "was lost: its node does not answer" for rank, beat in beats.items() if beat.place.node not in left}
