"""Constants of the dense part and of sums, fitted to measured runs. Imports neither torch nor ray.

A run's placement.json has the mean time of a step by part, matmul_peak.json the peak rate of products. Runs on one worker give
efficiency, memory_factor, step_seconds and block_seconds: what is left of a step without its tables is one factor times the dense
work of the profile, step_seconds, and block_seconds for each block (sharding.planning.calibrate). Products and bytes share the
factor, because the work of similar models hardly separates the two. Runs with as many threads as cores give busy_core_speed, from
their dense part, which includes block_seconds. Runs on several workers give the latency of a sum, from what is then left of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from cluster.config.run_config import Config
from cluster.plan.calibration import Fitted
from cluster.plan.command import make
from cluster.plan.grids import Planned
from cluster.plan.request import read_request
from cluster.plan.simulation.config import HistoriesConfig
from cluster.plan.simulation.examples import TrainingSet, dense_work, read_training_set
from cluster.plan.simulation.profiles import Constant, Constants
from cluster.plan.simulation.step import Machine, StepSeconds, num_sums, step_seconds
from sharding.planning.calibrate import fit_linear
from trainer.costing.matmul_peak import MatmulPeak, read_peak
from trainer.errors import UserError
from trainer.placement.record import read_placement
from trainer.storage.objects.paths import path_of

CONFIG = "config.json"


@dataclass(frozen=True)
class MeasuredRun:
    """A run, the plan of its tables, and the measured time of its steps."""

    folder: Path
    config: Config
    planned: Planned  # with the constants that are fitted to the runs
    examples: TrainingSet
    peak: MatmulPeak
    seconds: float  # of a step, mean over steps and ranks
    dense_seconds: float  # of its dense part

    @property
    def workers(self) -> int:
        """The number of workers."""
        return self.peak.num_workers


def fitted_constants(runs: Sequence[str], profile: Constants, fitted: Fitted) -> Constants:
    """Return the profile with the constants that runs have measured.

    Raises:
        UserError: a run has no record of its steps, or its config or dataset cannot be read.
    """
    measured = [read_run(run, fitted) for run in runs]
    source = f"fitted to {', '.join(runs)}"
    alone = [run for run in measured if run.workers == 1]
    if not alone:
        return replace(profile, peak_flops=_peak_of(measured, source))
    constants = _fit_dense(alone, replace(profile, peak_flops=_peak_of(alone, source)), source)
    together = [run for run in measured if run.workers > 1]
    if not together:
        return constants
    full = [run for run in together if _machine(run, constants).is_full]
    if full:
        constants = replace(constants, busy_core_speed=_fit_speed(full, constants, source))
    return replace(constants, sum_latency_seconds=_fit_latency(together, constants, source))


def read_run(run: str, fitted: Fitted) -> MeasuredRun:
    """Read the measurements of a run. Raises UserError if it has none."""
    folder = path_of(run)
    steps = read_placement(folder).get("steps")
    peak = read_peak(folder)
    if steps is None or peak is None or not steps["num_steps"]:
        raise UserError(
            f"--calibrate {run}: has no record of steps (placement.json and matmul_peak.json); train it first, for at least two "
            "steps, with plan.measure = true (the default)"
        )
    request = read_request(str(folder / CONFIG), [f"devices={peak.num_workers}"], {})
    config = request.config
    assert config is not None
    planned = make(request, fitted)
    examples = read_training_set(config, HistoriesConfig(), 1)
    of_ranks = np.sum(list(steps["seconds"].values()), axis=0)
    dense = float(np.mean(steps["seconds"]["dense"]))
    return MeasuredRun(folder, config, planned, examples, peak, float(np.mean(of_ranks)), dense)


def _peak_of(runs: Sequence[MeasuredRun], source: str) -> Constant:
    return Constant(max(run.peak.flops_per_second / run.workers for run in runs), source)


def _fit_dense(runs: Sequence[MeasuredRun], profile: Constants, source: str) -> Constants:
    features = []
    seconds = []
    for run in runs:
        work = dense_work(run.config, run.examples, 1)
        number = run.examples.batch_examples(run.config)
        products = number * float(run.examples.probabilities @ work.products) + work.fixed_products
        moved = number * float(run.examples.probabilities @ work.moved) + work.fixed_moved
        topology = run.planned.request.topology
        rate = profile.peak_flops.value * profile.efficiency.value
        moving = profile.memory_factor.value * moved / topology.device_bandwidth
        features.append([products / rate + moving, 1.0, float(work.num_blocks)])
        # The dense part takes some time, however long the tables are predicted to take.
        seconds.append(max(0.05 * run.seconds, run.seconds - run.planned.prediction.step_seconds))
    prior = np.asarray([1.0, profile.step_seconds.value, profile.block_seconds.value or profile.step_seconds.value])
    factor, of_step, of_block = fit_linear(np.asarray(features), np.asarray(seconds), prior).tolist()
    return replace(
        profile,
        efficiency=Constant(min(1.0, profile.efficiency.value / max(factor, 1e-9)), source),
        memory_factor=Constant(profile.memory_factor.value * factor, source),
        step_seconds=Constant(of_step, source),
        block_seconds=Constant(of_block, source),
    )


def _machine(run: MeasuredRun, constants: Constants) -> Machine:
    return Machine(constants, run.planned.request.topology, run.config.cluster.cpus_per_worker)


def _step(run: MeasuredRun, constants: Constants) -> StepSeconds:
    work = dense_work(run.config, run.examples, run.workers)
    return step_seconds(run.config, run.planned, run.examples, work, _machine(run, constants))


def _fit_speed(runs: Sequence[MeasuredRun], constants: Constants, source: str) -> Constant:
    """Return the speed of a core while all cores work: the dense part that is predicted at full speed over the measured one."""
    alone = replace(constants, busy_core_speed=Constant(1.0, source))
    speeds = []
    for run in runs:
        of_blocks = constants.block_seconds.value * dense_work(run.config, run.examples, run.workers).num_blocks
        predicted = _step(run, alone).dense + of_blocks * _machine(run, alone).slowdown
        speeds.append(predicted / run.dense_seconds)
    return Constant(min(1.0, float(median(speeds))), source)


def _fit_latency(runs: Sequence[MeasuredRun], constants: Constants, source: str) -> Constant:
    """Return the latency of a sum: what the prediction without it leaves of a step, for each sum."""
    without = replace(constants, sum_latency_seconds=Constant(0.0, source))
    left = []
    for run in runs:
        sums = num_sums(run.config) * _machine(run, without).slowdown
        left.append(max(0.0, run.seconds - _step(run, without).total) / sums)
    return Constant(float(median(left)), source)
