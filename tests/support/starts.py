"""What a test may start: Ray only if it is marked `ray`, rank processes only if it is marked `ranks`.

A test that asks for the fixture `ray_session` or `rank_pool` is marked for it when tests are collected. A test that starts one in
another way sets the marker; without it the start fails here, so that `make test-quick` starts neither.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

FIXTURES = {"ray_session": "ray", "rank_pool": "ranks"}
# A program that uses Ray calls one of these.
RAY_FUNCTIONS = ("init", "put", "get", "wait")

RUNNING = pytest.StashKey[pytest.Item]()


def mark_by_fixtures(items: list[pytest.Item]) -> None:
    """Add the markers that follow from the fixtures a test asks for."""
    for item in items:
        for fixture, marker in FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def check_marker(config: pytest.Config, marker: str) -> None:
    """Fail if the running test starts what it is not marked for."""
    item = config.stash.get(RUNNING, None)
    if item is not None and item.get_closest_marker(marker) is None:
        pytest.fail(f"{item.nodeid} starts what only tests marked `{marker}` may start: add @pytest.mark.{marker}")


@contextmanager
def without_ray(item: pytest.Item) -> Iterator[None]:
    """Let no use of Ray succeed within the body if the test is not marked for it. Ray itself is not imported here: it is slow."""
    if item.get_closest_marker("ray") is not None:
        yield
        return

    def forbidden(*arguments: Any, **options: Any) -> NoReturn:
        check_marker(item.config, "ray")
        raise AssertionError("unreachable")

    with pytest.MonkeyPatch.context() as patch:
        ray = sys.modules.get("ray")
        if ray is not None:
            for name in RAY_FUNCTIONS:
                patch.setattr(ray, name, forbidden)
        yield
