"""Time of a step for a number of workers: dense part, straggler, tables, sums, reading. Imports no torch.

A step is synchronous and its parts follow one another. That the sums of dense gradients overlap with the backward pass
(trainer/optim/gradient_buckets.py) is left out, so `sums` is an upper bound. For W workers, w of them with t threads on each
host of c cores:

busy        max(1, w t / c): so many times longer takes work that all workers of a host have at the same time
speed       of a worker: 1 alone on its host, busy_core_speed if all cores of the host work, linear in between
dense       a rank's FLOPs / (peak_flops x efficiency) + memory_factor x bytes / device_bandwidth, on average, x busy / speed
straggler   what the busiest rank takes longer than that. Workers that share cores fill the waiting of others, so the time of the
            phase is the larger one of the busiest rank's work alone and of the mean work x busy
tables      the prediction of sharding.planning.costs for the plan of W workers, x busy / speed; their exchange includes
            that of examples, unless workers get equal numbers of them
sums        2 all-reduces (4 with clip_norm): the gradient of dense weights, and the numbers on which ranks agree, x busy / speed
other       (step_seconds + block_seconds x blocks of the encoder) x busy / speed
data wait   what reading the rows of a step takes longer than the step: files are read ahead

latency     of W ranks: that of two ranks + latency_per_doubling_seconds x log2(W / 2)
"""

from dataclasses import dataclass, fields, replace
from math import log2

import numpy as np

from cluster.config.run_config import Config
from cluster.plan.grids import Planned
from cluster.plan.simulation.examples import DenseWork, TrainingSet
from cluster.plan.simulation.profiles import Constants
from cluster.plan.simulation.straggler import ExampleWork, slowest_if_dealt, slowest_of_examples
from models.ranking.config import RankingConfig
from sharding.planning.costs import all_reduce_seconds, all_to_all_seconds
from sharding.planning.topology import Topology
from trainer.data.stream.dealing import limit_of

NETWORK_PHASES = ("input", "output", "gradient")
FLOAT = 4
UNPACKED = 2.0  # bytes of an event that is sent over those in files: an item and a time have 12, and about 6
LENGTH_BYTES = 8  # of an example of the global batch: a rank asks another one for its length
AGREED_NUMBERS = 8  # on which ranks agree in a step, besides two of each rank


