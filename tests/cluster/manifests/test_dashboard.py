"""The dashboard and the alerts: every expression is readable, and every metric and label in it is exported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.workers.metrics import OF_RANKS, OF_RUNS, RANK, RUN, SHOAL_RUN, exported_name
from tests.cluster.manifests.promql import read
from trainer.loop.rank_measures import RankMeasures
from trainer.loop.step_clock import StepClock

FOLDER = Path(__file__).parents[3] / "examples" / "cluster"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana_dashboard.json").read_text(encoding="utf-8"))
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = sorted({target["expr"] for target in TARGETS} | {rule["expr"] for rule in ALERTS})
LABELS = {RUN, RANK, SHOAL_RUN, "SessionName"}
EXPORTED = {exported_name(name) for name in (*OF_RANKS, *OF_RUNS)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_exported_metrics_and_labels(expression: str) -> None:
    names = read(expression)
    assert names.metrics
    assert names.metrics <= EXPORTED
    assert names.labels <= LABELS
    of_run = {exported_name(name) for name in OF_RUNS}
    assert RANK not in names.labels or not names.metrics & of_run  # the driver has no rank


def test_every_metric_is_in_the_dashboard() -> None:
    shown = {metric for target in TARGETS for metric in read(target["expr"]).metrics}
    assert EXPORTED - shown == {exported_name("steps_total")}  # an alert has it


def test_panels_show_series_of_the_chosen_source() -> None:
    assert {panel["type"] for panel in DASHBOARD["panels"]} == {"timeseries"}
    for part in (*DASHBOARD["panels"], *TARGETS):
        assert part["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} <= variables
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert read(variable["query"]).metrics & EXPORTED


def test_legends_and_messages_use_labels_of_their_series() -> None:
    for target in TARGETS:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= LABELS
    for rule in ALERTS:
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= read(rule["expr"]).labels


def test_a_rank_measures_what_is_exported() -> None:
    import torch

    measures = RankMeasures(lambda values: None, StepClock(torch.device("cpu")), "float32")
    clock = measures._clock
    clock.num_steps, clock.data_seconds = 2, 0.5
    clock.totals.update(look_up=1.0, dense=2.0, agree=1.0, update=0.5)
    for _ in range(3):
        with measures.counting(10):
            torch.ones(8, 8) @ torch.ones(8, 8)
    values = measures.values()
    assert set(OF_RANKS) - set(values) == {"memory_bytes"}  # which the process itself adds
    assert set(values) <= set(OF_RANKS)
    assert values["step_seconds"] == pytest.approx(2.5)
    assert values["communication_share"] == pytest.approx(0.2)
    assert values["events_total"] == 30
    flops_per_event = 2 * 8**3 / 10
    assert measures._peak is not None
    assert values["mfu"] == pytest.approx(flops_per_event * 30 / 5.0 / measures._peak)


@pytest.mark.parametrize(
    "text", ["sum(a", "a)", "a{b}c)", "sum by (a] b", "histogram(a)", "rate(a[5m] * 2)", "a # b", "{a="]
)
def test_a_broken_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"closed|closes|read|function|argument"):
        read(text)
