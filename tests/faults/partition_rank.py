"""A rank of tests/faults/test_partition.py: trains in a network namespace of its own, and prints when and how it failed."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from sharding.world import current_world
from tests.support.jobs import tiny_job
from trainer.config.job import SILENT
from trainer.errors import first_line
from trainer.loop.train import Training


def main(rank: int, interface: str, address: str, run_dir: Path, dataset: Path, timeout: float) -> None:
    """Train. Prints "finished", or "failed TIME CAUSE" with the time in seconds since 1970."""
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=rank, world_size=2, timeout=timedelta(seconds=timeout)
    )
    job = tiny_job(run_dir, dataset, checkpoint={"every_steps": 5, "keep": 100})
    try:
        Training(job, current_world(torch.device("cpu")), SILENT).run()
        print("finished", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
        print(f"failed {time.time()} {first_line(error)}", flush=True)
    os._exit(0)  # the process group cannot be left in order over a cut link


if __name__ == "__main__":
    number, interface, address, run_dir, dataset, timeout = sys.argv[1:]
    main(int(number), interface, address, Path(run_dir), Path(dataset), float(timeout))
