"""Generation of synthetic logs on Ray: the files of a log are independent, so each is a task."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from trainer.data.synthetic.folder import LogKind, write_log
from trainer.data.synthetic.impression_world import ImpressionConfig
from trainer.data.synthetic.impressions import IMPRESSIONS, ImpressionSummary
from trainer.data.synthetic.log import EVENTS, SyntheticConfig, SyntheticSummary

_FEW_BLOCKS = 3  # up to here starting worker processes takes longer than it saves
_TASKS_PER_CPU = 2  # enough to keep every CPU busy, while little is lost when one task fails


def synthesize(
    config: SyntheticConfig | ImpressionConfig,
    folder: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary | ImpressionSummary:
    """Write a synthetic log of events or impressions into `folder`, byte-identical to that of trainer.data.synthetic.

    It uses the Ray cluster that the caller has connected to, or this process alone if there is none or the files are
    few. With several machines `folder` must be on shared storage. Raises UserError as write_log does.
    """
    kind = IMPRESSIONS if isinstance(config, ImpressionConfig) else EVENTS
    on_ray = config.num_blocks > _FEW_BLOCKS and ray.is_initialized()

    make_blocks = partial(_blocks_on_ray, kind) if on_ray else kind.blocks_one_by_one
    # Workers have their own current folder, so that a relative path would lead elsewhere.
    summary: SyntheticSummary | ImpressionSummary = write_log(
        kind, config, Path(folder).absolute(), on_progress, make_blocks
    )
    return summary


def _blocks_on_ray(kind: LogKind, config: Any, world: Any, folder: Path) -> Iterator[Any]:
    """Yield blocks in the order in which they finish, with a bounded number at a time."""
    task = ray.remote(kind.generate_block)
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
