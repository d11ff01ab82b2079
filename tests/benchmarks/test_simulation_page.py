"""The tables of predicted steps in docs/sharding.md are those of the stored results."""

import json

from benchmarks import simulation_page
from benchmarks.simulation_page import BY_BUDGET, PAGE, SCALING, VALIDATION, by_budget, compared, scaling
from tests.test_docs import ROOT


def test_the_tables_of_the_page_are_those_of_the_stored_results() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert compared(json.loads((ROOT / VALIDATION).read_text(encoding="utf-8"))) in text
    assert scaling(json.loads((ROOT / SCALING).read_text(encoding="utf-8"))) in text
    assert by_budget(json.loads((ROOT / BY_BUDGET).read_text(encoding="utf-8"))) in text


def test_a_row_shows_the_median_the_spread_and_the_error() -> None:
    step = {
        "scaling": "weak",
        "workers": 2,
        "batch": 128,
        "measured_seconds": [0.012, 0.010, 0.009],
        "errors": [0.1, -0.2, 0.3],
    }
    row, _, load = simulation_page.compared(
        {"steps": [step], "load_average": [3.0, 2.0, 1.2], "cores": 2}
    ).splitlines()[-3:]
    assert load == "Load average of the 2 cores during the measurement: 1."
    assert row == "| weak | 2 | 128 | 10 ms (9 ms - 12 ms) | +10% (-20% - +30%) |"
