"""How learning rates go over a run: a factor on all of them, as a function of the step alone. Imports no torch."""

import math

from trainer.config.train import TrainConfig


def rate_factor(step: int, total_steps: int, train: TrainConfig) -> float:
    """The factor at step number `step` (from 0) of `total_steps`: linear warm-up times the schedule.

    "linear", "cosine" and "warmup_stable_decay" (Hu et al. 2024, arXiv:2404.06395: constant, and linear over the last share of the
    steps) would reach the floor at step total_steps. "inverse_sqrt" (Vaswani et al. 2017, arXiv:1706.03762, eq. 3, scaled to 1
    at the end of warm-up) needs to know no end. None of them goes below the floor.
    """
    floor = train.schedule_floor
    left = 1.0 - step / max(1, total_steps)
    match train.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = max(floor, left)
        case "cosine":
            factor = floor + (1.0 - floor) * 0.5 * (1.0 - math.cos(math.pi * left))
        case "inverse_sqrt":
            warm = train.warmup_steps + 1
            factor = max(floor, math.sqrt(warm / max(warm, step + 1)))
        case "warmup_stable_decay":
            factor = floor + (1.0 - floor) * min(1.0, left / train.decay_share)
    return factor * min(1.0, (step + 1) / (train.warmup_steps + 1))
