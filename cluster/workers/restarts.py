"""Decision of Ray Train's controller after a failure: restart the workers, or end the run. Runs in the controller's process.

A restart keeps the launch: the new workers run the newest job again, which resumes from the newest committed checkpoint.
"""

import time
from typing import Any

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
from cluster.workers.budget import Budget, Kind
from cluster.workers.failures import Cause, cause_of


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
        kind: Kind = "preemption" if _is_preemption_failure(error) else "failure"
        errors = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        try:
            failures, killed, beats, step = ray.get(self._mailbox.failed.remote())
            cause = cause_of(failures, errors, killed, beats) or Cause(f"the group of workers failed: {error}", "")
            if cause.user_message is not None:
                return FailureDecision.RAISE
            reason = self._budget.count(kind, step)
            if reason is not None:
                ray.get(self._mailbox.push.remote({"kind": "warning", "text": f"no restart: {reason}"}))
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
