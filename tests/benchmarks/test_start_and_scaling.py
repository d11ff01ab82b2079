"""Tables of the start of a training, of weak scaling, and of reliability."""

import json
from typing import Any

import pytest

from benchmarks import early_ids, reliability_page, start_up, weak_scaling
from benchmarks.pages import with_table


def test_a_start_is_shown_by_cause_beside_ray_alone() -> None:
    results = {
        "shoal": [
            {"command": 1.0, "ray": 4.0, "workers": 6.0, "model": 1.0},
            {"command": 2.0, "ray": 4.0, "workers": 6.0, "model": 1.0},
        ],
        "ray": [{"command": 1.0, "ray": 4.0, "workers": 5.0}, {"command": 1.0, "ray": 4.0, "workers": 6.0}],
        "torchrec": [1.5, 2.5],
    }
    lines = start_up.table(results).splitlines()
    assert lines[2].endswith("| 1.5 (1.0 - 2.0) | 1.0 (1.0 - 1.0) |")
    assert lines[5].endswith("| 1.0 (1.0 - 1.0) | - |")
    assert lines[6].endswith("| 2.0 (1.5 - 2.5) | - |")
    assert lines[7].endswith("| 12.5 (12.0 - 13.0) | 10.5 (10.0 - 11.0) |")
    assert lines[8].endswith("| 2.0 (2.0 - 2.0) | - |")


def test_two_workers_are_compared_with_twice_one_and_with_two_apart() -> None:
    sides = {"alone": [0.010, 0.010, 0.012], "apart": [0.0125, 0.0125, 0.015], "together": [0.0125, 0.020, 0.015]}
    row = weak_scaling.table({"models": {"HSTU": sides}}).splitlines()[2]
    assert row == "| HSTU | 10.0 ms | 12.5 ms | 15.0 ms | 80% (50% - 80%) | 80% (80% - 80%) | 100% (62% - 100%) |"


def test_steps_with_early_ids_are_compared_turn_by_turn() -> None:
    row = early_ids.table({"models": {"HSTU": {"plain": [0.010, 0.030], "early": [0.020, 0.020]}}}).splitlines()[2]
    assert row == "| HSTU | 20.0 ms | 20.0 ms | 1.00 (0.50 - 1.50) |"


@pytest.mark.parametrize(
    ("benchmark", "page"), [(start_up, "cluster"), (weak_scaling, "sharding"), (early_ids, "sharding")]
)
def test_the_pages_show_the_stored_figures(benchmark: Any, page: str) -> None:
    docs = reliability_page.PAGE.parent
    results = json.loads((docs / f"results/{benchmark.__name__.rpartition('.')[2]}.json").read_text(encoding="utf-8"))
    text = (docs / f"{page}.md").read_text(encoding="utf-8")
    assert with_table(text, benchmark.MARK, benchmark.table(results)) == text


def test_the_page_shows_the_stored_soak_and_recovery() -> None:
    text = reliability_page.PAGE.read_text(encoding="utf-8")
    assert reliability_page.with_tables(text) == text
    results = reliability_page.PAGE_OF_RESULTS.read_text(encoding="utf-8")
    assert reliability_page.with_checkpoints(results) == results
    table = reliability_page.soak(
        {
            "exact": False,
            "differences": ["tensors"],
            "num_faults": 3,
            "not_happened": ["one"],
            "seed": 2,
            "steps": 9,
            "seconds_per_step": 0.5,
            "commands": 2,
            "restarts_by_itself": 1,
            "elapsed_seconds": 9.0,
            "goodput": 0.5,
            "faults": [{"kind": "a"}, {"kind": "b"}, {"kind": "a"}],
        }
    )
    assert "| end | tensors |" in table
    assert "| faults carried out | 2 of 3, seed 2 |" in table
    assert "| a 2, b 1 |" in table
