"""`shoal plan --calibrate RUN`: the cost model's constants fitted to what runs measured. No torch, no ray."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.plan_grids import Grid
from sharding.planning.calibrate import Calibration, calibrate
from sharding.planning.topology import CONSTANTS, Topology
from trainer.errors import UserError
from trainer.placement_record import observations_in

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
    def grid(self) -> Grid:
        """How far predictions are from what was measured, before and after."""
        before, after = self.calibration.error_before, self.calibration.error_after
        rows = tuple((phase, f"{before[phase]:.0%}", f"{after[phase]:.0%}") for phase in before)
        number = self.calibration.num_observations
        return Grid(
            f"error of the prediction: median of |predicted / measured - 1| over {number:,} observations",
            ("phase", "as shipped", "calibrated"),
            rows,
        )


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


def refuse_other_device(fitted: Fitted, topology: Topology) -> None:
    """Raises UserError if the plan is not for the kind of device that the runs had."""
    if topology.device != fitted.device:
        raise UserError(
            f"--calibrate: the runs were on {fitted.device} devices, and the plan is for {topology.device}; "
            f"add --device {fitted.device}, or calibrate from runs on {topology.device}"
        )
