"""One row per point out of what trials left, by hand-computed numbers; and the files that are written of it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from cluster.study import outputs
from cluster.study.collect import Finished
from cluster.study.statistics import Estimate
from cluster.study.summary import Summary, axes_of, summarize
from cluster.study.trials import Plan
from tests.support import studies
from tests.support.html_page import Page, assert_loads_nothing
from tests.support.studies import costing, plan_of
from trainer.evaluation.confidence import SHARE, mean_interval, score_interval

# By point and seed: the value of each of four users.
VALUES = {
    (0, 1): [0.0, 1.0, 0.0, 1.0],
    (0, 2): [0.0, 1.0, 0.5, 1.0],
    (1, 1): [0.5, 1.0, 0.5, 1.0],
    (1, 2): [0.5, 1.0, 1.0, 1.0],
    (2, 1): [0.0, 0.0, 0.0, 1.0],
    (2, 2): [0.0, 0.0, 0.0, 1.0],
}
SPEED = {0: 100.0, 1: 50.0, 2: 200.0}
FLOPS = {0: 1e6, 1: 4e6, 2: 2e6}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, '[study.grid]\n"model.encoder.num_blocks" = [1, 2, 3]')


def finished(plan: Plan, without: str = "", users: str = "abcd") -> dict[str, Finished]:
    return studies.finished(plan, VALUES, without, users, lambda trial: SPEED[trial.point])


def summary_of(plan: Plan, found: dict[str, Finished], failed: dict[str, str] | None = None) -> Summary:
    return summarize(plan, found, failed or {}, [costing(FLOPS[k]) for k in range(3)])


def test_rows_are_means_over_seeds_ranked_by_validation(plan: Plan) -> None:
    rows = summary_of(plan, finished(plan)).rows
    assert [row.validation.mean for row in rows] == pytest.approx([0.5625, 0.8125, 0.25])
    assert [row.rank for row in rows] == [2, 1, 3]
    # Seeds 0.5 and 0.625: the standard error is 0.0625, and Student's t 12.7062.
    assert rows[0].validation.over_seeds == pytest.approx(
        score_interval(0.5625, 0.0625, SHARE, quantile=12.7062), abs=1e-4
    )
    assert rows[2].validation.over_seeds == pytest.approx((0.25, 0.25))
    assert rows[1].peak_bytes == 3000
    assert rows[1].metrics["test"]["mrr"] == 0.5


def test_differences_are_paired_by_seed_and_user(plan: Plan) -> None:
    first, second, third = summary_of(plan, finished(plan)).rows
    assert first.difference is None
    assert second.difference is not None
    # Both seeds differ by 0.25, so there is no doubt over seeds; users differ by 0.5, 0, 0.5, 0.
    assert second.difference.mean == pytest.approx(0.25)
    assert second.difference.over_seeds == pytest.approx((0.25, 0.25))
    expected = mean_interval(np.asarray([0.5, 0.0, 0.5, 0.0]), SHARE.of_differences)
    assert second.difference.over_users == pytest.approx(expected)
    assert third.difference is not None
    assert third.difference.mean == pytest.approx(-0.3125)


def test_other_users_are_not_compared_one_by_one(plan: Plan) -> None:
    found = finished(plan)
    last = plan.trials[-1]
    found[last.name] = finished(plan, users="abcx")[last.name]
    third = summary_of(plan, found).rows[2]
    assert third.difference is not None
    assert third.difference.over_users is None
    assert third.difference.mean == pytest.approx(-0.3125)


def test_fronts_weigh_quality_against_each_cost(plan: Plan) -> None:
    summary = summary_of(plan, finished(plan))
    fronts = {axis.name: [row.name for row in outputs.front_of(summary, axis)] for axis in axes_of("event")}
    assert fronts["training_flops_per_event"] == ["num_blocks 1", "num_blocks 2"]
    assert fronts["events_per_second"] == ["num_blocks 3", "num_blocks 1", "num_blocks 2"]


def test_a_failed_trial_leaves_the_other_seeds_of_its_point(plan: Plan) -> None:
    failed = {"num_blocks-1-seed2": "out of memory"}
    summary = summary_of(plan, finished(plan, without="num_blocks-1-seed2"), failed)
    first, second, _ = summary.rows
    assert first.seeds == (1,)
    assert first.failed == ("num_blocks-1-seed2",)
    assert first.validation.over_seeds is None
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.25)  # of seed 1, which both have
    assert "- num_blocks-1-seed2: out of memory" in outputs.table_text(summary)


def test_a_difference_is_starred_only_if_seeds_and_users_both_leave_no_doubt() -> None:
    sure, unsure = (0.1, 0.3), (-0.1, 0.5)
    assert outputs.difference_text(Estimate(0.2, sure, sure)) == "+0.2000 ±0.1000*"
    assert outputs.difference_text(Estimate(0.2, unsure, sure)) == "+0.2000 ±0.1000"
    assert outputs.difference_text(Estimate(0.2, sure, unsure)) == "+0.2000 ±0.3000"
    assert outputs.difference_text(Estimate(0.2, None, sure)) == "+0.2000 ±0.1000"  # of a single seed
    assert outputs.difference_text(None) == ""


def test_without_any_result_there_is_a_table_of_failures(plan: Plan) -> None:
    summary = summary_of(plan, {}, {trial.name: "no memory" for trial in plan.trials})
    assert summary.rows == ()
    outputs.write(plan, summary)
    assert "num_blocks-3-seed2: no memory" in (plan.file.folder / "table.md").read_text()


def test_all_files_say_the_same(plan: Plan) -> None:
    page = outputs.write(plan, summary_of(plan, finished(plan)))
    folder = plan.file.folder
    results = json.loads((folder / "results.json").read_text())
    assert results["compared_with"] == "num_blocks 1"
    assert results["fronts"]["training_flops_per_event"] == ["num_blocks 1", "num_blocks 2"]
    assert [point["validation"]["mean"] for point in results["points"]] == pytest.approx([0.5625, 0.8125, 0.25])
    lines = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [float(line["validation"]) for line in lines] == pytest.approx([0.5625, 0.8125, 0.25])
    assert [line["model.encoder.num_blocks"] for line in lines] == ["1", "2", "3"]
    table = (folder / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in table[:5]}) == 1
    assert table[3].startswith("| num_blocks 2 | 1 | 0.8125 |")
    assert "+0.2500 ±0.2712" in table[3]
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "plot.svg").read_text()
    assert svg.startswith("<svg")
    assert Page(page.read_text()).names.count("svg") == 1
    written = {name: (folder / name).read_bytes() for name in ("results.json", "plot.svg", "table.md", "study.html")}
    outputs.write(plan, summary_of(plan, finished(plan)))
    assert written == {name: (folder / name).read_bytes() for name in written}


def test_the_page_names_the_best_point_with_its_settings_and_sorts_the_others(plan: Plan) -> None:
    page = outputs.write(plan, summary_of(plan, finished(plan))).read_text()
    assert_loads_nothing(page)
    assert Page(page).open == []
    text = " ".join(Page(page).text.split())
    assert "Best point: num_blocks 2 ndcg@10, validation 0.8125 95 %:" in text
    assert "minus the first point +0.2500 95 %:" in text
    assert "Settings in which it differs from the base of the study: setting value model.encoder.num_blocks 2" in text
    table = text[text.index("All points") :]
    places = [table.index(f"num_blocks {number}") for number in (2, 1, 3)]
    assert places == sorted(places)
    assert "Trials 6 of 6 finished" in text
    assert "Cost 48.0 s of training" in text


def test_a_study_without_results_has_a_page(plan: Plan) -> None:
    summary = summary_of(plan, {}, {trial.name: "no memory" for trial in plan.trials})
    text = Page(outputs.write(plan, summary).read_text()).text
    assert "Best point" not in text
    assert "num_blocks-3-seed2 failed: no memory" in text
