"""The input of a plan: from a run's config or a workload, and the command's options, to loads and devices.

Imports neither torch nor ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config.file import apply_override, read_values
from cluster.config.run_config import Config, check_config
from cluster.plan.workload import check_workload
from sharding.config import CommunicationConfig, DevicesConfig
from sharding.planning.load import TableLoad
from sharding.planning.topology import Topology
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.inputs import declared_features
from trainer.errors import UserError
from trainer.placement.loads import (
    ITEM_TABLE,
    dataset_facts,
    declared_rows,
    demand_of,
    facts_of,
    table_loads,
    table_rows,
)
from trainer.placement.plan import ASSUMED_GPU, topology_for

WORKLOAD_HINT = (
    " (in a workload, plan.device_memory is topology.device_memory, cluster.num_workers is topology.devices, and "
    "tables.NAME is table.NAME)"
)
FULL_SOFTMAX_HINT = (
    '. With model.objective.kind = "full_softmax" every worker looks up all rows of the item table in each step; "sampled_softmax" '
    "looks up some negatives only"
)
# Names that are allowed without a section, as options and in --compare, and the setting of a run that each sets.
OPTIONS = {
    "devices": "cluster.num_workers",
    "device": "cluster.gpus_per_worker",
    "devices_per_host": "plan.devices_per_host",
    "device_memory": "plan.device_memory",
    "host_memory": "plan.host_memory",
    "preset": None,
}


@dataclass(frozen=True)
class PlanRequest:
    """The input of a plan."""

    name: str  # of the config
    folder: Path  # of the plan's files by default
    loads: tuple[TableLoad, ...]
    topology: Topology
    communication: CommunicationConfig
    replica_groups: int
    assumptions: tuple[str, ...]  # figures that were not given, a line each
    hint: str = ""  # appended to the message if there is no plan
    config: Config | None = None  # of a run; None for a workload
    preset: str | None = None  # the GPU preset that was chosen


def read_request(
    path: str, settings: list[str], rows: Mapping[str, int], mean_inputs: float | None = None
) -> PlanRequest:
    """Read the request of a file with `key=value` settings, including OPTIONS.

    Args:
        path: the config or the workload.
        settings: KEY=VALUE.
        rows: of tables of unknown size.
        mean_inputs: mean input events of a history to assume where there is no dataset; default: as long as the model allows.

    Raises:
        UserError: a setting is wrong or missing.
        PlacementError: an unknown preset.
    """
    values = read_values(path)
    options = [setting for setting in settings if setting.partition("=")[0].strip() in OPTIONS]
    chosen = {name.strip(): value for name, _, value in (option.partition("=") for option in options)}
    rest = [setting for setting in settings if setting not in options]
    preset = chosen.pop("preset", None)
    if chosen.get("device", "cpu") not in ("cpu", "cuda"):
        raise UserError(f"device = {chosen['device']}: choose cpu or cuda")
    if "table" in values:
        return _of_workload(path, values, [f"topology.{k}={v}" for k, v in chosen.items()] + rest, rows, preset)
    if "device" in chosen:
        chosen["device"] = "1" if chosen["device"] == "cuda" else "0"
    overrides = [f"{OPTIONS[k]}={v}" for k, v in chosen.items()] + rest
    return _of_run(path, values, overrides, rows, preset, mean_inputs)


def _of_workload(
    path: str, values: dict[str, Any], overrides: list[str], rows: Mapping[str, int], preset: str | None
) -> PlanRequest:
    for name in rows:
        if name not in {table.get("name") for table in values["table"] if isinstance(table, dict)}:
            raise UserError(f"--rows {name}: {path} has no such table")
    overrides = [*overrides, *(f"table.{name}.rows={number}" for name, number in rows.items())]
    workload = check_workload(values, path, overrides)
    given = workload.topology
    topology, assumptions = _topology(given, given.devices, given.device, preset or given.preset)
    name = Path(path).stem
    return PlanRequest(
        name,
        Path(f"plan-{name}"),
        tuple(workload.loads()),
        topology,
        workload.communication,
        given.replica_groups,
        assumptions,
        WORKLOAD_HINT,
    )


def _of_run(
    path: str,
    values: dict[str, Any],
    overrides: list[str],
    rows: Mapping[str, int],
    preset: str | None,
    mean_inputs: float | None,
) -> PlanRequest:
    for override in overrides:
        apply_override(override, values)
    config = check_config(values, path)
    manifest = read_manifest(config.dataset_dir) if (config.dataset_dir / "manifest.json").exists() else None
    num_rows = _rows(config, manifest, rows)
    facts = dataset_facts(manifest, config.model.inputs) if manifest is not None else None
    if facts is None and mean_inputs is not None:
        # The last event of a history is a target only.
        facts = facts_of(declared_features(config.logs, config.model.inputs), num_rows[ITEM_TABLE], mean_inputs + 1.0)
    loads = table_loads(config.tables, num_rows, config.model, config.train, config.cluster.num_workers, facts)
    device = config.cluster.device
    topology, assumptions = _topology(config.plan, config.cluster.num_workers, device, preset)
    if facts is None:
        assumptions += (demand_of(config.model).assumed_history,)
    return PlanRequest(
        Path(path).stem,
        config.run_dir / "plan",
        tuple(loads),
        topology,
        config.communication,
        config.plan.replica_groups,
        assumptions,
        FULL_SOFTMAX_HINT if demand_of(config.model).looks_up_all_items else "",
        config,
        preset,
    )


def _rows(config: Config, manifest: Manifest | None, given: Mapping[str, int]) -> dict[str, int]:
    """Return the rows of every table that the model looks up: as given, from the dataset, or from the config."""
    if manifest is not None:
        known: dict[str, int | None] = dict(table_rows(config.tables, manifest, config.model.inputs))
    else:
        known = declared_rows(config.tables, config.logs, config.model.inputs)
    for name in given:
        if name not in known:
            raise UserError(f"--rows {name}: the model looks up no such table; it looks up {', '.join(sorted(known))}")
    num_rows: dict[str, int] = {}
    for name, rows in {**known, **given}.items():
        if rows is None:
            raise UserError(
                f"tables.{name}: the number of rows is unknown, because its ids are a vocabulary of the logs and "
                f"{config.dataset_dir} holds no dataset; run `shoal prepare` first, or set it: --rows {name}=N"
            )
        num_rows[name] = rows
    return num_rows


def _topology(
    config: DevicesConfig, num_devices: int, device: str, preset: str | None
) -> tuple[Topology, tuple[str, ...]]:
    if device == "cuda":
        note = () if preset else (f"GPUs have the figures of {ASSUMED_GPU} where the config sets none",)
        return topology_for(config, num_devices, "cuda", preset), note
    if preset:
        raise UserError(
            f"preset = {preset} describes GPUs, but the plan is for CPUs; add --device cuda, or omit the preset"
        )
    note = (
        ()
        if config.device_memory
        else (f"{num_devices} workers have the figures of this machine and share its memory",)
    )
    return topology_for(config, num_devices, "cpu"), note
