"""What the settings' tests see of a workload: the loads, devices and prediction of its plan."""

import json
from collections.abc import Callable
from typing import Any

from cluster.plan.request import PlanRequest, read_request
from cluster.plan.workload import WorkloadConfig
from sharding.planning.costs import predict
from sharding.planning.planner import make_plan
from tests.settings.entry import attribute
from tests.settings.lab import Lab

Observe = Callable[[Lab, WorkloadConfig], Any]


def request(lab: Lab, workload: WorkloadConfig) -> PlanRequest:
    """Return what `shoal plan` makes of the workload as a file."""
    values = workload.model_dump(mode="json")
    values["table"] = [{"name": name, **table} for name, table in values["table"].items()]
    path = lab.new_folder() / "workload.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return read_request(str(path), [], {})


def load(name: str) -> Observe:
    """Return the observation of what a device asks of the first table."""
    return attribute(lambda lab, workload: request(lab, workload).loads[0], name, "the load's")


def device(name: str) -> Observe:
    """Return the observation of what the devices are like."""
    return attribute(lambda lab, workload: request(lab, workload).topology, name, "the devices'")


def tables(lab: Lab, workload: WorkloadConfig) -> list[str]:
    """Return the names of the tables."""
    return [table.name for table in request(lab, workload).loads]


def replica_groups(lab: Lab, workload: WorkloadConfig) -> int:
    """Return how many groups of devices hold all tables."""
    return request(lab, workload).replica_groups


def latency(lab: Lab, workload: WorkloadConfig) -> float:
    """Return a constant of the cost model."""
    return request(lab, workload).topology.costs.latency


def seconds(lab: Lab, workload: WorkloadConfig) -> dict[str, float]:
    """Return the seconds that each phase of the planned step is predicted to take on the slowest device."""
    asked = request(lab, workload)
    plan = make_plan(asked.loads, asked.topology, asked.communication, "", asked.replica_groups)
    prediction = predict(plan, asked.loads, asked.topology, asked.communication)
    return {phase: float(values.sum(axis=0).max()) for phase, values in prediction.phases.items()}
