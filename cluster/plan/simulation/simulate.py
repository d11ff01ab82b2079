"""Simulation: steps, traffic, checkpoints and failures of a config on several numbers of workers. Imports no torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cluster.config.run_config import Config
from cluster.plan.calibration import Fitted, refuse_other_device
from cluster.plan.command import make
from cluster.plan.grids import Planned
from cluster.plan.request import PlanRequest, read_request
from cluster.plan.simulation.calibration import fitted_constants
from cluster.plan.simulation.checkpoints import CheckpointCost, FailureCost, checkpoint_cost, failure_cost
from cluster.plan.simulation.config import SimulationConfig
from cluster.plan.simulation.examples import TrainingSet, dense_work, read_training_set
from cluster.plan.simulation.profiles import Constants, cpu_profile, gpu_profile, overridden
from cluster.plan.simulation.step import Machine, StepSeconds, read_bytes, step_seconds, with_latency
from sharding.errors import PlacementError
from sharding.planning.costs import HOST_KERNELS
from trainer.errors import UserError
from trainer.placement.loads import ITEM_TABLE
from trainer.placement.plan import ASSUMED_GPU

Scaling = Literal["weak", "strong"]
WORKERS = tuple(1 << power for power in range(11))
MOST_WORKERS = 1 << 16


@dataclass(frozen=True)
class Point:
    """The prediction for one number of workers."""

    workers: int
    hosts: int
    batch: int  # of all workers, in examples or, with train.batch_tokens, in input events
    step_seconds: float
    parts: StepSeconds
    examples_per_second: float
    events_per_second: float
    efficiency: float  # examples per second and worker, compared with the fewest workers that are simulated
    sent_bytes: float  # most that a rank sends in a step to look up tables
    gradient_bytes: float  # of dense weights, summed over ranks
    read_bytes: float  # that a rank reads in a step
    read_bytes_per_second: float  # of all ranks
    device_memory: float  # share of the limit that tables take on the fullest device
    in_host_memory: tuple[str, ...]  # tables outside of device memory
    checkpoint: CheckpointCost
    failures: FailureCost
    kept_events_per_second: float  # events per second times goodput


@dataclass(frozen=True)
class Simulation:
    """The predictions for all numbers of workers."""

    name: str  # of the config
    scaling: Scaling
    batch_unit: str  # of Point.batch
    points: tuple[Point, ...]  # ascending in workers
    refused: dict[int, str]  # workers that cannot hold the tables, with the reason
    constants: Constants
    facts: dict[str, float]  # of the model and the examples
    assumptions: tuple[str, ...]  # that depend on config and dataset, a sentence each

    def values(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "config": self.name,
            "scaling": self.scaling,
            "batch_unit": self.batch_unit,
            "points": [asdict(point) for point in self.points],
            "refused": {str(workers): reason for workers, reason in self.refused.items()},
            "constants": self.constants.values(),
            "facts": self.facts,
        }


@dataclass(frozen=True)
class Base:
    """A config before its number of workers is chosen."""

    path: str
    settings: tuple[str, ...]
    rows: Mapping[str, int]
    request: PlanRequest  # with the settings as they are
    config: Config
    constants: Constants
    examples: TrainingSet
    scaling: Scaling

    def request_of(self, workers: int) -> PlanRequest:
        """Return the request of a plan for a number of workers, with their global batch."""
        own = [f"devices={workers}", "cluster.min_workers=none"]  # which may be more than these
        train = self.config.train
        if self.scaling == "weak":
            name = "batch_size" if train.batch_tokens is None else "batch_tokens"
            per_worker = getattr(train, name) / self.config.cluster.num_workers
            own.append(f"train.{name}={max(1, round(per_worker * workers))}")
        return read_request(self.path, [*self.settings, *own], self.rows, self.examples.mean)


def read_base(
    path: str,
    settings: list[str],
    rows: Mapping[str, int],
    constants: SimulationConfig,
    scaling: Scaling,
    runs: Sequence[str] = (),
    fitted: Fitted | None = None,
) -> Base:
    """Read what does not depend on the number of workers.

    Args:
        path: the config of a run.
        settings: KEY=VALUE, without those of the simulation.
        rows: rows of tables of unknown size.
        constants: constants that are given.
        scaling: weak or strong.
        runs: measured runs that the constants of the dense part are fitted to.
        fitted: constants of the cost of tables, fitted to these runs.

    Raises:
        UserError: a wrong setting, or a workload.
        PlacementError: an unknown preset.
    """
    request = read_request(path, settings, rows)
    config = request.config
    if config is None:
        raise UserError(
            f"--simulate: {path} is a workload, which has tables only; give the config of a run, which has a model too"
        )
    item_rows = next(load.num_rows for load in request.loads if load.name == ITEM_TABLE)
    examples = read_training_set(config, constants.histories, item_rows)
    profile = profile_of(request, config)
    if fitted is not None:
        refuse_other_device(fitted, request.topology)
        profile = fitted_constants(runs, profile, fitted)
    resolved = overridden(profile, constants)
    bytes_per_event = resolved.number("bytes_per_event")
    if bytes_per_event is not None:
        examples = replace(examples, bytes_per_event=bytes_per_event)
    own = _hosts_like_this_machine(config, resolved)
    return Base(path, (*settings, *own), rows, request, config, resolved, examples, scaling)


def profile_of(request: PlanRequest, config: Config) -> Constants:
    """Return the constants of the devices of a plan."""
    topology = request.topology
    if topology.device == "cuda":
        return gpu_profile(request.preset or ASSUMED_GPU, config.train.precision, topology.host_bandwidth)
    return cpu_profile(os.cpu_count() or 1)


def _hosts_like_this_machine(config: Config, constants: Constants) -> list[str]:
    """Return settings that give CPU workers hosts like this machine: as many as there are cores for, with its memory."""
    cores = constants.number("cores_per_host")
    if config.cluster.device == "cuda" or cores is None:
        return []
    per_host = config.plan.devices_per_host or max(1, int(cores) // config.cluster.cpus_per_worker)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // per_host
    settings = [] if config.plan.devices_per_host else [f"devices_per_host={per_host}"]
    return settings + ([] if config.plan.device_memory else [f"device_memory={memory}"])


def simulate(base: Base, workers: Sequence[int], fitted: Fitted | None = None) -> Simulation:
    """Return the predictions for numbers of workers.

    Args:
        base: the config.
        workers: the numbers of workers.
        fitted: constants of the cost of tables, fitted to runs.

    Raises:
        UserError: none of these numbers of workers can hold the tables.
    """
    results: list[tuple[Planned, Machine, Config]] = []
    refused: dict[int, str] = {}
    for number in sorted(set(workers)):
        request = base.request_of(number)
        assert request.config is not None
        topology = with_latency(request.topology, base.constants)
        try:
            planned = make(replace(request, topology=topology), fitted)
        except PlacementError as error:
            refused[number] = str(error).splitlines()[0]
            continue
        machine = Machine(base.constants, planned.request.topology, request.config.cluster.cpus_per_worker)
        results.append((planned, machine, request.config))
    if not results:
        raise UserError(f"--simulate: no number of workers can hold the tables; with most: {refused[max(refused)]}")
    points = [_point(base, *result) for result in results]
    first = points[0]
    compared = tuple(_compared(point, first) for point in points)
    tokens = base.config.train.batch_tokens is not None
    return Simulation(
        base.request.name,
        base.scaling,
        "input events" if tokens else "examples",
        compared,
        refused,
        base.constants,
        _facts(base, results[-1]),
        base.examples.assumptions,
    )


def _compared(point: Point, first: Point) -> Point:
    """Return a point with its efficiency, compared with the first one."""
    per_worker = point.examples_per_second / point.workers
    return replace(point, efficiency=per_worker * first.workers / first.examples_per_second)


def _point(base: Base, planned: Planned, machine: Machine, config: Config) -> Point:
    workers = machine.topology.num_devices
    examples = base.examples
    work = dense_work(config, examples, workers)
    parts = step_seconds(config, planned, examples, work, machine)
    per_second = examples.batch_examples(config) / parts.total
    checkpoint = checkpoint_cost(config, planned, work.dense_parameters, machine)
    failures = failure_cost(config, checkpoint, parts.total, per_second, machine)
    memory = planned.prediction.memory_bytes.sum(axis=0).max() / machine.topology.capacity_bytes
    read = read_bytes(config, examples, workers)
    return Point(
        workers=workers,
        hosts=machine.num_hosts,
        batch=config.train.batch_tokens or config.train.batch_size,
        step_seconds=parts.total,
        parts=parts,
        examples_per_second=per_second,
        events_per_second=per_second * examples.mean,
        efficiency=1.0,
        sent_bytes=float(planned.prediction.sent_bytes.sum(axis=0).max()),
        gradient_bytes=4.0 * work.dense_parameters,
        read_bytes=read,
        read_bytes_per_second=read * workers / parts.total,
        device_memory=float(memory),
        in_host_memory=tuple(name for name, table in planned.plan.tables.items() if table.kernel in HOST_KERNELS),
        checkpoint=checkpoint,
        failures=failures,
        kept_events_per_second=per_second * examples.mean * failures.goodput,
    )


def _facts(base: Base, last: tuple[Planned, Machine, Config]) -> dict[str, float]:
    """Return the figures of model, examples and tables that do not depend on the number of workers."""
    planned, machine, config = last
    examples = base.examples
    work = dense_work(config, examples, machine.topology.num_devices)
    loads = planned.request.loads
    return {
        "dense_parameters": float(work.dense_parameters),
        "table_parameters": float(sum(load.num_rows * load.dim for load in loads)),
        "table_rows": float(sum(load.num_rows for load in loads)),
        "events_per_example": examples.mean,
        "longest_example": float(examples.lengths.max()),
        "matmul_flops_per_example": float(examples.probabilities @ work.products),
        "bytes_per_event": examples.bytes_per_event,
    }
