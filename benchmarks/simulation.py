"""Predicted and measured time of training steps on 1, 2, 4 and 8 workers of one thread, on this machine's cores.

`python -m benchmarks.simulation --json FILE` measures, and writes all figures with the constants. The constants are fitted to
runs of another model on one and two workers (`shoal plan --simulate --calibrate`); the model that is predicted is not among them.
With more workers than cores, workers share the cores. Measured is the time between the starts of successive steps of the real
training loop, the median over the steps. Each turn fits new constants, predicts and measures.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import processor_name
from benchmarks.measure import Comparison
from benchmarks.step_times import step_seconds
from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from cluster.plan.calibration import fit
from cluster.plan.simulation.config import SimulationConfig
from cluster.plan.simulation.simulate import Scaling, read_base, simulate
from cluster.ray_cluster.session import ray_session
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig

WORKERS = (1, 2, 4, 8)
STEPS = 24
NUM_USERS, NUM_ITEMS, MEAN_EVENTS = 4000, 3000, 30.0

PREDICTED: dict[str, Any] = {
    "model": {
        "max_history": 200,
        "encoder": {"kind": "hstu", "num_blocks": 3},
        "objective": {"kind": "sampled_softmax", "num_negatives": 256},
    },
    "tables": {"item": {"dim": 64, "sharding": "row_wise"}},
}
# By name: other widths, blocks, batches and encoders than those of the prediction; workers.
CALIBRATED: dict[str, tuple[dict[str, Any], int, int]] = {
    "small": ({"encoder": {"kind": "sasrec", "num_blocks": 1}, "dim": 32}, 16, 1),
    "medium": ({"encoder": {"kind": "hstu", "num_blocks": 2}, "dim": 48}, 48, 1),
    "large": ({"encoder": {"kind": "hstu", "num_blocks": 4}, "dim": 96}, 32, 1),
    "short": ({"encoder": {"kind": "hstu", "num_blocks": 4}, "dim": 32}, 4, 1),
    "pair": ({"encoder": {"kind": "hstu", "num_blocks": 2}, "dim": 48}, 96, 2),
}
BATCH = 32  # of one worker under weak scaling; of all under strong scaling


@dataclass(frozen=True)
class Step:
    """The predicted and measured time of a step, of each turn."""

    scaling: Scaling
    workers: int
    batch: int
    predicted_seconds: tuple[float, ...]
    measured_seconds: tuple[float, ...]  # median over steps

    @property
    def errors(self) -> tuple[float, ...]:
        """The predicted time over the measured one, less 1, of each turn."""
        pairs = zip(self.predicted_seconds, self.measured_seconds, strict=True)
        return tuple(predicted / measured - 1.0 for predicted, measured in pairs)


@dataclass(frozen=True)
class Result:
    """All figures of the benchmark."""

    machine: str
    cores: int
    load_average: tuple[float, float, float]  # at the end; 8 workers are a load of 8, more is other work
    constants: dict[str, list[float]]  # fitted ones, of each turn
    steps: tuple[Step, ...]

    def values(self) -> dict[str, Any]:
        """Return everything as plain values, with the errors."""
        return {**asdict(self), "steps": [{**asdict(step), "errors": step.errors} for step in self.steps]}


def main() -> None:
    """Measure, print the comparison and write it."""
    parser = argparse.ArgumentParser(description="Predicted and measured steps.")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--turns", type=int, default=5, help="measured turns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        result = measure(Path(folder), arguments.turns)
    for step in result.steps:
        errors = ", ".join(f"{error:+.0%}" for error in step.errors)
        measured = ", ".join(f"{1e3 * seconds:.1f}" for seconds in step.measured_seconds)
        print(f"{step.scaling}, {step.workers} workers: measured {measured} ms, predicted with errors of {errors}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result.values(), indent=1) + "\n", encoding="utf-8")


def compare(folder: Path, turns: int) -> Iterator[Comparison]:
    """Yield measured steps per second of each case, compared with the prediction."""
    for step in measure(folder, turns).steps:
        measured = tuple(1.0 / seconds for seconds in step.measured_seconds)
        predicted = tuple(1.0 / seconds for seconds in step.predicted_seconds)
        name = f"step, {step.scaling} scaling, {step.workers} worker{'s' if step.workers > 1 else ''}"
        yield Comparison(name, "steps/s", measured, predicted, "the prediction")


def measure(folder: Path, turns: int) -> Result:
    """Return predictions and measurements. Starts Ray to prepare the logs, unless it runs."""
    first = prepared(folder)
    each = [_turn(folder, first) for _ in range(turns)]
    steps = tuple(
        Step(case[0].scaling, case[0].workers, case[0].batch, *_transposed(case))
        for case in zip(*(turn.steps for turn in each), strict=True)
    )
    constants = {name: [turn.constants[name] for turn in each] for name in each[0].constants}
    machine = processor_name()
    return Result(machine, os.cpu_count() or 1, os.getloadavg(), constants, steps)


def prepared(folder: Path) -> Config:
    """Generate and prepare the logs of all runs of a folder, and return the config of one. Starts Ray, unless it runs."""
    logs = SyntheticConfig(
        num_users=NUM_USERS, num_items=NUM_ITEMS, mean_events_per_user=MEAN_EVENTS, users_per_file=1000
    )
    generate(logs, folder / "logs")
    first = config_of(folder, "predicted", PREDICTED, BATCH, 1)
    with ray_session(first.cluster):
        prepare(first, lambda progress: None)
    return first


@dataclass(frozen=True)
class _Case:
    scaling: Scaling
    workers: int
    batch: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class _Turn:
    constants: dict[str, float]
    steps: list[_Case]


def _transposed(cases: Sequence[_Case]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(case.predicted for case in cases), tuple(case.measured for case in cases)


def _turn(folder: Path, first: Config) -> _Turn:
    """Fit the constants, predict and measure: all within minutes, so that other work slows both sides down."""
    runs = []
    for name, (model, batch, workers) in CALIBRATED.items():
        config = config_of(folder, name, _model(**model), batch, workers)
        step_seconds(config)
        runs.append(str(config.run_dir))
    fitted = fit(runs)
    path = str(first.run_dir / "config.json")
    settings = [f"plan.devices_per_host={max(WORKERS)}"]
    steps = []
    for scaling in ("weak", "strong"):
        base = read_base(path, settings, {}, SimulationConfig(), scaling, runs, fitted)
        for point in simulate(base, WORKERS, fitted).points:
            # On one worker both kinds of scaling have the same batch.
            if scaling == "weak" or point.workers > 1:
                measured = step_seconds(config_of(folder, "measured", PREDICTED, point.batch, point.workers, False))
                steps.append(_Case(scaling, point.workers, point.batch, point.step_seconds, measured))
    own = {name: one["value"] for name, one in base.constants.values().items() if one["source"].startswith("fitted")}
    return _Turn(own, steps)


def _model(encoder: dict[str, Any], dim: int) -> dict[str, Any]:
    return {
        "model": {**PREDICTED["model"], "encoder": encoder},
        "tables": {"item": {**PREDICTED["tables"]["item"], "dim": dim}},
    }


def config_of(
    folder: Path,
    name: str,
    model: dict[str, Any],
    batch: int,
    workers: int,
    measures_tables: bool = True,
    by_events: bool = False,
) -> Config:
    """Return the config of a run, and write it into a new run folder, where the simulation reads it.

    by_events: a batch has a number of events, the mean of `batch` histories, and its histories are dealt by length.
    """
    values = {
        **model,
        "run": {"dir": str(folder / name), "dataset": str(folder / "dataset")},
        "logs": {"path": str(folder / "logs/events-*.parquet")},
        "train": {
            **(
                {"batch_tokens": round(batch * MEAN_EVENTS)} if by_events else {"batch_size": batch, "deal_by": "count"}
            ),
            "max_steps": STEPS,
            "epochs": 100,
            "evaluate_every_epochs": 100,
            "early_stopping": None,
        },
        "cluster": {"num_workers": workers},
        "plan": {"measure": measures_tables},
    }
    config = check_config(values, "benchmark")
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    return config


if __name__ == "__main__":
    main()
