"""Distribution of the tests to the processes of `make test`."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.side_by_side import (
    ON_ONE_CLUSTER,
    path_of,
    place_in_order,
    sort_longest_first,
    unit_of,
    without_cluster,
)

ROOT = Path(__file__).parents[1]


def test_files_on_one_cluster_are_one_unit_and_every_other_file_is_its_own() -> None:
    assert len({unit_of(f"{path}::test_one") for path in ON_ONE_CLUSTER}) == 1
    others = ["tests/end_to_end/test_study.py::test_one", "tests/test_starts.py::test_one[a::b]"]
    assert [unit_of(nodeid) for nodeid in others] == ["tests/end_to_end/test_study.py", "tests/test_starts.py"]
    assert all((ROOT / path).is_file() for path in ON_ONE_CLUSTER)


def test_the_longest_files_start_first() -> None:
    markers = ({"slow"}, {"ray", "slow"}, set(), {"ranks"})
    places = [place_in_order("tests/test_one.py", names) for names in markers]
    assert sorted(places) == [places[1], places[3], places[0], places[2]]
    end_to_end = place_in_order("tests/end_to_end/test_study.py", set())
    assert place_in_order(next(iter(ON_ONE_CLUSTER)), set()) < end_to_end < min(places)


def test_sorting_keeps_files_together_and_loses_no_test(request: pytest.FixtureRequest) -> None:
    items = list(request.session.items)
    sort_longest_first(items)
    assert {id(item) for item in items} == {id(item) for item in request.session.items}
    paths = [path_of(item) for item in items]
    changes = sum(before != after for before, after in pairwise(paths))
    assert changes == len(set(paths)) - 1


def test_a_file_that_would_start_a_second_cluster_is_named(request: pytest.FixtureRequest) -> None:
    user = request.node
    assert without_cluster([user]) == []
    user.fixturenames.append("head")
    try:
        assert without_cluster([user]) == ["tests/test_side_by_side.py"]
    finally:
        user.fixturenames.remove("head")
