"""Figures of `shoal recommend` at scale: they are stored and shown, and memory is that of each process."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import scoring_page
from benchmarks.pages import stored_rows, with_table
from benchmarks.recommend_at_scale import MARK, RESULTS, Figures, Memory, add, read_figures, table, write_log

# Holds 100 MB, and starts a process that holds 200 MB.
PROGRAM = """
import subprocess, sys, time
held = b"x" * 100_000_000
inner = "held = b'x' * 200_000_000; import time; time.sleep(2)"
subprocess.run([sys.executable, "-c", inner], check=True)
"""


def test_the_page_of_results_shows_the_stored_figures() -> None:
    text = scoring_page.PAGE.read_text(encoding="utf-8")
    assert scoring_page.with_tables(text, stored_rows(scoring_page.RESULTS)) == text


def test_the_page_of_recommendations_shows_the_stored_figures() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs/recommend.md").read_text(encoding="utf-8")
    assert with_table(text, MARK, table(read_figures(root / RESULTS))) == text


def test_figures_are_stored_by_size_and_shown_as_a_table(tmp_path: Path) -> None:
    figures = Figures(
        2000, 5000, 32, 2, 10, 5000.0, 10000.0, 50.0, 1, [600_000_000, 590_000_000], 470_000_000, 1, 3_000_000_000
    )
    for users, speed in ((4000, 1.0), (2000, 2.0), (4000, 5000.0)):
        add(replace(figures, users=users, users_per_second=speed), tmp_path / "figures.json")
    stored = read_figures(tmp_path / "figures.json")
    assert [(row.users, row.users_per_second) for row in stored] == [(2000, 2.0), (4000, 5000.0)]
    page = with_table(f"before\n<!-- {MARK} -->\n\n<!-- end -->\nafter\n", MARK, table(stored))
    assert (
        "| 5,000 | 4,000 | 5,000 | 10,000 | 0.50 | 0.60 and 0.59 GB | 0.47 GB | 3.00 GB |\n\n<!-- end -->\nafter"
        in page
    )
    assert with_table(page, MARK, table(stored)) == page


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no mark"):
        with_table("text", MARK, "table")


def test_every_item_has_an_event(tmp_path: Path) -> None:
    write_log(tmp_path / "log.parquet", num_users=50, num_items=400)
    log = pq.read_table(tmp_path / "log.parquet")
    assert np.unique(log.column("item_id").to_numpy()).size == 400
    assert np.unique(log.column("user_id").to_numpy()).size == 50


def test_memory_is_that_of_each_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM])
    memory = Memory(process.pid)
    process.wait(timeout=60)
    time.sleep(0.1)
    memory.stop()
    outer, inner = memory.peaks[process.pid], max(peak for pid, peak in memory.peaks.items() if pid != process.pid)
    assert 100e6 < outer < 200e6
    assert 200e6 < inner < 300e6
    assert memory.total > 300e6
    assert memory.by_role()[0] == []
