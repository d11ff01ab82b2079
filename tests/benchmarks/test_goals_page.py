"""The table of goals: medians, what was missed, what was not measured, and the page."""

from pathlib import Path

from benchmarks import goals_page
from benchmarks.goals_page import Goal
from benchmarks.pages import with_table

ROOT = Path(__file__).parents[2]


def test_a_goal_is_reached_by_the_median_of_its_turns():
    assert Goal("steps", "a.json", [0.7, 0.5, 0.71], 0.7).cells() == [
        "steps",
        "0.7",
        "0.70 (0.50 - 0.71)",
        "reached",
        "[a.json](results/a.json)",
    ]
    assert Goal("steps", "a.json", [0.9, 0.69, 0.5], 0.7).cells()[2:4] == ["0.69 (0.50 - 0.90)", "missed"]
    assert Goal("steps", "a.json", [], 0.7).cells() == ["steps", "0.7", "not measured", "", ""]


def test_the_page_shows_the_stored_figures(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = goals_page.PAGE.read_text(encoding="utf-8")
    assert with_table(page, goals_page.MARK, goals_page.table()) == page
