"""The page of the recipe in the form of MLPerf's DLRMv4 shows the stored figures and the plans as they are computed."""

import json
from pathlib import Path

import pytest

from benchmarks.dlrmv4_page import NUM_DAYS, PAGE, days_table, period_table, tables
from benchmarks.pages import with_table
from cluster.config.run_config import load_config
from trainer.config.identity import identity

ROOT = Path(__file__).parents[2]
STORED = ROOT / "docs/results/dlrmv4_synthetic"


def test_the_page_has_the_tables_of_stored_figures_and_of_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    text = page
    for name, table in tables().items():
        text = with_table(text, name, table)
    assert text == page, "run `python -m benchmarks.dlrmv4_page`"


def test_the_stored_run_is_one_of_the_recipe() -> None:
    stored = json.loads((STORED / "config.json").read_text(encoding="utf-8"))
    assert stored["run"]["dir"] == load_config(ROOT / "configs/dlrmv4_synthetic.toml").run.dir
    assert identity(load_config(STORED / "config.json")) == identity(
        load_config(ROOT / "configs/dlrmv4_synthetic.toml")
    )


def figures(auc: float | None) -> dict[str, float | None]:
    return {"auc": auc, "ne": 0.5, "calibration": 1.0, "gauc": 0.6, "logloss": 0.4}


def test_days_are_shown_from_the_first_to_the_last_with_their_mean() -> None:
    days = [
        {
            "begins": f"2023-11-{day:02d}T00:00:00",
            "step": 1000 * day,
            "impressions": {"click": 2000},
            "model": figures(day / 100),
            "popularity": figures(0.5),
        }
        for day in range(1, 10)
    ]
    lines = days_table({"days": days, "mean": {"model": figures(0.75), "popularity": figures(0.5)}}).splitlines()
    assert len(lines) == 2 + NUM_DAYS + 1
    assert lines[2] == "| 2023-11-01 | 1,000 | 2,000 | 0.0100 | 0.5000 | 0.5000 | 1.0000 |"
    assert lines[-2].startswith("| 2023-11-09 | 9,000 |")
    assert lines[-1] == "| mean of all 9, weighted |  |  | 0.7500 | 0.5000 | 0.5000 | 1.0000 |"


def test_the_test_period_is_compared_with_the_known_probabilities() -> None:
    metrics = {"ci95": {"auc": [0.7, 0.8]}, "baselines": {"popularity": figures(0.6)}}
    oracle = {name: {"model": 0.75, "best": 0.8} for name in figures(None)}
    lines = period_table(metrics, oracle).splitlines()
    assert lines[2] == "| AUC | 0.7500 | 0.7000 - 0.8000 | 0.8000 | 0.6000 |"
    assert lines[-1] == "| calibration | 0.7500 |  | 0.8000 | 1.0000 |"
