"""placement.json in the run folder: what the plan's look-ups cost, beside what was predicted. Imports no torch.

{"plan", "loads", "topology", "communication"   what the prediction was made from, as plain values
 "predicted": {"memory_bytes": {table: [by rank]}, "seconds": {table: {phase: [[by trial, rank]]}}}
 "measured":  {"num_ids": {table: [by trial]}, "memory_bytes", "seconds": as above}
 "steps": {"num_steps", "seconds": {part: [by rank]}, "process_bytes": [by rank]}}   of the run so far
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.config import CommunicationConfig
from sharding.plan import Plan, plan_of
from sharding.planning.calibrate import Observation, alone, observations_of
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.measured import Measured
from sharding.planning.planned_tables import PlannedTables
from sharding.planning.topology import CostConstants, Topology
from trainer.errors import UserError

RECORD_FILE = "placement.json"


def observations_in(run_dir: Path) -> tuple[list[Observation], Topology]:
    """What a run measured, to fit constants to, and the devices that it ran on. Raises UserError if it measured nothing."""
    record = read_record(run_dir)
    if "measured" not in record:
        raise UserError(
            f"{run_dir}: has no {RECORD_FILE} with measured look-ups; train it first, with plan.measure = true (the default)"
        )
    plan, loads, topology, communication = _inputs_of(record)
    observations = [
        observation
        for table, num_ids in record["measured"]["num_ids"].items()
        for observation in observations_of(
            plan, loads, topology, communication, table, num_ids, _arrays(record["measured"]["seconds"][table])
        )
    ]
    return observations, topology


def placement_values(planned_tables: PlannedTables, measured: Measured) -> dict[str, Any]:
    """All but "steps"."""
    plan = planned_tables.plan
    loads = planned_tables.loads
    topology = planned_tables.topology
    communication = planned_tables.communication
    whole = predict(plan, loads, topology, communication)
    predicted: dict[str, Any] = {"memory_bytes": {}, "seconds": {}}
    for number, table in enumerate(whole.tables):
        if table not in measured.num_ids:
            continue
        predicted["memory_bytes"][table] = whole.memory_bytes[number].tolist()
        load = next(load for load in loads if load.name == table)
        costs = [
            predict(*alone(plan, load, number), topology, communication).phases for number in measured.num_ids[table]
        ]
        predicted["seconds"][table] = {phase: [cost[phase][0].tolist() for cost in costs] for phase in costs[0]}
    return {
        "plan": plan.values(),
        "loads": [asdict(load) for load in loads],
        "topology": asdict(topology),
        "communication": communication.model_dump(mode="json"),
        "predicted": predicted,
        "measured": {
            "num_ids": measured.num_ids,
            "memory_bytes": {table: held.tolist() for table, held in measured.memory_bytes.items()},
            "seconds": {
                table: {phase: values.tolist() for phase, values in phases.items()}
                for table, phases in measured.seconds.items()
            },
        },
    }


def _inputs_of(record: dict[str, Any]) -> tuple[Plan, list[TableLoad], Topology, CommunicationConfig]:
    lists = ("shardings", "ranks")
    given: list[dict[str, Any]] = [
        {name: tuple(value) if name in lists and value is not None else value for name, value in load.items()}
        for load in record["loads"]
    ]
    loads = [TableLoad(**load) for load in given]
    constants = record["topology"]["constants"]
    topology = Topology(
        **{**record["topology"], "constants": CostConstants(**constants) if constants is not None else None}
    )
    return plan_of(record["plan"]), loads, topology, CommunicationConfig.model_validate(record["communication"])


def _arrays(phases: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    return {phase: np.asarray(values, dtype=np.float64) for phase, values in phases.items()}


def read_record(run_dir: Path) -> dict[str, Any]:
    """Empty if there is none."""
    try:
        record: dict[str, Any] = json.loads((run_dir / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record
