"""One lab for all tests of settings."""

from collections.abc import Iterator

import pytest

from tests.settings.lab import Lab, one_rank


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with one_rank() as world:
        lab = Lab(tmp_path_factory.mktemp("settings"), world)
        yield lab
        lab.close()
