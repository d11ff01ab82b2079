"""Studies of rankers, by hand-made values: less log loss is better, and what is not defined is missing and never the best."""

import csv
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.driver.progress import View
from cluster.study import outputs
from cluster.study.collect import Finished, Measured, read_trial
from cluster.study.config import read_study
from cluster.study.costing import Costing
from cluster.study.effects import effects
from cluster.study.execute import _Progress
from cluster.study.record import Record
from cluster.study.summary import Summary, axes_of, summarize
from cluster.study.trial import Task
from cluster.study.trials import Plan, plan_trials
from tests.trainer.evaluation.ranking.scored import random_judged
from trainer.evaluation.ranking.intervals import intervals_of, shares_of_users
from trainer.evaluation.ranking.judged import Judged, areas_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of

FLOPS = (1e6, 4e6, 2e6)
SPEED = (100.0, 50.0, 200.0)  # impressions per second


def ranker_plan(folder: Path, metric: str, labels: tuple[str, ...] = ("click",)) -> Plan:
    file = folder / "study.toml"
    file.write_text(
        f"""
        [study]
        dir = "{folder / "study"}"
        seeds = [1, 2]
        metric = "{metric}"
        [study.grid]
        "model.max_history" = [1, 2, 3]
        [logs]
        path = "shown.parquet"
        labels = {json.dumps(labels)}
        history_label = "click"
        [split]
        kind = "global_time"
        validation_time = 6
        test_time = 8
        """
    )
    (folder / "study").mkdir(exist_ok=True)
    return plan_trials(read_study(file))


def summary_of(plan: Plan, values: list[float | None]) -> Summary:
    """Of trials that all have the value of their point, in each seed and split; None is a metric that is not defined."""
    finished = {}
    for trial in plan.trials:
        value = values[trial.point]
        of_users = np.full(3, math.nan if value is None else value)
        measured = Measured({"gauc": None, plan.study.metric: value}, ["a", "b", "c"], of_users)
        speed = SPEED[trial.point]
        record = Record("done", "d", 1, 8.0, 7.0, 1000, 40, targets_per_second=speed)
        finished[trial.name] = Finished(trial, record, {"validation": measured, "test": measured})
    costs = [Costing(f / 3, f, f, 10.0, 30.0, 77, 1000, {"experts": f}, 20.0, False, "impression") for f in FLOPS]
    return summarize(plan, finished, {}, costs)


@pytest.mark.parametrize(
    ("metric", "ranks", "flops", "speed"),
    [("logloss", [2, 3, 1], [0, 2], [2]), ("ne", [2, 3, 1], [0, 2], [2]), ("auc", [2, 1, 3], [0, 1], [2, 0, 1])],
)
def test_ranks_and_fronts_go_by_the_direction_of_the_metric(
    tmp_path: Path, metric: str, ranks: list[int], flops: list[int], speed: list[int]
) -> None:
    summary = summary_of(ranker_plan(tmp_path, metric), [0.4, 0.5, 0.3])
    assert [row.rank for row in summary.rows] == ranks
    by_flops, by_speed, _ = (
        [int(row.name[-1]) - 1 for row in outputs.front_of(summary, axis)] for axis in axes_of(summary.unit)
    )
    assert by_flops == flops
    assert by_speed == speed


@pytest.mark.parametrize("metric", ["gauc", "logloss"])
def test_a_metric_that_is_not_defined_is_missing_everywhere_and_never_the_best(tmp_path: Path, metric: str) -> None:
    plan = ranker_plan(tmp_path, metric)
    summary = summary_of(plan, [None, 0.5, 0.3])
    first, second, third = summary.rows
    assert first.rank is None
    assert first.fronts == ()
    assert {second.rank, third.rank} == {1, 2}
    page = outputs.write(plan, summary).read_text()
    assert ">nan<" not in page
    assert "+nan" not in page
    assert "not defined" in page

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    results = json.loads((plan.file.folder / "results.json").read_text(), parse_constant=refuse)
    assert results["points"][0]["validation"] == {"mean": None, "over_seeds": None, "over_users": None}
    assert results["points"][1]["metrics"]["test"]["gauc"] == (0.5 if metric == "gauc" else None)
    line, *_ = csv.DictReader(io.StringIO((plan.file.folder / "results.csv").read_text()))
    assert (line["rank"], line["validation"], line["difference"]) == ("", "", "")


def test_if_no_point_has_the_metric_there_are_no_ranks_and_no_plot(tmp_path: Path) -> None:
    plan = ranker_plan(tmp_path, "gauc")
    summary = summary_of(plan, [None, None, None])
    assert [row.rank for row in summary.rows] == [None] * 3
    page = outputs.write(plan, summary).read_text()
    assert "no user has impressions of both outcomes" in page
    assert "<svg" not in page


