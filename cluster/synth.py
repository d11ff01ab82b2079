"""Synthetic logs made on Ray: the files of a log are independent, so that each is a task."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import ray

from trainer.synthetic.log import (
    BlockSummary,
    SyntheticConfig,
    SyntheticSummary,
    World,
    blocks_one_by_one,
    generate,
    generate_block,
)

_FEW_BLOCKS = 3  # up to here starting worker processes takes longer than it saves
_TASKS_PER_CPU = 2  # enough to keep every CPU busy, while little is lost when one task fails


def synthesize(
    config: SyntheticConfig, folder: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> SyntheticSummary:
    """Write a synthetic log into `folder`, as trainer.synthetic.log.generate does and with the same bytes.

    Uses the Ray cluster that the caller has connected to, and this process alone if there is none or the files are few.
    On several machines `folder` must be on storage that all of them share. Raises UserError as generate does.
    """
    on_ray = config.num_blocks > _FEW_BLOCKS and ray.is_initialized()
    # Workers have their own current folder, so that a relative path would lead elsewhere.
    return generate(config, Path(folder).absolute(), on_progress, _blocks_on_ray if on_ray else blocks_one_by_one)


def _blocks_on_ray(config: SyntheticConfig, world: World, folder: Path) -> Iterator[BlockSummary]:
    """Blocks in the order in which they get done, a bounded number of them at a time."""
    task = ray.remote(generate_block)
    shared_world = ray.put(world)
    most = max(1, int(ray.cluster_resources().get("CPU", 1.0))) * _TASKS_PER_CPU
    waiting = iter(range(config.num_blocks))
    running = [task.remote(config, shared_world, index, folder) for index in islice(waiting, most)]
    while running:
        done, running = ray.wait(running)
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            for task_left in running:
                ray.cancel(task_left)
            raise error.cause from None
        if (index := next(waiting, None)) is not None:
            running.append(task.remote(config, shared_world, index, folder))