@dataclass(frozen=True)
class Machine:
    """The workers of a simulation, and the cores that they share."""

    constants: Constants
    topology: Topology
    threads: int  # of each worker

    @property
    def busy(self) -> float:
        """The factor on the time of work that all workers of a host have at the same time."""
        return max(1.0, self._occupied)

    @property
    def speed(self) -> float:
        """The speed of a worker among those of its host, compared with one alone."""
        cores = self.constants.number("cores_per_host")
        if cores is None or self.topology.devices_per_host == 1 or cores <= self.threads:
            return 1.0
        part = (min(1.0, self._occupied) - self.threads / cores) / (1.0 - self.threads / cores)
        return 1.0 - (1.0 - self.constants.busy_core_speed.value) * part

    @property
    def slowdown(self) -> float:
        """The factor on the time of a worker's share of work that all workers have."""
        return self.busy / self.speed

    @property
    def is_full(self) -> bool:
        """True if the workers of a host have as many threads as it has cores."""
        return self._occupied == 1.0

    @property
    def num_hosts(self) -> int:
        """The number of hosts."""
        return -(-self.topology.num_devices // self.topology.devices_per_host)

    @property
    def _occupied(self) -> float:
        cores = self.constants.number("cores_per_host")
        return 0.0 if cores is None else self.topology.devices_per_host * self.threads / cores

    def seconds(self, products: float, moved: float) -> float:
        """Return the time of a worker alone for FLOPs of matrix products and bytes."""
        constants = self.constants
        rate = constants.peak_flops.value * constants.efficiency.value
        return products / rate + constants.memory_factor.value * moved / self.topology.device_bandwidth

    def added_latency(self) -> float:
        """Return the latency of a collective that more than two ranks add."""
        doublings = log2(max(1.0, self.topology.num_devices / 2.0))
        return self.constants.latency_per_doubling_seconds.value * doublings


def with_latency(topology: Topology, constants: Constants) -> Topology:
    """Return the topology with the latency of a collective among its ranks."""
    machine = Machine(constants, topology, 1)
    given = constants.number("latency_seconds")
    latency = topology.latency_seconds if given is None else given
    return replace(topology, latency_seconds=latency + machine.added_latency())


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a step by part. The parts follow one another."""

    dense: float
    straggler: float
    look_up: float
    exchange: float
    sums: float
    other: float
    data_wait: float

    @property
    def total(self) -> float:
        """The time of the step."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def step_seconds(
    config: Config, planned: Planned, examples: TrainingSet, work: DenseWork, machine: Machine
) -> StepSeconds:
    """Return the time of a step.

    Args:
        config: the config, with the global batch of these workers.
        planned: the plan of the tables, with the latencies of these workers.
        examples: the training examples.
        work: the dense work of a rank.
        machine: the workers.
    """
    num_ranks = machine.topology.num_devices
    slowdown = machine.slowdown
    fixed = machine.seconds(work.fixed_products, work.fixed_moved)
    per_length = [machine.seconds(*pair) for pair in zip(work.products.tolist(), work.moved.tolist(), strict=True)]
    of_example = ExampleWork(examples.lengths, examples.probabilities, np.asarray(per_length))
    mean = of_example.mean * examples.batch_examples(config) / num_ranks + fixed
    if _deals_evenly(config):
        slowest = fixed + slowest_of_examples(of_example, config.train.batch_size, num_ranks)
    else:
        limit = limit_of(config.train.batch_size, config.train.batch_tokens)
        slowest = fixed + slowest_if_dealt(of_example, limit, num_ranks, config.train.deal_by == "flops")
    dense = mean * slowdown
    phases = {name: float(phase.sum(axis=0).max(initial=0.0)) for name, phase in planned.prediction.phases.items()}
    exchange = sum(phases[name] for name in NETWORK_PHASES)
    parts = StepSeconds(
        dense=dense,
        straggler=max(0.0, slowest / machine.speed - dense),
        look_up=(sum(phases.values()) - exchange) * slowdown,
        exchange=(exchange + _example_seconds(config, examples, machine.topology)) * slowdown,
        sums=_sum_seconds(config, work, machine) * slowdown,
        other=(machine.constants.step_seconds.value + machine.constants.block_seconds.value * work.num_blocks)
        * slowdown,
        data_wait=0.0,
    )
    reading = read_seconds(config, examples, machine)
    return replace(parts, data_wait=max(0.0, reading - parts.total))


def _deals_evenly(config: Config) -> bool:
    """Return whether workers get equal numbers of examples, whatever their lengths."""
    return isinstance(config.model, RankingConfig) or config.train.deal_by == "count"


def num_sums(config: Config) -> int:
    """Return the sums over all ranks in a step."""
    return 2 if config.train.clip_norm is None else 4


def _sum_seconds(config: Config, work: DenseWork, machine: Machine) -> float:
    topology = machine.topology
    if topology.num_devices == 1:
        return 0.0
    num_bytes = FLOAT * work.dense_parameters + 2 * FLOAT * (AGREED_NUMBERS + 2 * topology.num_devices)
    latency = machine.constants.sum_latency_seconds.value + machine.added_latency()
    return num_sums(config) * latency + all_reduce_seconds(num_bytes, topology)


def read_bytes(config: Config, examples: TrainingSet, num_ranks: int) -> float:
    """Return the bytes that a rank reads in a step.

    Equal numbers of examples are dealt by streams of row groups, which ranks share if there are more of them than streams. If
    examples are dealt by length or FLOPs, each row group is read by one rank, which sends its examples to the others.
    """
    events = examples.batch_examples(config) * examples.mean / num_ranks
    times = float(-(-num_ranks // config.train.streams)) if _deals_evenly(config) else 1.0
    return events * examples.bytes_per_event * times


def _example_seconds(config: Config, examples: TrainingSet, topology: Topology) -> float:
    """Return the time in which ranks exchange the examples of a step, and the lengths by which they are dealt."""
    if _deals_evenly(config) or topology.num_devices == 1:
        return 0.0
    num_bytes = UNPACKED * read_bytes(config, examples, topology.num_devices)
    num_bytes += LENGTH_BYTES * examples.batch_examples(config)
    return all_to_all_seconds(num_bytes, topology)


def read_seconds(config: Config, examples: TrainingSet, machine: Machine) -> float:
    """Return the time of reading the rows of a step."""
    topology = machine.topology
    each = read_bytes(config, examples, topology.num_devices)
    return max(
        each * topology.devices_per_host / machine.constants.read_bandwidth.value,
        each * topology.num_devices / machine.constants.total_read_bandwidth.value,
    )
