"""Random faults of a soak: what happens, where and at which step, as a function of a seed.

Kinds follow the rows of the fault matrix that one machine without a cluster can inject: killed, stopped and slow ranks, a stopped
or killed command, storage errors, damaged checkpoints and data files.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

Moment = Literal["step", "checkpoint", "command"]

STEP_POINTS = ("data", "forward", "backward", "optimizer")
RANK_POINTS = ("staging", "writing", "hashing")
FIRST_POINTS = ("before commit", "after commit", "reporting")


@dataclass(frozen=True)
class SoakFault:
    """One fault of a soak."""

    kind: str
    """A name for the report."""
    row: int
    """Its row in the fault matrix."""
    step: int
    """The step from which on it happens."""
    command: str = ""
    """The action on the whole command, or "" if the faults below happen within the ranks."""
    injected: tuple[dict[str, Any], ...] = ()
    """The faults of trainer/fault_points.py."""

    def values(self) -> dict[str, Any]:
        """Return the fault for a report."""
        return {key: value for key, value in asdict(self).items() if value}


def draw_faults(num_faults: int, seed: int, steps_apart: int) -> list[SoakFault]:
    """Return faults in the order of their steps, about `steps_apart` steps apart. Each kind has the same chance."""
    draw = random.Random(seed)
    step = 5
    faults = []
    for number in range(num_faults):
        faults.append(_draw_fault(draw, number, step))
        step += draw.randint(steps_apart // 2, steps_apart + steps_apart // 2)
    return faults


def _draw_fault(draw: random.Random, number: int, step: int) -> SoakFault:
    rank = draw.randrange(2)
    point = draw.choice(STEP_POINTS)

    def injected(
        point: str, action: str, rank: int = rank, at: int = step, part: str = "", **more: Any
    ) -> dict[str, Any]:
        return {"name": f"{number}{part}", "point": point, "rank": rank, "step": at, "action": action, **more}

    match draw.randrange(12):
        case 0:
            return SoakFault(f"rank killed in {point}", 1, step, injected=(injected(point, "kill"),))
        case 1:
            return SoakFault(f"exception in {point}", 1, step, injected=(injected(point, "exception"),))
        case 2:
            of_first = draw.random() < 0.5
            where = draw.choice(FIRST_POINTS if of_first else RANK_POINTS)
            fault = injected(where, "kill", 0 if of_first else rank)
            return SoakFault(f"rank killed in a checkpoint ({where})", 2, step, injected=(fault,))
        case 3:
            twice = (injected(point, "kill", part="a"), injected("forward", "kill", 1 - rank, step + 1, "b"))
            return SoakFault("killed twice", 3, step, injected=twice)
        case 4:
            return SoakFault("command stopped (SIGTERM)", 4, step, "terminate")
        case 5:
            return SoakFault("driver killed", 7, step, "kill")
        case 6:
            return SoakFault(f"rank stopped in {point} (SIGSTOP)", 8, step, injected=(injected(point, "stop"),))
        case 7:
            return SoakFault(f"slow rank in {point}", 9, step, injected=(injected(point, "slow", seconds=3.0),))
        case 8:
            return SoakFault("disk full at a checkpoint", 11, step, injected=(injected("writing", "no space"),))
        case 9:
            return SoakFault("storage error at a checkpoint", 12, step, injected=(injected("writing", "input error"),))
        case 10:
            damage = draw.choice(("flip", "flip", "truncate", "remove"))
            return SoakFault(
                f"driver killed, checkpoint damaged ({damage})", 13 if damage == "flip" else 14, step, damage
            )
        case _:
            return SoakFault("command stopped, data file truncated", 15, step, "truncate data")
