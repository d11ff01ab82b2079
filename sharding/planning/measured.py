"""Measured costs of look-ups in a sharded model (sharding.tables.measure), to compare with a prediction. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """num_ids: by table, the ids that each rank looked up, by trial (L,).

    seconds: by table and phase (L, W) float64, the median over repeats, by trial and rank; without phases that were not timed.
    memory_bytes: by table (W,) float64, weights and optimizer state that each rank holds.
    """

    num_ids: dict[str, list[int]]
    seconds: dict[str, dict[str, Float64]]
    memory_bytes: dict[str, Float64]
