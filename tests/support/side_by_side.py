"""Distribution of the tests to the processes of `make test`, which run side by side.

The tests of a file run in one process, which then shares its fixtures among them. So do the end-to-end tests that share a Ray
cluster and the run that was submitted to it. Files that take long are started first, so that no process works alone at the end.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

END_TO_END = "tests/end_to_end"
# One cluster and one submitted run serve the tests of these files.
ON_ONE_CLUSTER = {
    f"{END_TO_END}/test_{name}.py" for name in ("cluster_job", "losses", "python", "recovery", "run", "submit")
}
# The fixture of the cluster, which the submitted run uses too.
CLUSTER_FIXTURE = "head"
# Tests with these markers wait for processes, and files with them take longest; the first that applies decides.
LONGEST_FIRST = ("ray", "ranks", "slow")


def unit_of(nodeid: str) -> str:
    """Return the name of the tests that run in one process with this test."""
    path = nodeid.partition("::")[0]
    return f"{END_TO_END}: on one cluster" if path in ON_ONE_CLUSTER else path


class BySharedFixtures(LoadScopeScheduling):
    """Scheduler of xdist with units that share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def place_in_order(path: str, markers: set[str]) -> int:
    """Return how early the tests of a file are started: the smallest number first.

    Args:
        path: of the file, relative to the root.
        markers: of all its tests.
    """
    if path in ON_ONE_CLUSTER:
        return 0
    if PurePath(path).is_relative_to(END_TO_END):
        return 1
    return next((2 + i for i, marker in enumerate(LONGEST_FIRST) if marker in markers), 2 + len(LONGEST_FIRST))


def sort_longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the place of their file; the order within a place stays."""
    markers: dict[str, set[str]] = {}
    for item in items:
        markers.setdefault(path_of(item), set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: place_in_order(path_of(item), markers[path_of(item)]))


def path_of(item: pytest.Item) -> str:
    """Return the file of a test, relative to the root."""
    return item.nodeid.partition("::")[0]


def without_cluster(items: Sequence[pytest.Item]) -> list[str]:
    """Return the files with tests that use the shared cluster, and that are not in the list: they would start another."""
    users: set[str] = {path_of(item) for item in items if CLUSTER_FIXTURE in getattr(item, "fixturenames", ())}
    return sorted(users - ON_ONE_CLUSTER)


def scheduler(config: pytest.Config, log: Any) -> BySharedFixtures:
    """Return the scheduler for --dist=loadfile."""
    return BySharedFixtures(config, log)
