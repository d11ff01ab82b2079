"""The benchmark of merged evaluations measures what its table shows."""

import json
from pathlib import Path

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
