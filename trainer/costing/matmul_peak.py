"""matmul_peak.json in the run folder: the peak rate of matrix products of the workers, measured when training started. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.storage.files import write_json_atomically

FILE = "matmul_peak.json"


@dataclass(frozen=True)
class MatmulPeak:
    """The peak rate of matrix products."""

    flops_per_second: float
    """Sum over all workers, which measured at the same time."""
    num_workers: int
    """Number of workers."""
    size: int
    """Rows and columns of the matrices."""
    precision: str
    """Precision of the training (train.precision), in which the product was computed."""


def write_peak(run_dir: Path, peak: MatmulPeak) -> None:
    """Write the peak into a run folder. A resumed training replaces that of its earlier attempt."""
    write_json_atomically(run_dir / FILE, asdict(peak))


def read_peak(run_dir: Path) -> MatmulPeak | None:
    """Return the peak of a run, None if it has none."""
    try:
        return MatmulPeak(**json.loads((run_dir / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
