"""Numbered tasks on Ray, a bounded number of them at a time."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from trainer.errors import UserError

CANCEL_SECONDS = 30.0


@dataclass(frozen=True)
class TaskLimit:
    """The number of tasks at a time, and the nodes that may run them."""

    most: int
    labels: Mapping[str, str] = field(
        default_factory=dict
    )  # conditions, as in cluster.placement.labels; none: all nodes


def run_tasks(
    task: Callable[[Any, int], Any],
    argument: Any,
    numbers: Iterable[int],
    limit: TaskLimit,
) -> Generator[tuple[int, Any], None, None]:
    """Run `task(argument, number)` for all numbers, within a limit; yield number and result in the order of completion.

    What a task raises is raised here. Close the iterator if you leave it early: that ends the tasks still running.
    """
    # Ray refuses an empty selector.
    chosen = {"label_selector": dict(limit.labels)} if limit.labels else {}
    remote, shared = ray.remote(num_cpus=1, **chosen)(task), ray.put(argument)
    waiting: dict[Any, int] = {}
    remaining = iter(numbers)
    try:
        while True:
            while len(waiting) < limit.most and (number := next(remaining, None)) is not None:
                waiting[remote.remote(shared, number)] = number
            if not waiting:
                return
            [ready], _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), _result(ready)
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:  # until they have let go of the files
            ray.wait(list(waiting), num_returns=len(waiting), timeout=CANCEL_SECONDS)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
