"""Metrics of a training for Prometheus, by Ray's own exporter, with the labels of Ray Train. No torch.

Ray puts "ray_" before each name and adds the labels of the session (SessionName) and of the node. A total is a gauge that grows
until the workers are restarted: use `increase`, which allows for that.
"""

from collections.abc import Mapping
from typing import Any

RUN = "ray_train_run_name"  # as Ray Train's own metrics have it
RANK = "ray_train_worker_world_rank"
SHOAL_RUN = "shoal_run"  # name of the run folder, which stays the same when the run is resumed

# Of each rank, by the names of trainer.loop.rank_measures.
OF_RANKS = {
    "steps_total": "steps trained since this worker started",
    "events_total": "input events that this rank trained since it started",
    "step_seconds": "mean time of a step, data included",
    "data_seconds": "mean wait for data of a step",
    "look_up_seconds": "mean time of a step to look up rows of tables",
    "dense_seconds": "mean time of a step for the dense part, forward and backward",
    "agree_seconds": "mean time of a step in which this rank waits for the others",
    "update_seconds": "mean time of a step to update tables and dense weights",
    "communication_share": "share of a step in which this rank waits for the others",
    "checkpoint_stall_seconds_total": "time for which training waited for checkpoints",
    "mfu": "matrix products per second over the measured peak of this device",
    "memory_bytes": "memory that the process of this rank uses",
}
# Of the whole run, by the driver.
OF_RUNS = {
    "events_per_second": "input events per second of all ranks",
    "step": "steps trained",
    "total_steps": "steps of the whole training",
    "loss": "loss of the last step",
    "workers": "ranks that train",
    "restarts_total": "restarts of the workers by this command",
    "goodput": "share of the time of this command in which steps were trained that were not lost",
}


def exported_name(name: str) -> str:
    """Return a name as Prometheus shows it."""
    return f"ray_shoal_train_{name}"


class Gauges:
    """Gauges of one source with fixed labels."""

    def __init__(self, described: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self._described = described
        self._labels = dict(labels)
        self._gauges: dict[str, Any] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Set the gauges that have a value. Names without a description are left out."""
        from ray.util.metrics import Gauge

        for name, value in values.items():
            if name not in self._described:
                continue
            if name not in self._gauges:
                gauge = Gauge(f"shoal_train_{name}", self._described[name], tag_keys=tuple(self._labels))
                gauge.set_default_tags(self._labels)
                self._gauges[name] = gauge
            self._gauges[name].set(value)


def rank_gauges(run_name: str, shoal_run: str, rank: int) -> Gauges:
    """Return the gauges of a rank."""
    return Gauges(OF_RANKS, {RUN: run_name, SHOAL_RUN: shoal_run, RANK: str(rank)})


def run_gauges(run_name: str, shoal_run: str) -> Gauges:
    """Return the gauges of a run, for the driver."""
    return Gauges(OF_RUNS, {RUN: run_name, SHOAL_RUN: shoal_run})
