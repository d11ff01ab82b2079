"""Calibration: the constants of the cost model, fitted to measurements of a run. A pure function without files.

Every phase's time is linear in the constants (sharding.planning.costs), so they follow from least squares over relative errors:

    minimise  sum over observations ((features . c - seconds) / seconds)^2  +  PRIOR * sum over constants ((c - c0) / c0)^2,  c >= 0

c0 are the constants of the device. The second sum keeps constants on which the observations have no information: a run on one
worker has none on networks. Terms that always grow together (bytes sent and ids sorted for it) can only be fitted as a sum,
which is valid for that run's number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sharding.config import CommunicationConfig
from sharding.plan import Plan
from sharding.planning.costs import phase_features
from sharding.planning.load import TableLoad
from sharding.planning.topology import CostConstants, Topology

PRIOR = 1e-3
SWEEPS = 2000

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """The measured time of one phase of a step on one rank, with its features (k,) for all constants of the model."""

    table: str
    phase: str
    rank: int
    num_ids: float
    seconds: float
    features: Float64


@dataclass(frozen=True)
class Calibration:
    """Fitted constants. Errors are medians over observations of |predicted / measured - 1|, by phase."""

    constants: CostConstants  # the fitted ones
    num_observations: int
    error_before: dict[str, float]  # with the constants of the device
    error_after: dict[str, float]  # with the fitted ones


NAMES = tuple(field.name for field in fields(CostConstants))


def alone(plan: Plan, load: TableLoad, num_ids: int) -> tuple[Plan, list[TableLoad]]:
    """Return the plan of one table only, and its load if every rank looks up num_ids of its rows."""
    single = replace(load, ids_per_rank=float(num_ids), vectors_per_rank=float(num_ids))
    return replace(plan, tables={load.name: plan.tables[load.name]}), [single]


def observations_of(
    plan: Plan,
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig,
    table: str,
    num_ids: Sequence[int],
    seconds: dict[str, Float64],
) -> list[Observation]:
    """Return the observations of one table that was looked up alone.

    Args:
        plan: the plan of the run.
        loads: of all tables.
        topology: the devices.
        communication: the precision between ranks.
        table: name of the table.
        num_ids: ids per rank, by trial.
        seconds: by phase (L, W), by trial and rank.
    """
    load = next(load for load in loads if load.name == table)
    observations = []
    for trial, number in enumerate(num_ids):
        for phase, (values, names) in phase_features(*alone(plan, load, number), topology, communication).items():
            for rank, measured in enumerate(seconds[phase][trial] if phase in seconds else ()):
                row = np.zeros(len(NAMES))
                np.add.at(row, [NAMES.index(name) for name in names], values[0, rank])
                if row.any() and measured > 0.0:
                    observations.append(Observation(table, phase, rank, float(number), float(measured), row))
    return observations


def calibrate(observations: Sequence[Observation], prior: CostConstants) -> Calibration:
    """Fit the constants to observations. Raises ValueError if there are none."""
    if not observations:
        raise ValueError("nothing was measured that the cost model predicts")
    features = np.stack([o.features for o in observations])
    seconds = np.array([o.seconds for o in observations])
    before = np.array([getattr(prior, name) for name in NAMES])
    after = fit_linear(features, seconds, before)
    phases = [o.phase for o in observations]
    return Calibration(
        CostConstants(**dict(zip(NAMES, after.tolist(), strict=True))),
        len(observations),
        _errors(features @ before / seconds, phases),
        _errors(features @ after / seconds, phases),
    )


def fit_linear(features: Float64, seconds: Float64, prior: Float64) -> Float64:
    """Return the constants (k,) that minimise the sum above.

    Args:
        features: (n, k) of the observations.
        seconds: (n,) measured times.
        prior: (k,) constants to stay near to, above 0.
    """
    # In units of the prior and of the measurements, both sums are dimensionless.
    design = np.concatenate((features * prior / seconds[:, None], np.sqrt(PRIOR) * np.eye(prior.size)))
    goal = np.concatenate((np.ones(seconds.size), np.full(prior.size, np.sqrt(PRIOR))))
    return _non_negative_least_squares(design, goal) * prior


def _non_negative_least_squares(design: Float64, goal: Float64) -> Float64:
    """Return the unique solution of this strictly convex problem by coordinate descent."""
    gram = design.T @ design
    right = design.T @ goal
    solution = np.ones(right.size)
    for _ in range(SWEEPS):
        for n in range(solution.size):
            step = (right[n] - gram[n] @ solution) / gram[n, n]
            solution[n] = max(0.0, solution[n] + step)
    return solution


def _errors(ratios: Float64, phases: Sequence[str]) -> dict[str, float]:
    of = np.array(phases)
    return {phase: float(np.median(np.abs(ratios[of == phase] - 1.0))) for phase in dict.fromkeys(phases)}
