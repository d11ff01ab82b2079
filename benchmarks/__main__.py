"""Run all benchmarks on a fixed synthetic set: `python -m benchmarks [--json FILE] [--turns N] [--scale S]`."""

import argparse
import json
import platform
import tempfile
import threading
from pathlib import Path

import ray
from rich.console import Console
from rich.table import Table

from benchmarks import dynamic_ids, evaluating, preparing, training
from benchmarks.measure import Comparison
from cluster.config import Config, check_config, job_of
from cluster.launch import run_workers
from cluster.prepare import prepare
from cluster.session import ray_session
from trainer.synthetic.log import generate
from trainer.synthetic.world import SyntheticConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Shoal beside its ceilings, as ratios measured in this run.")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each comparison")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of the synthetic logs; 1 is 3,000 users, 300,000 events"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        comparisons = _run(Path(folder), arguments.turns, arguments.scale)
    table = Table(
        "what", "Shoal", "ceiling", "ratio (median)", "spread", "the ceiling is", title="Shoal beside its ceilings"
    )
    for comparison in comparisons:
        table.add_row(*comparison.row())
    Console().print(table)
    if arguments.json:
        values = {"machine": platform.processor() or platform.machine(), "rows": [c.values() for c in comparisons]}
        Path(arguments.json).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _run(folder: Path, turns: int, scale: float) -> list[Comparison]:
    logs = folder / "logs"
    synthetic = SyntheticConfig(
        num_users=int(3000 * scale), num_items=3000, mean_events_per_user=100.0, users_per_file=int(750 * scale)
    )
    summary = generate(synthetic, logs)
    comparisons = dynamic_ids.compare(turns)
    config = _config(folder, logs, num_workers=1)
    with ray_session(config.cluster):
        cpus = int(ray.cluster_resources()["CPU"])
        comparisons.append(preparing.compare(config, logs, summary.num_events, turns))
        prepare(config, lambda progress: None)
        for num_workers in (1, cpus):
            settings = _config(folder, logs, num_workers, cpus_per_worker=cpus // num_workers)
            for compare in (training.compare, evaluating.compare):
                results = run_workers(compare, (job_of(settings), turns), settings.cluster, print, threading.Event())
                comparisons.append(results[0])
    return comparisons


def _config(folder: Path, logs: Path, num_workers: int, cpus_per_worker: int = 1) -> Config:
    return check_config(
        {
            "run": {"dir": str(folder / f"run-{num_workers}"), "dataset": str(folder / "dataset")},
            "logs": {"path": str(logs / "events-*.parquet")},
            "model": {"max_history": 200},
            "tables": {"item": {"dim": 64}},
            "cluster": {"num_workers": num_workers, "cpus_per_worker": cpus_per_worker},
        },
        "benchmark",
    )


if __name__ == "__main__":
    main()
