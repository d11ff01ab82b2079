"""The pool of rank processes: when calls share a process group, and what a failure leaves."""

import os

import pytest
import torch
import torch.distributed as dist

from sharding.world import World
from tests.support.rank_pool import RankPool


def sum_and_group(world: World) -> tuple[float, int, int]:
    """Return a sum over ranks, the identity of the process group, and the number of this process."""
    total = torch.tensor(float(world.rank + 1))
    dist.all_reduce(total)
    return total.item(), id(dist.group.WORLD), os.getpid()


def form_a_group(world: World) -> None:
    dist.new_group(backend="gloo")


def leave_the_group(world: World) -> None:
    dist.destroy_process_group()


def fail_on(world: World, rank: int) -> None:
    if world.rank == rank:
        raise ValueError(f"rank {rank} fails")


def test_calls_of_one_size_share_a_group_and_others_do_not(rank_pool: RankPool) -> None:
    first = rank_pool.run(2, sum_and_group)
    again = rank_pool.run(2, sum_and_group)
    assert first == again
    assert [total for total, _, _ in first] == [3.0, 3.0]
    assert [total for total, _, _ in rank_pool.run(4, sum_and_group)] == [10.0] * 4
    assert [total for total, _, _ in rank_pool.run(2, sum_and_group)] == [3.0, 3.0]


@pytest.mark.parametrize("function", [form_a_group, leave_the_group])
def test_a_function_with_groups_of_its_own_leaves_none_to_the_next(rank_pool: RankPool, function: object) -> None:
    rank_pool.run(2, sum_and_group)
    number = rank_pool._num_groups
    rank_pool.run(2, function)  # type: ignore[arg-type]
    assert rank_pool._num_groups == number
    assert [total for total, _, _ in rank_pool.run(2, sum_and_group)] == [3.0, 3.0]
    assert rank_pool._num_groups == number + 1


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_failure_the_same_processes_form_another_group(rank_pool: RankPool, rank: int) -> None:
    before = rank_pool.run(2, sum_and_group)
    number = rank_pool._num_groups
    with pytest.raises(ValueError, match=f"rank {rank} fails"):
        rank_pool.run(2, fail_on, rank)
    after = rank_pool.run(2, sum_and_group)
    assert [total for total, _, _ in after] == [3.0, 3.0]
    assert [pid for _, _, pid in after] == [pid for _, _, pid in before]
    assert rank_pool._num_groups == number + 1
