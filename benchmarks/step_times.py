"""Times of the steps of a training by rank processes without Ray, which start faster than workers and train at the same speed."""

import itertools
import logging
import statistics
import time
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from cluster.config.run_config import Config, job_of
from sharding.world import current_world
from trainer.config.job import SILENT
from trainer.loop.train import Training

WARM_UP = 4  # steps that are not measured
TIMEOUT = timedelta(minutes=5)


def step_seconds(config: Config) -> float:
    """Train on rank processes, and return the median time of a step of the first rank after the warm-up."""
    steps = [later - earlier for earlier, later in itertools.pairwise(step_times(config))]
    return statistics.median(steps[WARM_UP:])


def step_times(config: Config, threads: int = 1) -> list[float]:
    """Train on rank processes, and return the times at which the first rank began its steps, in seconds.

    threads: of each rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # each rank is a fork of one import
    size = config.cluster.num_workers
    store = config.run_dir / "store"
    pipes: list[Connection] = []
    processes = []
    for rank in range(size):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, threads, config, str(store), sending), daemon=True)
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    try:
        if not wait(pipes[:1], TIMEOUT.total_seconds()):
            raise TimeoutError(f"{size} workers did not train within {TIMEOUT}")
        times: list[float] = pipes[0].recv()
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    return times


def _rank(rank: int, threads: int, config: Config, store: str, pipe: Connection) -> None:
    """Train as one rank, and send the times at which its steps began."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    size = config.cluster.num_workers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT)
    training = Training(job_of(config), current_world(torch.device("cpu")), SILENT)
    times: list[float] = []
    start = training.step.start

    def timed(*arguments: Any) -> Any:
        times.append(time.perf_counter())
        return start(*arguments)

    object.__setattr__(training.step, "start", timed)
    training.run()
    pipe.send(times)
    dist.barrier()
    dist.destroy_process_group()
