"""Fixtures shared by all tests: one Ray session, one pool of rank processes, the folder of real logs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.rank_pool import RankPool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared-data",
        default="../shared/data",
        help="folder of real logs (ml-1m/ ...); tests that need it skip without",
    )


def pytest_configure() -> None:
    # Tests work on tiny tensors, where a second thread only waits: many times slower on a busy machine.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where torch sees no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none here"))


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
def rank_pool() -> Iterator[RankPool]:
    pool = RankPool(size=4)
    yield pool
    pool.stop()
