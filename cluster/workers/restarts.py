"""Decision of Ray Train's controller after a failure: restart the workers, or end the run. Runs in the controller's process.

A restart keeps the launch: the new workers run the newest job again, which resumes from the newest committed checkpoint.
"""

import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.failure_handling.default import (
    RETRYABLE_CONTROLLER_ERRORS,
    _is_preemption_failure,
)
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cluster.config.run_config import RecoveryConfig
from cluster.workers.budget import Budget, Kind
from cluster.workers.failures import Cause, cause_of


class RestartPolicy(FailurePolicy):
    """Ray Train's failure policy with Shoal's budgets, which reports each failure and its decision to the mailbox."""

    def __init__(self, config: FailureConfig, mailbox: Any, limits: RecoveryConfig) -> None:
        super().__init__(config)
        self._mailbox = mailbox
        self._limits = limits
        self._budget = Budget(limits)
        self._waiting: tuple[float, int] | None = None  # since when for resources, and the newest step then

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return RETRY if the workers are restarted, RAISE if the run ends."""
        error = training_failed_error
        if isinstance(error, ControllerError) and not isinstance(error.controller_failure, RETRYABLE_CONTROLLER_ERRORS):
            return FailureDecision.RAISE
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            return self._wait_for_resources()
        kind: Kind = "preemption" if _is_preemption_failure(error) else "failure"
        errors = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        try:
            failures, killed, beats, step = ray.get(self._mailbox.failed.remote())
            cause = cause_of(failures, errors, killed, beats) or Cause(f"the group of workers failed: {error}", "")
            if cause.user_message is not None:
                return FailureDecision.RAISE
            reason = self._budget.count(kind, step)
            if reason is not None:
                self._warn(f"no restart: {reason}")
                return FailureDecision.RAISE
            event = {
                "kind": "restart",
                "text": f"{cause.text}; restarting from the newest checkpoint ({kind} {self._budget.number(kind)} of this hour)",
                "cause": kind,
                "trace": cause.trace,
            }
            ray.get(self._mailbox.restart.remote(event))
        except RayError:  # the driver ended the launch with its mailbox
            return FailureDecision.RAISE
        time.sleep(self._budget.wait(kind))
        return FailureDecision.RETRY

    def _wait_for_resources(self) -> FailureDecision:
        """Let Ray ask for the resources of workers again, up to the longest time of a start.

        A node that is lost or not there yet is no failure of its own: that which lost it has been counted.
        """
        now = time.monotonic()
        try:
            *_, step = ray.get(self._mailbox.failed.remote())
            if self._waiting is None or self._waiting[1] != step:
                self._waiting = (now, step)
                self._warn("waiting for the resources of workers, which no node has free")
            seconds = now - self._waiting[0]
            if seconds <= self._limits.start_seconds:
                return FailureDecision.RETRY
            self._warn(f"no restart: no resources for workers within {seconds:,.0f} s (cluster.recovery.start_seconds)")
        except RayError:  # the driver ended the launch with its mailbox
            pass
        return FailureDecision.RAISE

    def _warn(self, text: str) -> None:
        ray.get(self._mailbox.push.remote({"kind": "warning", "text": text}))
