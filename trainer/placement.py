"""The plan of a run's tables: how large they are, how much they are used, and the plan that follows. No collective, no worker."""

import json
from dataclasses import asdict
from pathlib import Path

from sharding.plan import Plan, plan_of
from sharding.planning.planner import make_plan
from sharding.planning.topology import GIB, Topology
from trainer.dataset.manifest import Manifest
from trainer.job import Job
from trainer.storage import digest_of
from trainer.table_loads import facts_of, table_loads, table_rows

PLAN_FILE = "plan.json"


def plan_tables(job: Job, manifest: Manifest, num_workers: int, device: str) -> Plan:
    """The plan for these workers: read from the run's plan.json if that was made from the same inputs, else made.

    Raises PlacementError if there is none.
    """
    num_rows = table_rows(job.tables, manifest)
    loads = table_loads(job.tables, num_rows, job.model, job.train, num_workers, facts_of(manifest))
    topology = _topology(job, num_workers, device)
    facts = {"loads": [asdict(load) for load in loads], "topology": asdict(topology)}
    inputs = digest_of({**facts, "communication": job.communication.model_dump(mode="json")})
    before = read_plan(job.run_dir)
    if before is not None and before.inputs == inputs:
        return before
    return make_plan(loads, topology, inputs=inputs, replica_groups=job.placement.replica_groups)


def read_plan(run_dir: Path) -> Plan | None:
    """The plan that the run has written, or none."""
    try:
        return plan_of(json.loads((run_dir / PLAN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _topology(job: Job, num_workers: int, device: str) -> Topology:
    memory = job.placement.device_memory
    return Topology(
        device="cuda" if device == "cuda" else "cpu",
        num_devices=num_workers,
        devices_per_host=min(num_workers, job.placement.devices_per_host or num_workers),
        device_memory=int(memory) if memory is not None else 1024 * GIB,
        reserved_fraction=job.placement.reserved_fraction,
    )
