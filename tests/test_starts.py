"""A test starts Ray or rank processes only with its marker."""

import pytest
import ray

from sharding.world import World
from tests.support.rank_pool import RankPool


def number_of(world: World) -> int:
    return world.rank


def test_rank_processes_need_their_marker(request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue("rank_pool")  # not an argument, which would mark the test
    with pytest.raises(pytest.fail.Exception, match=r"test_rank_processes_need_their_marker.*@pytest\.mark\.ranks"):
        pool.run(1, number_of)


@pytest.mark.ranks
def test_rank_processes_run_with_their_marker(request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue("rank_pool").run(2, number_of) == [0, 1]


def test_a_test_is_marked_by_its_fixtures(request: pytest.FixtureRequest) -> None:
    items = {item.name: item for item in request.session.items if item.path == request.path}
    for name, markers in {
        "test_ray_runs_where_the_session_is_asked_for": {"ray"},
        "test_rank_processes_need_their_marker": set(),
    }.items():
        if name in items:
            assert {mark.name for mark in items[name].iter_markers()} & {"ray", "ranks"} == markers


@pytest.mark.parametrize("use", [lambda: ray.init(address="local"), lambda: ray.put(1), lambda: ray.get([])])
def test_ray_needs_its_marker(use: object) -> None:
    assert callable(use)
    with pytest.raises(pytest.fail.Exception, match=r"test_ray_needs_its_marker.*@pytest\.mark\.ray"):
        use()


def test_ray_runs_where_the_session_is_asked_for(ray_session: None) -> None:
    assert ray.get(ray.put(7)) == 7
