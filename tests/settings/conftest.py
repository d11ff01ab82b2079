"""One lab for all tests of settings."""

from collections.abc import Iterator

import pytest

from tests.settings.lab import Lab, one_rank


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with one_rank() as world:
        # Few entries need rank processes, and these are marked; as an argument the pool would mark them all.
        yield Lab(tmp_path_factory.mktemp("settings"), world, lambda: request.getfixturevalue("rank_pool"))