def test_headings_are_of_impressions_and_tell_the_direction(tmp_path: Path) -> None:
    plan = ranker_plan(tmp_path, "logloss")
    summary = summary_of(plan, [0.4, 0.5, 0.3])
    page = outputs.write(plan, summary).read_text()
    table = (plan.file.folder / "table.md").read_text()
    heading, _, first, _, third, *_ = table.splitlines()
    assert "| training FLOPs/impression |" in heading
    assert "| impressions/s |" in heading
    assert "| 100 |" in first
    assert third.startswith("| max_history 3 | 1 | 0.3000 |")
    assert "-0.1000" in third  # an improvement
    for text in (page, table):
        assert "Less logloss is better" in text
        assert "each user&#39;s share in the metric" in text or "each user's share in the metric" in text
        assert "events/s" not in text
        assert "/event" not in text
    assert "Training FLOPs per impression, by part" in page
    assert "validation logloss (less is better)" in page
    results = json.loads((plan.file.folder / "results.json").read_text())
    assert results["fronts"].keys() == {"training_flops_per_impression", "impressions_per_second", "peak_bytes"}
    assert results["points"][0]["costs"]["training_flops_per_impression"] == FLOPS[0]
    assert results["points"][0]["impressions_per_second"] == SPEED[0]


def write_split(folder: Path, judged: Judged, label: str = "") -> dict[str, float]:
    """Write the part of an evaluation of these impressions that a study reads, and return the metrics."""
    metrics = metrics_of(sums_of(judged), areas_of(count_scores(judged)))
    users = np.unique(judged.user)
    shares = shares_of_users(judged, metrics, users)
    folder.mkdir(parents=True)
    values = {f"{name}{label}": value if math.isfinite(value) else None for name, value in metrics.items()}
    (folder / "metrics.json").write_text(json.dumps({"metrics": values}))
    columns = {f"{name}{label}": pa.array(of_users, mask=np.isnan(of_users)) for name, of_users in shares.items()}
    pq.write_table(pa.table({"user": users, **columns}), folder / "per_user.parquet")
    return metrics


def read_both(plan: Plan, judged: list[Judged], label: str = "") -> dict[str, Finished]:
    """Return the trials of each point's first seed, as if their evaluations had scored these impressions."""
    finished = {}
    for point, found in enumerate(judged):
        trial = plan.of_point(point)[0]
        write_split(trial.config.run_dir / "evaluation/validation", found, label)
        finished[trial.name] = read_trial(trial, Record("done", "d"), ["validation"], plan.study.metric)
    return finished


COST = Costing(1.0, 3.0, 3.0, 10.0, 30.0, 77, 1000, {"experts": 3.0}, 20.0, False, "impression")


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "gauc", "logloss", "ne"])
def test_the_interval_of_one_run_is_that_of_its_evaluation(tmp_path: Path, metric: str) -> None:
    judged = random_judged(1)
    plan = ranker_plan(tmp_path, metric)
    metrics = metrics_of(sums_of(judged), areas_of(count_scores(judged)))
    first, second = summarize(plan, read_both(plan, [judged, random_judged(2)]), {}, [COST] * 3).rows
    assert first.validation.mean == metrics[metric]
    assert first.validation.over_users == pytest.approx(intervals_of(judged, metrics)[metric])
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(second.validation.mean - first.validation.mean)
    assert second.difference.over_users is not None


def test_what_an_evaluation_could_not_define_is_read_as_missing(tmp_path: Path) -> None:
    judged = random_judged(1)
    only_clicks = judged.take(judged.positive)
    plan = ranker_plan(tmp_path, "gauc")
    summary = summarize(plan, read_both(plan, [only_clicks, judged]), {}, [COST] * 3)
    assert [row.rank for row in summary.rows] == [None, 1]
    assert summary.rows[0].metrics["validation"]["auc"] is None
    assert effects(plan, {}) == ()


def test_a_model_of_one_label_is_read_by_the_studys_name_of_its_metric(tmp_path: Path) -> None:
    plan = ranker_plan(tmp_path, "auc/click")
    (finished,) = read_both(plan, [random_judged(1)]).values()
    assert finished.splits["validation"].value("auc/click") == finished.splits["validation"].value("auc")


@pytest.mark.parametrize(
    ("metrics", "told"),
    [({"auc": 0.75, "ne": 0.5}, "ne 0.5000"), ({"auc": math.nan, "ne": math.nan}, "ne is not defined")],
)
def test_progress_of_a_ranker_shows_the_studys_metric(tmp_path: Path, metrics: dict[str, float], told: str) -> None:
    plan = ranker_plan(tmp_path, "ne")
    said = io.StringIO()
    progress = _Progress(
        [Task(plan.trials[0], "digest", ("validation",), True, "ne")], View(Console(file=said, width=200))
    )
    progress.on_trial_result(1, [], SimpleNamespace(config={"number": 0}), {"validation": {"step": 40, **metrics}})
    assert told in said.getvalue()
