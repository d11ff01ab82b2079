"""report.html: one page that loads nothing from anywhere, holds the numbers, and escapes what users named."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.html_page import Page, assert_loads_nothing
from tests.support.jobs import tiny_job, with_sections
from trainer.config.job import Job
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.evaluation.next_item.metrics import METRICS as METRICS_OF_TASK
from trainer.evaluation.next_item.report import ReportInput, render
from trainer.evaluation.next_item.results import Results
from trainer.evaluation.run_header import header_rows, protocol_rows, setting_rows
from trainer.metrics_log import ATTEMPTS, MetricsLog

METRICS = {"hr@1": 0.12345, "hr@10": 0.5432, "ndcg@10": 0.3214, "mrr": 0.2222, "coverage@10": 0.75}
POPULARITY = {"hr@1": 0.05, "hr@10": 0.1111, "ndcg@10": 0.0777, "mrr": 0.0, "coverage@10": 0.01}
BOUNDS = {name: [value - 0.01, value + 0.01] for name, value in METRICS.items() if not name.startswith("coverage")}
COUNTS = Counts(123456, 123000, {"null item": 400, "duplicate": 56}, 4321, 987, 110000, 4000, 4000, 3, 21, 0, 17)
EXAMPLES = [
    {
        "user": "ann",
        "num_events": 40,
        "history": ["Alien", "Heat"],
        "targets": [{"item": "Fargo", "rank": 3}, {"item": "an unknown item", "rank": 0}],
        "recommended": [{"item": "Jaws", "is_target": False}, {"item": "Fargo", "is_target": True}],
    }
]
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


def job_with(log_path: str | None = None) -> Job:
    job = tiny_job(Path("runs/films"), Path("runs/films/dataset"))
    logs = job.config.logs.model_copy(update={"path": log_path})
    return job if log_path is None else with_sections(job, logs=logs)


def page_of(
    results: Results | None = None,
    log_path: str | None = None,
    history: list[dict] = HISTORY,
    examples: list[dict] = EXAMPLES,
    ranks: np.ndarray = SAMPLE,
    folder: Path = Path("nowhere"),
) -> str:
    manifest = Manifest("f", {}, {"kind": "leave_one_out", "min_events": 3}, COUNTS, {}, ())
    job = job_with(log_path)
    of_model_and_baseline = {"model": ranks, "popularity": ranks[::-1]}
    return render(
        ReportInput(results or results_with(), job, manifest, folder, history, of_model_and_baseline, examples)
    )


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
    assert "leave one out" in text


def test_targets_that_cannot_be_ranked_are_mentioned_only_if_they_exist():
    assert "cannot be ranked" not in page_of(results_with(num_targets_not_rankable=0), examples=[])


def test_four_plots_and_fewer_without_a_history(page):
    assert Page(page).names.count("svg") == 4
    assert Page(page_of(history=[])).names.count("svg") == 2
    assert Page(page_of(history=HISTORY[:1])).names.count("svg") == 3


def test_names_given_by_users_are_escaped():
    nasty = '<script>alert("x")</script>'
    example = {**EXAMPLES[0], "user": nasty, "history": [nasty]}
    page = page_of(
        results_with(checkpoint=nasty, protocol={"catalogue": 9, "note": nasty}),
        log_path=nasty,
        examples=[example],
    )
    assert "<script" not in page
    assert Page(page).text.count("<script>") >= 5


def test_a_page_fits_small_screens_and_has_a_dark_scheme(page):
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(page).tags
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def test_ids_are_unique_over_all_plots_and_references_lead_to_them(page):
    parsed = Page(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) > 20
    assert len(set(ids)) == len(ids)
    targets = [
        value[1:] for _, attributes in parsed.tags for name, value in attributes.items() if name.endswith("href")
    ]
    assert targets
    assert set(targets) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_text_in_plots_is_text_and_plots_have_labels(page):
    parsed = Page(page)
    assert "K (places in the ranked catalogue)" in parsed.text
    plots = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in plots)


def test_tables_scroll_in_containers_of_their_own(page):
    names = [(tag, attributes.get("class", "")) for tag, attributes in Page(page).tags]
    before = [names[place - 1] for place, (tag, _) in enumerate(names) if tag == "table"]
    assert before
    assert set(before) == {("div", "scroll")}


def test_headline_figures_come_first_with_their_intervals(page):
    text = " ".join(Page(page).text.split())
    start = text.index("hr@10 0.5432 95 %: 0.5332 to 0.5532 best baseline: popularity 0.1111, 4.89x")
    assert start < text.index("Model compared with baselines")


def test_the_header_names_run_model_data_and_what_training_took(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    log = MetricsLog(tmp_path, 0)
    log.write(20, "train", {"loss": 1.0})
    log.close()
    (tmp_path / ATTEMPTS).write_text("[[1000, 1300], [1764000000, 1764000060]]")
    job = replace(job_with(), run_dir=tmp_path)
    rows = dict(header_rows(job, Manifest("f", {}, {}, COUNTS, {}, ()), "step_20", tmp_path, HISTORY))
    assert rows["Run"] == tmp_path.name
    assert rows["Model"].startswith("sasrec encoder")
    assert "4,321 users, 987 items" in rows["Data"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", rows["Evaluated"])
    assert rows["Trained"] == "until 2025-11-24 16:01 UTC, 20 steps in 6 min 00 s"
    workers = job.config_values["cluster"]["num_workers"]
    assert rows["Cost"].startswith(f"{workers * 360 / 3600:.2f} worker hours ({workers} ")


def test_settings_are_shown_where_they_differ_from_their_defaults():
    rows = dict(setting_rows(tiny_job(Path("run"), Path("dataset"), train={"learning_rate": 0.5})))
    assert rows["train.learning_rate"] == "0.5"
    assert "train.weight_decay" not in rows
    assert "train.log_every_steps" in Page(page_of()).text
    assert "train.weight_decay" not in Page(page_of()).text


def test_example_users_have_history_targets_and_recommendations(page):
    text = " ".join(Page(page).text.split())
    assert "User ann Last 2 of 40 events Alien Heat Held out Fargo place 3 an unknown item cannot be ranked" in text
    assert "Recommended Jaws Fargo held out" in text


def test_metrics_are_explained(page):
    text = Page(page).text
    for metric in METRICS_OF_TASK:
        assert (metric.explanation in text) == any(metric.matches(name) for name in METRICS)


def test_recall_is_not_repeated_where_it_equals_the_hit_rate():
    metrics = {**METRICS, "recall@10": 0.5432}
    baselines = {"popularity": {**POPULARITY, "recall@10": 0.1111}}
    once = page_of(results_with(metrics=metrics, baselines=baselines))
    assert "recall@K equals hr@K" in once
    assert 'row">recall@10' not in once
    several = page_of(results_with(metrics=metrics, baselines=baselines, num_targets=9000))
    assert "recall@K equals hr@K and is" not in several
    assert 'row">recall@10' in several


def test_times_of_a_clock_are_dates():
    split = {"kind": "global_time", "validation_time": 1702080000, "test_time": 1702339200}
    source = {"time": {"kind": "integer", "first": 1700000000, "last": 1703000000}}
    manifest = Manifest("f", source, split, COUNTS, {}, ())
    (_, text), *_ = protocol_rows({"split": split}, manifest)
    assert "training before 2023-12-09 00:00:00 UTC" in text
    assert "test from 2023-12-12 00:00:00 UTC" in text
    counted = Manifest("f", {"time": {"kind": "integer", "first": 0, "last": 99}}, split, COUNTS, {}, ())
    assert "training before 1702080000" in protocol_rows({"split": split}, counted)[0][1]


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
    assert "0.0000" in page_of(changed, history=[], ranks=nothing, examples=[])


def test_what_a_reader_should_know_first_stands_first() -> None:
    skipped = {"step": 21, "kind": "skipped", "reason": "not finite", "row_ids": [[1]]}
    strong = {name: 2.0 * value for name, value in METRICS.items()}
    text = " ".join(Page(page_of(results_with(baselines={"ease": strong}), history=[*HISTORY, skipped])).text.split())
    start = text.index("warnings")
    assert "ease is better than the model in ndcg@10." in text[start:]
    assert "2 steps of training were skipped" in text[start:]
    assert start < text.index("best baseline: ease 1.0864, 0.50x")


def test_the_worst_slices_are_named_with_their_test() -> None:
    worst = {
        "metric": "ndcg@10",
        "num_tested": 7,
        "min_users": 50,
        "level": 0.05,
        "slices": [
            {"name": "user.<b>", "value": "x", "num_users": 60, "mean": 0.1, "mean_of_others": 0.4, "p_value": 0.0012}
        ],
    }
    text = " ".join(Page(page_of(results_with(worst_slices=worst))).text.split())
    assert "user.<b> x 60 0.1000 0.4000 75% 0.001" in text
    assert "7 slices with at least 50 users inside and outside were tested" in text
    assert "No slice is significantly worse" in Page(page_of(results_with(worst_slices={**worst, "slices": []}))).text


def test_protocol_baselines_and_versions_are_stated() -> None:
    notes = {"used": {"popularity": "items by popularity"}, "left_out": {"ease": "too many items"}}
    text = " ".join(Page(page_of(results_with(baseline_notes=notes))).text.split())
    assert "It ranks the full catalogue of 987 items, never a sample" in text
    assert "popularity items by popularity ease left out: too many items" in text
    assert re.search(r"Versions .*python \d+\.\d+.* torch \d", text)
