"""Tables of stored runs with several seeds."""

import json
from pathlib import Path
from typing import Any

from benchmarks import runs_page

ROOT = Path(__file__).parents[2]


def test_the_page_of_results_shows_the_stored_runs() -> None:
    text = (ROOT / runs_page.PAGE).read_text(encoding="utf-8")
    assert runs_page.with_tables(text, ROOT / runs_page.FOLDER) == text


def store(folder: Path, seed: int, ndcg: float, validation: list[tuple[int, float]]) -> None:
    """Store a run, of which the checkpoint of step 20 was tested."""
    folder.mkdir()
    metrics: dict[str, Any] = {"ndcg@10": ndcg, "hr@10": 2 * ndcg, "mrr": ndcg / 2}
    interval = {"ndcg@10": [ndcg - 0.01, ndcg + 0.01]}
    values = {"checkpoint": "step_000000020", "metrics": metrics, "ci95": interval}
    (folder / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"run": {"seed": seed}}), encoding="utf-8")
    if validation:
        lines = [json.dumps({"step": step, "ndcg@10": value}) for step, value in validation]
        (folder / "validation.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_each_seed_has_the_validation_of_the_tested_checkpoint(tmp_path: Path) -> None:
    store(tmp_path / "one", 1, 0.2, [(10, 0.3), (20, 0.19), (30, 0.18)])
    store(tmp_path / "two", 2, 0.1, [(20, 0.11)])
    runs = [runs_page.read(tmp_path / name) for name in ("one", "two")]
    assert runs_page.rows("model", runs) == [
        ["model", "1", "0.1900", "0.2000", "0.1900 - 0.2100", "0.4000", "0.1000"],
        ["", "2", "0.1100", "0.1000", "0.0900 - 0.1100", "0.2000", "0.0500"],
        ["", "mean, standard deviation", "0.1500, 0.0566", "0.1500, 0.0707", "", "0.3000, 0.1414", "0.0750, 0.0354"],
    ]


def test_a_mean_of_validations_needs_all_of_them(tmp_path: Path) -> None:
    store(tmp_path / "one", 1, 0.2, [])
    store(tmp_path / "two", 2, 0.1, [(20, 0.11)])
    lines = runs_page.rows("model", [runs_page.read(tmp_path / name) for name in ("one", "two")])
    assert [line[2] for line in lines] == ["", "0.1100", ""]


def test_trainings_within_a_budget_have_their_time_and_their_quality() -> None:
    outcomes = [
        {"seed": seed, "steps": 1600, "cpu_seconds": 590.4, "metrics": {"ndcg@10": ndcg, "hr@10": 0.3}}
        for seed, ndcg in ((1, 0.17), (2, 0.18))
    ]
    assert runs_page.within_budget({"split": "test", "outcomes": outcomes}).splitlines()[2:] == [
        "| 1 | 1,600 | 590 s | 0.1700 | 0.3000 |",
        "| 2 | 1,600 | 590 s | 0.1800 | 0.3000 |",
        "| mean, standard deviation |  |  | 0.1750, 0.0071 | 0.3000, 0.0000 |",
    ]
