"""Traces of chosen steps by torch's profiler: profile/step-STEP-rank-RANK.json in the run folder, for chrome://tracing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer.storage.files import naming, written_locally

FOLDER = "profile"


class StepProfiler:
    """The profiler of one rank.

    Args:
        run_dir: the run folder.
        rank: number of this rank.
        steps: the steps to trace, counted from 1.
    """

    def __init__(self, run_dir: Path, rank: int, steps: Sequence[int]) -> None:
        self._folder = run_dir / FOLDER
        self._rank = rank
        self._steps = frozenset(steps)

    @contextmanager
    def tracing(self, step: int) -> Iterator[None]:
        """Trace the body if it is one of the chosen steps. step: the steps trained before it."""
        if step + 1 not in self._steps:
            yield
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            yield
        path = self._folder / f"step-{step + 1}-rank-{self._rank}.json"
        with naming(path):
            self._folder.mkdir(exist_ok=True)
            with written_locally(path) as local:
                profiler.export_chrome_trace(str(local))
