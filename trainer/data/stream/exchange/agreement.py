"""Errors of one rank, raised on all ranks, so that none waits for a rank that has failed."""

from collections.abc import Callable
from typing import TypeVar

from sharding.errors import picklable
from sharding.world import World

T = TypeVar("T")


def on_all(world: World, work: Callable[[], T]) -> T:
    """Return the result of `work` on this rank. Collective. If ranks fail, all of them raise the first one's error."""
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - an error of one rank is raised on all, so that no rank waits forever
        failure = error
    raise_on_all(world, failure)
    return result  # type: ignore[return-value]


def raise_on_all(world: World, failure: Exception | None) -> None:
    """Raise the failure of the first rank that has one, on all ranks. Collective."""
    failures = world.gather_objects(None if failure is None else picklable(failure))
    for rank, other in enumerate(failures):
        if isinstance(other, Exception):
            raise failure if rank == world.rank and failure is not None else other
