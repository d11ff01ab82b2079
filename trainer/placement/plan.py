"""The plan of a run's tables, from their loads and the devices. No function is collective."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from sharding.config import CommunicationConfig, DevicesConfig
from sharding.errors import PlacementError
from sharding.plan import Plan, plan_of
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.planned_tables import PlannedTables
from sharding.planning.planner import make_plan
from sharding.planning.topology import CostConstants, Topology, described, this_machine, topology_of
from sharding.planning.warnings import warnings_of
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.placement.loads import dataset_facts, table_loads, table_rows
from trainer.storage.files import digest_of
from trainer.storage.objects.paths import path_of

PLAN_FILE = "plan.json"
ASSUMED_GPU = "h100-80gb"
Device = Literal["cpu", "cuda"]


def plan_tables(job: Job, manifest: Manifest, num_workers: int, device: Device) -> PlannedTables:
    """Return the plan for these workers: from the run's plan.json if it was made from the same inputs, otherwise a new one.

    Raises PlacementError if no plan fits the devices, and UserError if plan.calibration cannot be read.
    """
    if job.config.plan.replica_groups > 1:
        raise PlacementError(
            f"plan.replica_groups = {job.config.plan.replica_groups}: replica groups can be planned with `shoal plan` but not "
            "trained yet; set plan.replica_groups = 1"
        )
    num_rows = table_rows(job.config.tables, manifest, job.config.model.inputs)
    facts = dataset_facts(manifest, job.config.model.inputs)
    loads = tuple(table_loads(job.config.tables, num_rows, job.config.model, job.config.train, num_workers, facts))
    topology = topology_for(job.config.plan, num_workers, device)
    inputs = inputs_of(loads, topology, job.config.communication, job.config.plan.replica_groups)
    plan = read_plan(job.run_dir)
    if plan is None or plan.inputs != inputs:
        plan = make_plan(loads, topology, job.config.communication, inputs, job.config.plan.replica_groups)
    prediction = predict(plan, loads, topology, job.config.communication)
    return PlannedTables(
        plan, loads, topology, job.config.communication, tuple(warnings_of(plan, prediction, loads, topology))
    )


def inputs_of(
    loads: Sequence[TableLoad], topology: Topology, communication: CommunicationConfig, replica_groups: int
) -> str:
    """Return a hash of all inputs of a plan."""
    return digest_of(
        {
            "loads": [asdict(load) for load in loads],
            "topology": asdict(topology),
            "communication": communication.model_dump(mode="json"),
            "replica_groups": replica_groups,
        }
    )


def read_plan(run_dir: Path) -> Plan | None:
    """Return the plan that the run has written, or None."""
    try:
        return plan_of(json.loads((run_dir / PLAN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def topology_for(config: DevicesConfig, num_workers: int, device: Device, preset: str | None = None) -> Topology:
    """Return the workers' devices: the settings, completed by this machine or by the GPU preset.

    Args:
        config: The settings of the devices.
        num_workers: The world size.
        device: "cpu" or "cuda".
        preset: The GPU to assume where the settings are not given; default: ASSUMED_GPU.
    """
    if device == "cuda":
        machine = described(preset or ASSUMED_GPU, num_workers, config.devices_per_host or 8)
    else:
        machine = this_machine(num_workers)
    topology = topology_of(config, num_workers, machine)
    return topology if config.calibration is None else replace(topology, constants=read_constants(config.calibration))


def read_constants(path: str) -> CostConstants:
    """Return the constants in a calibration.json. Raises UserError if the file is not one."""
    try:
        values: Mapping[str, Any] = json.loads(path_of(path).read_text(encoding="utf-8"))["constants"]
        return CostConstants(**{name: float(value) for name, value in values.items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"plan.calibration {path}: cannot be read as a file written by `shoal plan --calibrate RUN` ({error!r})"
        ) from None
