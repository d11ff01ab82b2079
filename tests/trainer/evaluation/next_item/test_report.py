"""report.html: one page that loads nothing from anywhere, holds the numbers, and escapes what users named."""

import numpy as np
import pytest

from tests.support.html_page import Page, assert_loads_nothing
from trainer.data.dataset.manifest import Counts
from trainer.evaluation.next_item.report import render
from trainer.evaluation.next_item.results import Results

METRICS = {"hr@1": 0.12345, "hr@10": 0.5432, "ndcg@10": 0.3214, "mrr": 0.2222, "coverage@10": 0.75}
POPULARITY = {"hr@1": 0.05, "hr@10": 0.1111, "ndcg@10": 0.0777, "mrr": 0.0, "coverage@10": 0.01}
BOUNDS = {name: [value - 0.01, value + 0.01] for name, value in METRICS.items() if not name.startswith("coverage")}
COUNTS = Counts(123456, 123000, {"null item": 400, "duplicate": 56}, 4321, 987, 110000, 4000, 4000, 3, 21, 0, 17)
SAMPLE = np.asarray([1, 5, 9, 0, 300, 12])
HISTORY = [
    {"step": 10, "kind": "train", "loss": 6.5, "epoch": 0},
    {"step": 11, "kind": "skipped", "reason": "not finite", "row_ids": [[1]]},
    {"step": 12, "kind": "train", "loss": float("nan"), "epoch": 0},
    {"step": 20, "kind": "train", "loss": 5.5, "epoch": 0},
    {"step": 20, "kind": "validation", "hr@10": 0.4, "ndcg@10": 0.2, "mrr": 0.15, "seconds": 1.0},
]


def results_with(**changes) -> Results:
    values = {
        "task": "next_item",
        "split": "test",
        "checkpoint": "step_000000020",
        "protocol": {"catalogue": 987, "seen_items": "masked", "split": {"kind": "leave_one_out"}},
        "num_users": 4300,
        "num_targets": 4300,
        "num_targets_not_rankable": 7,
        "metrics": METRICS,
        "ci95": BOUNDS,
        "baselines": {"popularity": POPULARITY},
        "baselines_ci95": {"popularity": BOUNDS},
        "slices": [
            {"name": "history_length", "value": "1-18", "num_users": 2150, "metrics": METRICS, "ci95": BOUNDS},
            {"name": "target_popularity", "value": "tail", "num_users": 333, "metrics": METRICS, "ci95": BOUNDS},
        ],
    }
    return Results(**values | changes)


def page_of(results: Results | None = None, config: dict | None = None, history: list[dict] = HISTORY) -> str:
    return render(results or results_with(), COUNTS, config or {"run": {"seed": 1}}, history, SAMPLE, SAMPLE[::-1])


@pytest.fixture(scope="module")
def page() -> str:
    return page_of()


def test_the_page_loads_nothing(page):
    assert_loads_nothing(page)


def test_the_page_is_whole(page):
    assert page.startswith("<!doctype html>")
    assert Page(page).open == []
    assert page.rstrip().endswith("</html>")


def test_the_page_holds_the_numbers(page):
    text = Page(page).text
    for number in ("0.1235", "0.5432", "0.3214", "0.2222", "0.7500"):  # the model
        assert number in text
    for number in ("0.0500", "0.1111", "0.0777"):  # popularity
        assert number in text
    assert "0.5332 to 0.5532" in text
    assert "4.89x" in text  # hr@10 over popularity's; no ratio where popularity has none
    assert "step_000000020" in text
    assert "4,300 users" in text
    assert "7 targets cannot be ranked" in text
    for count in ("123,456", "123,000", "4,321", "rejected: null item", "400", "rejected: duplicate"):
        assert count in text
    assert "1-18" in text
    assert "2,150" in text
    assert "leave_one_out" in text
    assert '"seed": 1' in text


def test_targets_that_cannot_be_ranked_are_mentioned_only_if_they_exist():
    assert "cannot be ranked" not in page_of(results_with(num_targets_not_rankable=0))


def test_four_plots_and_fewer_without_a_history(page):
    assert Page(page).names.count("svg") == 4
    assert Page(page_of(history=[])).names.count("svg") == 2
    assert Page(page_of(history=HISTORY[:1])).names.count("svg") == 3


def test_names_given_by_users_are_escaped():
    nasty = '<script>alert("x")</script>'
    page = page_of(
        results_with(checkpoint=nasty, protocol={"catalogue": 9, "note": nasty}), config={"logs": {"path": nasty}}
    )
    assert "<script" not in page
    assert Page(page).text.count("<script>") == 3


def test_a_run_with_other_cut_offs_has_a_page():
    metrics = {"hr@5": 0.5, "ndcg@5": 0.4, "mrr": 0.3, "coverage@5": 0.2}
    bounds = {name: [0.1, 0.6] for name in ("hr@5", "ndcg@5", "mrr")}
    slices = [{"name": "history_length", "value": "1-2", "num_users": 2, "metrics": metrics, "ci95": bounds}]
    changed = results_with(metrics=metrics, ci95=bounds, baselines={"popularity": metrics}, slices=slices)
    history = [{"step": 20, "kind": "validation", "hr@5": 0.4, "ndcg@5": 0.2, "mrr": 0.15, "seconds": 1.0}]
    assert "ndcg@5" in page_of(changed, history=history)


def test_a_page_of_one_user_who_was_never_found():
    nothing = np.zeros(1, dtype=np.int64)
    zeros = dict.fromkeys(METRICS, 0.0)
    changed = results_with(num_users=1, metrics=zeros, ci95={}, baselines={"popularity": zeros}, slices=[])
    assert "0.0000" in render(changed, COUNTS, {}, [], nothing, nothing)
