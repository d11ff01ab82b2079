"""Tables of stored studies."""

from pathlib import Path
from typing import Any

from benchmarks import studies_page

ROOT = Path(__file__).parents[2]


def test_the_page_of_results_shows_the_stored_studies() -> None:
    text = (ROOT / studies_page.PAGE).read_text(encoding="utf-8")
    assert studies_page.with_tables(text, ROOT / studies_page.FOLDER) == text


def point(title: str, flops: float, difference: Any = None) -> dict[str, Any]:
    of_split = {"mean": 0.12, "over_seeds": [0.11, 0.13], "over_users": [0.1, 0.14]}
    costs = {"training_flops_per_event": flops, "events_per_history": 80.0}
    return {
        "title": title,
        "seeds": [1, 2, 3],
        "validation": of_split,
        "test": {**of_split, "over_seeds": None},
        "difference": difference,
        "costs": costs,
    }


def test_a_variant_has_its_quality_and_its_cost_relative_to_the_first() -> None:
    clear = {"mean": -0.02, "over_users": [-0.03, -0.01], "over_seeds": [-0.021, -0.019]}
    within = {**clear, "over_seeds": [-0.03, 0.01]}
    points = [point("whole", 2e6), point("half", 1e6, clear), point("same", 2e6, within)]
    assert studies_page.table({"metric": "ndcg@10", "points": points}).splitlines()[2:] == [
        "| whole | 3 | 0.1200 +- 0.0100 |  | 0.1200 | 2.00M | 1.00 |",
        "| half | 3 | 0.1200 +- 0.0100 | -0.0200 +- 0.0100* | 0.1200 | 1.00M | 0.50 |",
        "| same | 3 | 0.1200 +- 0.0100 | -0.0200 +- 0.0100 | 0.1200 | 2.00M | 1.00 |",
    ]
