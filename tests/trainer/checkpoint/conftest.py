"""An object storage in memory."""

from collections.abc import Iterator

import pytest

from tests.support.object_store import Store, memory_store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with memory_store(monkeypatch) as one:
        yield one
