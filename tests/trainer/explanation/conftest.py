"""Datasets of the tests of explanations."""

from pathlib import Path

import pytest

from tests.contracts.test_score_invariance import NUM_DAYS
from tests.support.grown_datasets import DAY, events_dataset, ranking_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import TimeBounds

Datasets = tuple[tuple[Path, Manifest], tuple[Path, Manifest]]


@pytest.fixture(scope="session")
def explained_datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    """Return histories with features and times, and impressions."""
    events, impressions = (tmp_path_factory.mktemp(name) for name in ("events", "impressions"))
    end = NUM_DAYS * DAY
    of_events = events_dataset(events, num_days=NUM_DAYS, cuts=TimeBounds(end * 2 // 3, end * 5 // 6))
    return (events, of_events), (impressions, ranking_dataset(impressions, num_days=NUM_DAYS))
