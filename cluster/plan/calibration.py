"""`shoal plan --calibrate RUN`: the cost model's constants fitted to what runs measured. No torch, no ray."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.plan.grids import Grid
from sharding.planning.calibrate import Calibration, calibrate
from sharding.planning.topology import CONSTANTS, Topology
from sharding.planning.units import bytes_text, seconds_text
from trainer.errors import UserError
from trainer.placement.record import observations_in, read_placement

FILE = "calibration.json"


@dataclass(frozen=True)
class Fitted:
    """device: of the runs; the constants hold for no other."""

    runs: tuple[str, ...]
    device: str
    calibration: Calibration

    def values(self) -> dict[str, Any]:
        """What calibration.json holds; plan.calibration reads its constants."""
        return {"runs": self.runs, "device": self.device, **asdict(self.calibration)}

    @property
    def grids(self) -> list[Grid]:
        """What was measured beside what was predicted, and how far apart they are before and after."""
        return [grid for run in self.runs for grid in _measured_grids(run)] + [self._error_grid]

    @property
    def _error_grid(self) -> Grid:
        before, after = self.calibration.error_before, self.calibration.error_after
        rows = tuple((phase, f"{before[phase]:.0%}", f"{after[phase]:.0%}") for phase in before)
        number = self.calibration.num_observations
        return Grid(f"error of the prediction (median of {number:,})", ("phase", "as shipped", "calibrated"), rows)


def fit(runs: Sequence[str]) -> Fitted:
    """Raises UserError if a run measured nothing, or if they ran on different kinds of devices."""
    found = [observations_in(Path(run)) for run in runs]
    devices = {topology.device for _, topology in found}
    if len(devices) > 1:
        raise UserError("--calibrate: some of these runs were on CPUs and some on GPUs; fit each kind by itself")
    device = found[0][1].device
    observations = [observation for observed, _ in found for observation in observed]
    try:
        # From the constants that ship, whatever the runs were planned with: the same runs give the same constants.
        return Fitted(tuple(runs), device, calibrate(observations, CONSTANTS[device]))
    except ValueError as error:
        raise UserError(f"--calibrate {', '.join(runs)}: {error}") from None


def _measured_grids(run: str) -> list[Grid]:
    """Per table at the most ids that were tried, its slowest rank; and how long the parts of a step took."""
    record = read_placement(Path(run))
    measured, predicted = record["measured"], record["predicted"]
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
    found = [Grid(f"{run}: look-up and update alone", header, tuple(tables))]
    if "steps" in record:
        parts = record["steps"]["seconds"]
        rows = tuple((part, seconds_text(min(each)), seconds_text(max(each))) for part, each in parts.items())
        found.append(Grid(f"{run}: {record['steps']['num_steps']:,} steps", ("part", "least rank", "most"), rows))
    return found


def _slowest(seconds: dict[str, Any], timed: dict[str, Any]) -> float:
    """The sum over the phases that were timed of the slowest rank in the last trial."""
    return float(sum(max(seconds[phase][-1]) for phase in timed))


def refuse_other_device(fitted: Fitted, topology: Topology) -> None:
    """Raises UserError if the plan is not for the kind of device that the runs had."""
    if topology.device != fitted.device:
        raise UserError(
            f"--calibrate: the runs were on {fitted.device} devices, and the plan is for {topology.device}; "
            f"add --device {fitted.device}, or calibrate from runs on {topology.device}"
        )
