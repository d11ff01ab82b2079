"""Fixtures shared by all tests: one Ray session, one pool of rank processes, the folder of real logs.

Both are started by the first test that uses them and serve all later tests of the process.
"""

import gc
import os
import sys
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of Triton: its kernels run on the CPU

from tests.support.rank_pool import RankPool
from tests.support.sampling import left_out
from tests.support.side_by_side import scheduler, sort_longest_first
from tests.support.starts import RUNNING, check_marker, mark_by_fixtures, without_ray


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared-data",
        default="../shared/data",
        help="folder of real logs (ml-1m/ ...); tests that need it skip without",
    )
    parser.addoption(
        "--all-combinations",
        action="store_true",
        help="run every case of the tests marked pairwise, and not only a sample that covers all pairs of values",
    )


def pytest_configure() -> None:
    # Tests work on tiny tensors, where a second thread only waits: many times slower on a busy machine.
    torch.set_num_threads(1)
    gc.disable()  # until tests are collected: their modules and items stay, and the collector would visit them again and again


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # so that libraries that check for leaks at the end of the process find none
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests for what their fixtures start, leave out combinations, and skip tests that need an absent GPU."""
    mark_by_fixtures(items)
    if not config.getoption("--all-combinations") and (rest := left_out(items)):
        config.hook.pytest_deselected(items=rest)
        unwanted = set(rest)
        items[:] = [item for item in items if item not in unwanted]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none here"))
    if hasattr(config, "workerinput"):  # one of several processes
        sort_longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let the tests that share a cluster run in one process with --dist=loadfile; other modes stay as they are."""
    return scheduler(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[RUNNING] = item
    with without_ray(item):
        return (yield)


@pytest.fixture(autouse=True)
def _no_ray_without_its_marker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that has started Ray where the import of Ray came too late for `without_ray`."""
    before = "ray" in sys.modules
    yield
    if not before and "ray" in sys.modules and sys.modules["ray"].is_initialized():
        check_marker(request.config, "ray")


@pytest.fixture(scope="session")
def shared_data(pytestconfig: pytest.Config) -> Path:
    folder = Path(pytestconfig.rootpath / pytestconfig.getoption("--shared-data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}; point --shared-data to them")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def rank_pool(pytestconfig: pytest.Config) -> Iterator[RankPool]:
    pool = RankPool(size=4, may_start=partial(check_marker, pytestconfig, "ranks"))
    yield pool
    pool.stop()
