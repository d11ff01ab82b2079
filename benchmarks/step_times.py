"""Times of the steps of a training by rank processes without Ray, which start faster than workers and train at the same speed."""

import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from cluster.config.run_config import Config, job_of
from sharding.world import current_world
from trainer.config.job import SILENT
from trainer.loop.memory import keep_freed_memory
from trainer.loop.train import Training

WARM_UP = 4  # steps that are not measured
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class RankTimes:
    """Times of the first rank of a training by one clock, in seconds."""

    started: float
    """After the imports, before the model is built."""
    steps: list[float]
    """The beginning of each step."""
    ended: float
    """After the training, its last checkpoint included."""


def step_seconds(config: Config) -> float:
    """Train on rank processes, and return the median time of a step of the first rank after the warm-up."""
    steps = [later - earlier for earlier, later in itertools.pairwise(step_times(config))]
    return statistics.median(steps[WARM_UP:])


def step_times(config: Config, threads: int = 1) -> list[float]:
    """Train on rank processes, and return the times at which the first rank began its steps, in seconds.

    threads: of each rank.
    """
    return rank_times(config, threads).steps


def rank_times(
    config: Config, threads: int = 1, clock: Callable[[], float] = time.perf_counter, limit: timedelta = TIMEOUT
) -> RankTimes:
    """Train on rank processes, and return the times of the first rank.

    Args:
        config: of the run.
        threads: of each rank.
        clock: a function of time, such as time.process_time.
        limit: of the training. Raises TimeoutError beyond it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # each rank is a fork of one import
    size = config.cluster.num_workers
    pipes: list[Connection] = []
    processes = []
    for rank in range(size):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, threads, config, clock, sending), daemon=True)
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    try:
        if not wait(pipes[:1], limit.total_seconds()):
            raise TimeoutError(f"{size} workers did not train within {limit}")
        times: RankTimes = pipes[0].recv()
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    return times


def _rank(rank: int, threads: int, config: Config, clock: Callable[[], float], pipe: Connection) -> None:
    """Train as one rank, as a worker does, and send its times."""
    started = clock()
    torch.set_num_threads(threads)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    size = config.cluster.num_workers
    store = f"file://{config.run_dir / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=TIMEOUT)
    training = Training(job_of(config), current_world(torch.device("cpu")), SILENT)
    steps: list[float] = []
    start = training.step.start

    def timed(*arguments: Any) -> Any:
        steps.append(clock())
        return start(*arguments)

    object.__setattr__(training.step, "start", timed)
    training.run()
    pipe.send(RankTimes(started, steps, clock()))
    dist.barrier()
    dist.destroy_process_group()
