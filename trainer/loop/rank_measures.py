"""Measurements of one rank during training, for a monitoring system: speed, time by part, stalls and use of the device.

The process that launched the workers decides whether anything is measured: it gives a channel with `measure`, or none. Measuring
changes no result. FLOPs are counted once, in one step, as the products of matrices that the step really runs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from sharding.world import World
from trainer.checkpoint.background import Saved
from trainer.config.train import Precision
from trainer.costing.matmul_peak import MatmulPeak, write_peak
from trainer.loop.step_clock import StepClock

SEND_SECONDS = 5.0
COUNTED_STEP = 3  # the first ones compile, fill caches and allocate
MATMUL_SIZE = {"cpu": 1024, "cuda": 4096}  # by device: smaller products do not reach the peak of a GPU
MATMUL_REPEATS = 4


class RankMeasures:
    """Measurements since the start of this attempt, sent every few seconds.

    send: receives the values by name; None measures nothing.
    """

    def __init__(self, send: Callable[[dict[str, float]], None] | None, clock: StepClock, precision: Precision) -> None:
        self._send = send
        self._clock = clock
        self._precision = precision
        self._sent = self._started = time.monotonic()
        self._steps = 0
        self._events = 0
        self._stall_seconds = 0.0
        self._flops_per_event: float | None = None
        self._peak: float | None = None
        self._before: dict[str, float] = {}

    @contextmanager
    def counting(self, num_events: int) -> Iterator[None]:
        """Count the FLOPs of the body, once. num_events: input events of this rank in the step of the body."""
        self._steps += 1
        self._events += num_events
        if self._send is None or self._steps != COUNTED_STEP or num_events == 0:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        self._peak = matmul_peak(self._clock.device, self._precision)
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_event = counter.get_total_flops() / num_events

    def saved(self, saved: Sequence[Saved]) -> None:
        """Count the time for which training waited for checkpoints."""
        self._stall_seconds += sum(one.stall_seconds for one in saved)

    def after_step(self) -> None:
        """Send the values, if the last ones are old enough."""
        now = time.monotonic()
        if self._send is None or now - self._sent < SEND_SECONDS:
            return
        self._sent = now
        self._send(self.values())

    def values(self) -> dict[str, float]:
        """Return the values: totals since the start, and means of the steps since the last call."""
        totals = {
            **{f"{part}_seconds": seconds for part, seconds in self._clock.totals.items()},
            "data_seconds": self._clock.data_seconds,
            "steps": float(self._clock.num_steps),
            "events": float(self._events),
        }
        new = {name: total - self._before.get(name, 0.0) for name, total in totals.items()}
        self._before = totals
        steps = max(1.0, new.pop("steps"))
        events = new.pop("events")
        parts = {name: seconds / steps for name, seconds in new.items()}
        step_seconds = sum(parts.values())
        values = {
            "steps_total": totals["steps"],
            "events_total": totals["events"],
            "checkpoint_stall_seconds_total": self._stall_seconds,
            "step_seconds": step_seconds,
            **parts,
        }
        if step_seconds > 0.0:
            values["communication_share"] = parts["agree_seconds"] / step_seconds
            if self._flops_per_event is not None and self._peak is not None:
                flops_per_second = self._flops_per_event * events / (steps * step_seconds)
                values["mfu"] = flops_per_second / self._peak
        return values


def record_peak(run_dir: Path, precision: Precision, world: World) -> None:
    """Measure the peak rate of matrix products on all workers at once, and record it in the run folder. Collective."""
    world.barrier()
    own = torch.tensor(matmul_peak(world.device, precision), dtype=torch.float64, device=world.device)
    total = float(world.sum(own))
    if world.is_first:
        write_peak(run_dir, MatmulPeak(total, world.world_size, MATMUL_SIZE[world.device.type], precision))


def matmul_peak(device: torch.device, precision: Precision) -> float:
    """Return the FLOPs per second of a product of two large matrices on this device: the best of a few.

    Measured once in a process for each device, precision and number of threads.
    """
    return _measured_peak(device, precision, torch.get_num_threads())


@lru_cache
def _measured_peak(device: torch.device, precision: Precision, num_threads: int) -> float:
    size = MATMUL_SIZE[device.type]
    left = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    best = float("inf")
    for _ in range(MATMUL_REPEATS):
        started = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
