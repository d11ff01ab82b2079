"""Output of a run for people: the results next to the baseline, warnings, and which validation is the best."""

import io
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from rich.console import Console

from cluster.driver.progress import View, headline, results_table
from tests.support.evaluated import results_of
from trainer.evaluation.ranking.results import RankingResults


def shown(*events: dict[str, Any]) -> str:
    screen = io.StringIO()
    with View(Console(file=screen, width=200)) as view:
        for event in events:
            view.on_event(event)
    return screen.getvalue()


def test_the_table_shows_model_interval_and_baseline_in_their_columns() -> None:
    results = results_of({"hr@10": 0.4, "mrr": 0.25}, {"hr@10": 0.1, "mrr": 0.05})
    screen = io.StringIO()
    Console(file=screen, width=200).print(results_table(results))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in screen.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["hr@10", "0.4000", "0.3900 - 0.4100", "0.1000"],
        ["mrr", "0.2500", "0.2400 - 0.2600", "0.0500"],
    ]
    header = screen.getvalue().splitlines()[2]
    assert header.index("model") < header.index("95 % interval") < header.index("popularity")


def test_of_many_baselines_the_table_shows_the_first_and_the_strongest_other() -> None:
    results = results_of({"ndcg@10": 0.4}, {"ndcg@10": 0.1})
    others = {name: {"ndcg@10": value} for name, value in (("a", 0.05), ("ease", 0.3), ("b", 0.2))}
    screen = io.StringIO()
    Console(file=screen, width=200).print(results_table(replace(results, baselines=results.baselines | others)))
    assert re.search(r"popularity\W+ease\W", screen.getvalue())
    assert "0.3000" in screen.getvalue()
    assert "0.2000" not in screen.getvalue()


def test_the_table_leaves_out_recall_where_it_equals_the_hit_rate() -> None:
    metrics = {"hr@10": 0.4, "ndcg@10": 0.3, "recall@10": 0.4}
    results = results_of(metrics, metrics)
    for targets, expected in ((60, False), (90, True)):
        screen = io.StringIO()
        Console(file=screen, width=200).print(results_table(replace(results, num_targets=targets)))
        assert ("recall@10" in screen.getvalue()) is expected
        assert "ndcg@10" in screen.getvalue()


def test_the_headline_has_interval_and_baseline_of_the_first_metrics() -> None:
    results = results_of(
        {"hr@5": 0.3, "hr@10": 0.4, "ndcg@10": 0.25, "coverage@10": 0.9},
        {"hr@5": 0.1, "hr@10": 0.1, "ndcg@10": 0.05, "coverage@10": 0.1},
    )
    expected = "hr@10 0.4000 [0.3900, 0.4100], popularity 0.1000; ndcg@10 0.2500 [0.2400, 0.2600], popularity 0.0500"
    assert headline(results) == f"test: {expected}"


def test_the_headline_of_many_labels_is_short_and_leaves_out_what_is_undefined() -> None:
    names = [f"{metric}/{label}" for label in "abcd" for metric in ("auc", "gauc")]
    of_next_item = asdict(results_of(dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.4)))
    values = {**of_next_item, "task": "ranking", "labels": {}, "reliability": {}}
    values["metrics"]["auc/a"] = None
    values["ci95"] = {}
    values["baselines"]["popularity"]["gauc/a"] = None
    for name in ("num_targets_not_rankable", "worst_slices", "baseline_notes"):
        del values[name]
    shown = headline(RankingResults(**values))
    assert shown == "test: gauc/a 0.5000; auc/b 0.5000, popularity 0.4000; gauc/b 0.5000, popularity 0.4000"


def test_a_warning_of_a_worker_is_shown() -> None:
    assert "warning: checkpoint 3 is corrupt" in shown({"kind": "warning", "text": "checkpoint 3 is corrupt"})


def test_only_the_best_validation_is_marked() -> None:
    first, second = (
        {"kind": "validation", "step": step, "metrics": {"hr@10": 0.5}, "best": {"step": 8}} for step in (8, 16)
    )
    marked, plain = shown(first, second).splitlines()
    assert "step 8: hr@10 0.5000 (best)" in marked
    assert "step 16: hr@10 0.5000" in plain
    assert "(best)" not in plain


STEP = {
    "kind": "train",
    "step": 1_200,
    "total_steps": 15_000,
    "loss": 5.1234,
    "epoch": 0,
    "events_per_second": 31_000.0,
    "seconds_left": 622.0,
    "next_checkpoint": 2_000,
}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_line_fits_the_terminal(width: int) -> None:
    screen = io.StringIO()
    with View(Console(file=screen, width=width, force_terminal=True, color_system=None)) as view:
        view.on_event(STEP)
        view._bar.refresh()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in screen.getvalue().splitlines()]
    assert any("step 1,200/15,000" in line for line in lines)
    assert any("loss 5.1234" in line for line in lines) or width < 80
    assert max(len(line) for line in lines) <= width


def test_the_live_line_of_an_ended_stage_is_not_drawn_again() -> None:
    screen = io.StringIO()
    with View(Console(file=screen, width=80, force_terminal=True, color_system=None)) as view:
        view.on_event(STEP)
        view._bar.refresh()
        before = screen.getvalue()
        view.print_phase("evaluate: building the model")
    assert "step 1,200" in before
    assert "step 1,200" not in screen.getvalue()[len(before) :]


def test_a_log_shows_all_figures_of_a_step() -> None:
    expected = "step 1,200/15,000  loss 5.1234  00:10:22 left  31,000 events/s  epoch 1  next checkpoint at 2,000"
    assert expected in shown(STEP)


def test_validation_during_training_shows_its_batches_and_gives_the_live_line_back() -> None:
    screen = io.StringIO()
    with View(Console(file=screen, width=80, force_terminal=True, color_system=None)) as view:
        for event in (STEP, {"kind": "validate", "done": 3, "total": 12}, STEP):
            view.on_event(event)
            view._bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    step, validating = text.index("step 1,200"), text.index("batch 3/12")
    assert "validate" in text[:validating]
    assert step < validating < text.index("step 1,200", validating)


def test_a_phase_without_progress_has_a_line() -> None:
    assert shown({"kind": "phase", "text": "train: building the model"}) == "train: building the model ...\n"
