"""Tables of the compiled kernels: every stored figure has its place."""

import json
from pathlib import Path

from benchmarks import compiled
from benchmarks.kernels_page import peak_table, softmax_table
from benchmarks.pages import with_table
from benchmarks.softmax import COMPILED, OURS

ROOT = Path(__file__).parents[2]


def softmax_row(form: str, ratio: float) -> dict[str, object]:
    return {
        "form": form,
        "shape": [21_120, 3_416, 52],
        "precision": "float32",
        "ours": [3.0, 1.0, 2.0],
        "ratio_median": ratio,
        "ratio_min": 0.5,
        "ratio_max": 2.5,
        "ours_peak_bytes": 4_200_000,
        "value_error": 1e-8,
        "user_error": 2e-7,
        "item_error": 3e-7,
    }


def test_forms_are_compared_with_ours() -> None:
    lines = softmax_table([softmax_row(OURS, 1.0), softmax_row(COMPILED, 2.0)]).splitlines()
    assert lines[2] == f"| 21,120 x 3,416 x 52 | float32 | {OURS} | 2 | 1 | 4 MB | 1e-08 / 2e-07 / 3e-07 |"
    assert (
        lines[3]
        == f"| 21,120 x 3,416 x 52 | float32 | {COMPILED} | 2 | 2.00 (0.50 - 2.50) | 4 MB | 1e-08 / 2e-07 / 3e-07 |"
    )


def peak_row(name: str, speed: float) -> dict[str, object]:
    ratio = speed / 100.0
    return {
        "name": name,
        "ours": [speed],
        "ceiling": [100.0],
        "ratio_median": ratio,
        "ratio_min": ratio - 0.01,
        "ratio_max": ratio + 0.01,
    }


def test_steps_are_shown_without_and_with_kernels() -> None:
    name = "SASRec step, width 64, full softmax, float32"
    lines = peak_table(
        [peak_row(name, 40.0), peak_row(f"{name}, compiled", 60.0), peak_row("another", 1.0)]
    ).splitlines()
    assert lines[2:] == [
        "| width 64, full softmax, float32 | 40 | 0.40 (0.39 - 0.41) | 60 | 0.60 (0.59 - 0.61) | 100 |"
    ]


def test_the_page_has_the_table_of_stored_comparisons_with_torch() -> None:
    stored = json.loads((ROOT / "docs/results/benchmark_compiled.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    assert with_table(page, "compiled", compiled.table(stored)) == page
