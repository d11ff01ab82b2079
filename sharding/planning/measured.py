"""Measured costs of look-ups in a sharded model (sharding.tables.measure), to compare with a prediction. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredLookups:
    """Measured times and memory of tables. Times are medians over repeats."""

    num_ids: dict[str, list[int]]  # by table (L,), the ids that each rank looked up, by trial
    seconds: dict[str, dict[str, Float64]]  # by table and timed phase (L, W), by trial and rank
    memory_bytes: dict[str, Float64]  # by table (W,), weights and optimizer state of each rank
