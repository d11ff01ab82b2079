"""`shoal plan --calibrate RUN`: the cost model's constants, fitted to measurements of runs. Imports neither torch nor ray."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.plan.grids import Grid
from sharding.planning.calibrate import Calibration, calibrate
from sharding.planning.topology import CONSTANTS, Topology
from sharding.planning.units import bytes_text, seconds_text
from trainer.errors import UserError
from trainer.placement.record import observations_in, read_placement
from trainer.storage.objects.paths import path_of

FILE = "calibration.json"


@dataclass(frozen=True)
class Fitted:
    """Fitted constants, valid for the kind of device of the runs only."""

    runs: tuple[str, ...]  # their folders
    device: str  # of the runs
    calibration: Calibration

    def values(self) -> dict[str, Any]:
        """Return the content of calibration.json. plan.calibration reads the constants from it."""
        return {"runs": self.runs, "device": self.device, **asdict(self.calibration)}

    @property
    def grids(self) -> list[Grid]:
        """Return tables of measured and predicted costs, and of the errors before and after the fit."""
        return [grid for run in self.runs for grid in _measured_grids(run)] + [self._error_grid]

    @property
    def _error_grid(self) -> Grid:
        before = self.calibration.error_before
        after = self.calibration.error_after
        rows = tuple((phase, f"{before[phase]:.0%}", f"{after[phase]:.0%}") for phase in before)
        number = self.calibration.num_observations
        return Grid(f"error of the prediction (median of {number:,})", ("phase", "as shipped", "calibrated"), rows)


def fit(runs: Sequence[str]) -> Fitted:
    """Fit the constants to runs. Raises UserError if a run has no measurements, or if the kinds of devices differ."""
    records = [observations_in(path_of(run)) for run in runs]
    devices = {topology.device for _, topology in records}
    if len(devices) > 1:
        raise UserError("--calibrate: some of these runs were on CPUs and some on GPUs; calibrate each kind separately")
    device = records[0][1].device
    observations = [observation for observed, _ in records for observation in observed]
    try:
        # Start from the shipped constants, not from those of the runs' plans: the same runs give the same constants.
        return Fitted(tuple(runs), device, calibrate(observations, CONSTANTS[device]))
    except ValueError as error:
        raise UserError(f"--calibrate {', '.join(runs)}: {error}") from None


def _measured_grids(run: str) -> list[Grid]:
    """Return tables of the measurements of a run.

    They show the slowest rank of each table, at the largest number of ids, and the duration of the parts of a step.
    """
    record = read_placement(path_of(run))
    measured = record["measured"]
    predicted = record["predicted"]
    tables = [
        (
            table,
            f"{num_ids[-1]:,}",
            seconds_text(_slowest(predicted["seconds"][table], measured["seconds"][table])),
            seconds_text(_slowest(measured["seconds"][table], measured["seconds"][table])),
            bytes_text(max(predicted["memory_bytes"][table])),
            bytes_text(max(measured["memory_bytes"][table])),
        )
        for table, num_ids in measured["num_ids"].items()
    ]
    header = ("table", "ids a rank", "predicted", "measured", "memory with buffers", "rows and state")
    grids = [Grid(f"{run}: look-up and update alone", header, tuple(tables))]
    if "steps" in record:
        parts = record["steps"]["seconds"]
        rows = tuple((part, seconds_text(min(each)), seconds_text(max(each))) for part, each in parts.items())
        grids.append(Grid(f"{run}: {record['steps']['num_steps']:,} steps", ("part", "least rank", "most"), rows))
    return grids


def _slowest(seconds: dict[str, Any], timed: dict[str, Any]) -> float:
    """Return the sum over the timed phases of the slowest rank in the last trial."""
    return float(sum(max(seconds[phase][-1]) for phase in timed))


def refuse_other_device(fitted: Fitted, topology: Topology) -> None:
    """Raise UserError if the plan is for another kind of device than that of the runs."""
    if topology.device != fitted.device:
        raise UserError(
            f"--calibrate: the runs were on {fitted.device} devices, and the plan is for {topology.device}; "
            f"add --device {fitted.device}, or calibrate from runs on {topology.device}"
        )
