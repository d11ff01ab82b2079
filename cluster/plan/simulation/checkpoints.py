"""Checkpoints and failures of a number of workers: bytes, stall, time of writing, interval, goodput. Imports no torch."""

from dataclasses import dataclass

import numpy as np

from cluster.config.run_config import Config
from cluster.plan.grids import Planned
from cluster.plan.simulation.failures import daly_seconds, goodput_of, young_seconds
from cluster.plan.simulation.step import FLOAT, Machine
from sharding.planning.costs import stored_bytes, use_of
from sharding.planning.shares import shares_of

# Numbers of optimizer state per dense weight.
DENSE_STATE = {"adamw": 2, "lion": 1, "adagrad": 1, "sgd": 0}


@dataclass(frozen=True)
class CheckpointCost:
    """The cost of a checkpoint."""

    num_bytes: float  # of all files
    rank_bytes: float  # most that a rank writes
    stall_seconds: float  # for which training waits
    write_seconds: float  # from the copy to the commit
    read_seconds: float  # of a restart


@dataclass(frozen=True)
class FailureCost:
    """The cost of failures and checkpoints."""

    failures_per_day: float
    recovery_seconds: float  # from a failure to the first step, with reading the checkpoint
    interval_seconds: float  # of training between checkpoints
    young_seconds: float  # the optimal interval, of first order
    daly_seconds: float  # the same, of higher order
    replayed_seconds: float  # of training that a failure loses, on average: half an interval, and the time of writing
    replayed_examples: float
    goodput: float  # share of time in which steps are trained that are kept


def checkpoint_cost(config: Config, planned: Planned, dense_parameters: int, machine: Machine) -> CheckpointCost:
    """Return the cost of a checkpoint. Values that are equal on all ranks are stored once, by the first rank."""
    plan = planned.plan
    loads = {load.name: load for load in planned.request.loads}
    num_ranks = plan.world_size // plan.replica_groups
    tables = list(plan.tables.values())
    use = use_of(tables, [loads[name] for name in plan.tables])
    shares = shares_of(tables, num_ranks, min(plan.local_world_size, num_ranks))
    weights, state = stored_bytes(use, shares)
    held = weights + state
    once = np.where(use.replicated, 0.0, held)
    of_ranks = once.sum(axis=0)
    copies = 1 + DENSE_STATE[config.train.optimizer] + (config.train.ema_decay is not None)
    of_ranks[0] += FLOAT * dense_parameters * copies + float((held - once)[:, 0].sum())
    return _times(of_ranks, config.checkpoint.background, machine)


def _times(of_ranks: np.ndarray, background: bool, machine: Machine) -> CheckpointCost:
    constants = machine.constants
    per_host = machine.topology.devices_per_host
    total = float(of_ranks.sum())
    largest = float(of_ranks.max())
    fullest_host = float(np.add.reduceat(of_ranks, np.arange(0, of_ranks.size, per_host)).max())
    write = max(fullest_host / constants.write_bandwidth.value, total / constants.total_write_bandwidth.value)
    copy = largest / constants.copy_bandwidth.value
    return CheckpointCost(
        num_bytes=total,
        rank_bytes=largest,
        stall_seconds=copy if background else write,
        write_seconds=write,
        read_seconds=max(fullest_host / constants.read_bandwidth.value, total / constants.total_read_bandwidth.value),
    )


def failure_cost(
    config: Config, checkpoint: CheckpointCost, step: float, examples_per_second: float, machine: Machine
) -> FailureCost:
    """Return the cost of failures.

    Args:
        config: the config.
        checkpoint: the cost of a checkpoint.
        step: seconds of a step without checkpoints.
        examples_per_second: of all workers, without checkpoints and failures.
        machine: the workers.
    """
    constants = machine.constants
    mtbf = 3600.0 * constants.host_mtbf_hours.value / machine.num_hosts
    daly = daly_seconds(checkpoint.stall_seconds, mtbf)
    written = checkpoint.write_seconds if config.checkpoint.background else 0.0
    given = constants.number("checkpoint_seconds")
    if given is None and config.checkpoint.every_steps is not None:
        given = config.checkpoint.every_steps * step
    # A checkpoint begins after the end of a step, and no checkpoint before the previous one is committed.
    interval = max(daly, written, step) if given is None else max(given, step)
    stall = checkpoint.stall_seconds + max(0.0, written - interval)
    recovery = constants.recovery_seconds.value + checkpoint.read_seconds
    # A failure while a checkpoint is being written loses the interval before it as well.
    goodput = goodput_of(interval, stall, recovery + written, mtbf)
    replayed = interval / 2.0 + written
    return FailureCost(
        failures_per_day=86_400.0 / mtbf,
        recovery_seconds=recovery,
        interval_seconds=interval,
        young_seconds=young_seconds(checkpoint.stall_seconds, mtbf),
        daly_seconds=daly,
        replayed_seconds=replayed,
        replayed_examples=replayed * examples_per_second,
        goodput=goodput,
    )
