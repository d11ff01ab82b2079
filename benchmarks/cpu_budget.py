"""Quality after a budget of processor time on one core: `python -m benchmarks.cpu_budget CONFIG --json FILE`.

A run of a few steps measures the processor time of a step. The budget then gives the number of steps, to which the schedule of the
learning rate is fitted: the training ends with the budget, and is evaluated by `shoal evaluate`. Counted is the processor time of
all threads of the training process, from its start after the imports to its end, with its checkpoint.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.machine import processor_name
from benchmarks.step_times import RankTimes, rank_times
from cluster.config.run_config import Config, load_config
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session

PROBE_STEPS, PROBE_WARM_UP = 60, 10
# Of the budget, so that a measured step that is a little faster than the later ones does not exceed it.
SHARE = 0.97
LIMIT = timedelta(hours=2)  # of a training while other work runs


@dataclass(frozen=True)
class Outcome:
    """A training of one seed."""

    seed: int
    steps: int
    examples: int
    cpu_seconds: float  # never more than the budget, or the command fails
    metrics: dict[str, float]  # of the evaluated split


def main() -> None:
    """Train and evaluate each seed, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("config")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="processor time of a training")
    parser.add_argument(
        "--steps", type=int, help="of a training, by default as many as the budget allows by a short run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="settings are chosen on validation"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-budget-") as folder:
        outcomes = [_outcome(arguments, Path(folder), seed) for seed in arguments.seeds]
        config = _config(arguments, Path(folder), "of-record", 1, PROBE_STEPS).model_dump(mode="json")
    values = [each.metrics["ndcg@10"] for each in outcomes]
    spread = f", standard deviation {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    print(f"{arguments.split}: ndcg@10 {statistics.mean(values):.4f}{spread}")
    if arguments.json:
        figures = {
            "machine": processor_name(),
            "budget_seconds": arguments.budget,
            "split": arguments.split,
            "outcomes": [asdict(each) for each in outcomes],
            "config": {name: config[name] for name in ("split", "model", "tables", "train", "evaluate")},
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _outcome(arguments: argparse.Namespace, folder: Path, seed: int) -> Outcome:
    probe = _config(arguments, folder, f"probe-{seed}", seed, PROBE_STEPS)
    with ray_session(probe.cluster):
        prepare(probe, lambda progress: None)
    steps = arguments.steps or _steps_within(arguments.budget, _train(probe))
    config = _config(arguments, folder, f"run-{seed}", seed, steps)
    times = _train(config)
    spent = times.ended - times.started
    if spent > arguments.budget:
        raise SystemExit(f"seed {seed} took {spent:.1f} s of processor time, more than {arguments.budget:g} s")
    done = len(times.steps)
    outcome = Outcome(seed, done, done * config.train.batch_size, spent, _evaluate(config, arguments.split))
    print(
        f"seed {seed}: {outcome.steps:,} steps, {outcome.cpu_seconds:.1f} s, ndcg@10 {outcome.metrics['ndcg@10']:.4f}"
    )
    return outcome


def _steps_within(budget: float, probe: RankTimes) -> int:
    """Return how many steps a budget allows, by the processor times of a short run."""
    each = (probe.steps[-1] - probe.steps[PROBE_WARM_UP]) / (len(probe.steps) - 1 - PROBE_WARM_UP)
    fixed = probe.ended - probe.started - each * len(probe.steps)
    return int((SHARE * budget - fixed) / each)


def _config(arguments: argparse.Namespace, folder: Path, name: str, seed: int, steps: int) -> Config:
    settings = {
        "run.dir": folder / name,
        "run.dataset": folder / "dataset",
        "run.seed": seed,
        "train.epochs": 1_000_000,
        "train.max_steps": steps,
        "train.evaluate_every_epochs": 1_000_000,
        "cluster.num_workers": 1,
        "plan.measure": "false",
    }
    return load_config(arguments.config, [*arguments.settings, *(f"{key}={value}" for key, value in settings.items())])


def _train(config: Config) -> RankTimes:
    """Train in a process of its own on one thread; return its processor times."""
    config.run_dir.mkdir(parents=True)
    return rank_times(config, clock=time.process_time, limit=LIMIT)


def _evaluate(config: Config, split: str) -> dict[str, float]:
    """Evaluate a run by the command, and return its metrics."""
    path = config.run_dir / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "cluster.cli", "evaluate", str(path), "--split", split, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    metrics: dict[str, float] = json.loads(done.stdout)["metrics"]
    return metrics


if __name__ == "__main__":
    main()
