"""The plan of a run's tables: how large they are, how much they are used, on what, and the plan that follows. No collective."""

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
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.job import Job
from trainer.placement.loads import facts_of, table_loads, table_rows
from trainer.storage.files import digest_of

PLAN_FILE = "plan.json"
ASSUMED_GPU = "h100-80gb"
Device = Literal["cpu", "cuda"]


def plan_tables(job: Job, manifest: Manifest, num_workers: int, device: Device) -> PlannedTables:
    """The plan for these workers: read from the run's plan.json if that was made from the same inputs, else made.

    Raises PlacementError if there is none, UserError if plan.calibration cannot be read.
    """
    if job.config.plan.replica_groups > 1:
        raise PlacementError(
            f"plan.replica_groups = {job.config.plan.replica_groups}: replica groups can be planned with `shoal plan` but not "
            "trained yet; set plan.replica_groups = 1"
        )
    num_rows = table_rows(job.config.tables, manifest, job.config.model.inputs)
    facts = facts_of(manifest, job.config.model.inputs)
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
    """Hash of all that a plan follows from."""
    return digest_of(
        {
            "loads": [asdict(load) for load in loads],
            "topology": asdict(topology),
            "communication": communication.model_dump(mode="json"),
            "replica_groups": replica_groups,
        }
    )


def read_plan(run_dir: Path) -> Plan | None:
    """The plan that the run has written, or none."""
    try:
        return plan_of(json.loads((run_dir / PLAN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def topology_for(config: DevicesConfig, num_workers: int, device: Device, preset: str | None = None) -> Topology:
    """The workers' devices: as the config says, and where it is silent like this machine, or like the GPUs called `preset`."""
    if device == "cuda":
        machine = described(preset or ASSUMED_GPU, num_workers, config.devices_per_host or 8)
    else:
        machine = this_machine(num_workers)
    topology = topology_of(config, num_workers, machine)
    return topology if config.calibration is None else replace(topology, constants=read_constants(config.calibration))


def read_constants(path: str) -> CostConstants:
    """The constants in a calibration.json. Raises UserError if it is none."""
    try:
        values: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))["constants"]
        return CostConstants(**{name: float(value) for name, value in values.items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"plan.calibration {path}: cannot be read as the file that `shoal plan --calibrate RUN` writes ({error!r})"
        ) from None
