"""The benchmark of merged evaluations measures what its table shows."""

import json
from pathlib import Path

import pytest

from benchmarks import merged_ranking
from benchmarks.merged_evaluation import PAGE, RESULTS, figures_of, with_tables


def test_the_figures_are_of_the_users(tmp_path: Path):
    figures = figures_of(1_000, tmp_path)
    assert figures["users"] == 1_000
    assert figures["row_bytes"] > 1_000 * 5 * 20 * 4
    assert figures["value_bytes"] > 1_000 * 4 * 8
    assert (tmp_path / "per_user.parquet").exists()


def test_the_page_has_the_stored_figures():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_the_figures_of_ranking_are_of_the_impressions():
    figures = merged_ranking.figures_of(1_000)
    assert figures["impressions"] == 1_000
    assert figures["row_bytes"] > 500 * 80
    assert 0 <= figures["peak_bytes"] < 1 << 30


def test_the_page_has_the_stored_figures_of_ranking():
    page = PAGE.read_text(encoding="utf-8")
    stored = json.loads(merged_ranking.RESULTS.read_text(encoding="utf-8"))
    assert merged_ranking.with_tables(page, stored) == page


@pytest.mark.ranks
def test_workers_measure_their_memory():
    assert 0 <= merged_ranking.worker_bytes(1_000) < 1 << 30
