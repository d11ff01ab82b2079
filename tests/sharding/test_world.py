"""Errors that only the first rank sees reach all ranks, and integers travel between them."""

import threading
from typing import Any

import pytest

from sharding.errors import PlacementError, picklable
from sharding.world import World
from trainer.errors import CheckpointError, UserError


class LockedError(CheckpointError):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class DemandingError(OSError):
    """Pickles, and cannot be unpickled: it asks for more arguments than it passes on."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def what_on_first_raises(world: World, kind: str) -> tuple[str, str, bool]:
    def work() -> Any:
        match kind:
            case "locked":
                raise LockedError("disk gone")
            case "demanding":
                raise DemandingError("somewhere", "disk gone")
            case _:
                return threading.Lock()

    try:
        world.on_first(work)
    except Exception as error:  # noqa: BLE001 - the test compares it over ranks
        return type(error).__name__, str(error), isinstance(error, UserError)
    return "nothing", "", False


@pytest.mark.parametrize(
    ("kind", "first", "others", "said"),
    [
        ("locked", "LockedError", "CheckpointError", "disk gone"),
        ("demanding", "DemandingError", "RuntimeError", "disk gone"),
        ("result", "TypeError", "TypeError", "cannot pickle"),
    ],
)
def test_an_error_that_cannot_be_pickled_is_raised_on_every_rank(rank_pool, kind, first, others, said):
    outcomes = rank_pool.run(3, what_on_first_raises, kind, deadline=60.0)
    assert [name for name, _, _ in outcomes] == [first, others, others]
    assert all(said in text for _, text, _ in outcomes)
    assert all(of_user == (kind == "locked") for _, _, of_user in outcomes)


def test_an_error_that_survives_pickling_is_sent_unchanged():
    for error in (UserError("one"), PlacementError("two"), OSError(28, "No space left", "/a/file"), KeyError("k")):
        assert picklable(error) is error


def integers(world: World) -> tuple[list[list[int]], list[int], bool]:
    rank = world.rank
    gathered = world.gather_numbers([rank, -(2**62) + rank])
    return (
        gathered,
        world.exchange_ints([10 * rank + other for other in range(world.world_size)]),
        world.on_cpu() is world,
    )


@pytest.mark.parametrize("world_size", [1, 3])
def test_integers_travel_between_ranks(rank_pool, world_size):
    for rank, (gathered, received, is_same) in enumerate(rank_pool.run(world_size, integers)):
        assert gathered == [[other, -(2**62) + other] for other in range(world_size)]
        assert received == [10 * other + rank for other in range(world_size)]
        assert is_same  # a CPU needs no group of its own
