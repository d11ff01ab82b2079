"""Metrics of a run: goodput counts a step that is trained again once."""

from typing import Any

import pytest

from cluster.driver.run_metrics import RunMetrics
from cluster.workers.metrics import OF_RUNS


def trained(step: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "total_steps": 100,
        "seconds_left": (100 - step) * 0.5,
        "events_per_second": 20.0,
        "loss": 1.5,
        "workers": 2,
    }


def test_lost_steps_are_no_goodput() -> None:
    sent: list[dict[str, float]] = []
    now = [0.0]
    metrics = RunMetrics(sent.append, lambda: now[0])
    for seconds, event in [
        (10.0, trained(0)),
        (20.0, trained(20)),
        (30.0, {"kind": "restart"}),
        (40.0, trained(10)),
        (50.0, trained(30)),
    ]:
        now[0] = seconds
        metrics.on_event(event)
    assert [values.get("goodput") for values in sent] == [0.0, 0.5, None, pytest.approx(0.125), pytest.approx(0.3)]
    assert sent[-1]["restarts_total"] == 1.0
    assert set(sent[-1]) == set(OF_RUNS)
