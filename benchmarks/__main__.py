"""Run all benchmarks on a fixed synthetic set: `python -m benchmarks [--json FILE] [--turns N] [--scale S]`."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from benchmarks import (
    attending,
    bags,
    checkpoints,
    communicating,
    dynamic_ids,
    evaluating,
    objectives,
    peak,
    planning,
    preparing,
    ranking,
    scoring,
    serving,
    sharded_lookup,
    simulation,
    streaming,
    training,
)
from benchmarks.machine import processor_name
from benchmarks.measure import Comparison
from cluster.config.run_config import ClusterConfig, Config, check_config, job_of
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session
from cluster.workers.group import Workers
from cluster.workers.worker import WorkerFunction
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig
from trainer.loop.memory import keep_freed_memory

SECTIONS = (
    "ids",
    "plan",
    "attention",
    "objectives",
    "peak",
    "ranking",
    "serving",
    "score",
    "lookup",
    "bags",
    "communication",
    "prepare",
    "stream",
    "train",
    "simulate",
    "evaluate",
    "checkpoint",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Shoal against its ceilings, as ratios measured in this run.")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each comparison")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="size of the synthetic logs and tables; 1 is 3,000 users, 300,000 events, and tables of up to 10^7 rows",
    )
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the log that prepare is measured on")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS, help="what to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        comparisons = _run(Path(folder), arguments)
    table = Table(
        "what",
        "Shoal",
        "other",
        "ratio (median)",
        "spread",
        "peak memory",
        "the other is",
        title="Shoal against ceilings and peers",
    )
    for comparison in comparisons:
        table.add_row(*comparison.row())
    Console().print(table)
    if arguments.json:
        values = {"machine": processor_name(), "rows": [c.values() for c in comparisons]}
        Path(arguments.json).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _prepare(folder: Path, num_events: int, turns: int) -> Iterator[Comparison]:
    """Compare prepare with Arrow, DuckDB and Polars, on a log that is large enough for Ray's overhead not to matter."""
    logs = preparing.write_log(folder / "large", num_events)
    config = check_config(
        {"run": {"dataset": str(folder / "large-dataset")}, "logs": {"path": str(folder / "large/events-*.parquet")}},
        "benchmark",
    )
    for compare in (preparing.compare_with_arrow, preparing.compare_with_duckdb, preparing.compare_with_polars):
        yield compare(config, logs, num_events, turns)
    for path in [*logs, *config.dataset_dir.glob("*")]:
        path.unlink()


def _stream(folder: Path, num_events: int, turns: int) -> list[Comparison]:
    """Measure streaming in one process; Ray is used only to prepare the dataset."""
    preparing.write_log(folder / "streamed", num_events)
    config = check_config(
        {
            "run": {"dataset": str(folder / "streamed-dataset")},
            "logs": {"path": str(folder / "streamed/events-*.parquet")},
        },
        "benchmark",
    )
    prepare(config, lambda progress: None)
    return list(streaming.compare(config.dataset_dir, turns))


def _lookup(folder: Path, scale: float, turns: int) -> list[Comparison]:
    """Measure look-ups by workers of one thread each; the first one's figures are those of all."""
    asked = (tuple(int(num_rows * scale) for num_rows in sharded_lookup.NUM_ROWS), turns)
    comparisons = []
    for num_workers in (1, 2):
        cluster = _config(folder, num_workers).cluster
        comparisons += _by_workers(sharded_lookup.compare, asked, cluster)
    return comparisons


def _evaluate(folder: Path, num_items: int, turns: int) -> Iterator[Comparison]:
    """Measure evaluation by one worker with all CPUs, and by a worker of each CPU, without and with compiled kernels."""
    evaluating.write_log(folder / f"logs-{num_items}", num_items)
    cpus = int(ray.cluster_resources()["CPU"])
    for num_workers, compiled in ((1, False), (cpus, False), (cpus, True)):
        settings = _config(folder, num_workers, cpus // num_workers, f"-{num_items}")
        if num_workers == 1:
            prepare(settings, lambda progress: None)
        evaluate = settings.evaluate.model_copy(update={"compiled_kernels": compiled})
        settings = settings.model_copy(update={"evaluate": evaluate})
        batches = max(1, evaluating.NUM_USERS // settings.evaluate.batch_size // (turns + 2))
        yield _by_workers(evaluating.compare, (job_of(settings), turns, batches), settings.cluster)


def _checkpoint(folder: Path, scale: float, turns: int) -> Iterator[Comparison]:
    """Measure files of checkpoints, and a training that saves one a minute."""
    num_rows = int(checkpoints.NUM_ROWS * scale)
    for num_workers in (1, 2):
        asked = (folder / "files", num_rows, turns)
        yield from _by_workers(checkpoints.compare, asked, _config(folder, num_workers).cluster)
    evaluating.write_log(folder / "logs-saved", num_items=3000, num_users=3000)
    values = _config(folder, 2, logs="-saved").model_dump(mode="json")
    values["tables"]["item"]["ids"] = {"kind": "hash", "num_rows": num_rows}
    values["tables"]["item"]["sharding"] = "row_wise"
    values["train"] |= {"epochs": 1000, "evaluate_every_epochs": 1000, "early_stopping": None}
    config = check_config(values, "benchmark")
    prepare(config, lambda progress: None)
    yield from _by_workers(checkpoints.measure_stall, (job_of(config), turns), config.cluster)


def _by_workers(compare: WorkerFunction, argument: Any, cluster: ClusterConfig) -> Any:
    """Return the figures of the first of fresh workers, so that no measurement inherits another's memory."""
    with Workers(cluster) as workers:
        return workers.run(compare, argument, print)[0]


def _run(folder: Path, arguments: argparse.Namespace) -> list[Comparison]:
    turns, scale, only = arguments.turns, arguments.scale, arguments.only
    keep_freed_memory()  # as every worker does, for both sides
    comparisons = dynamic_ids.compare(turns) if "ids" in only else []
    if "plan" in only:
        comparisons += planning.compare(turns)
    if "attention" in only:
        comparisons += attending.compare(turns)
    if "objectives" in only:
        comparisons += objectives.compare(turns)
    if "peak" in only:
        comparisons += peak.compare(turns)
    if "ranking" in only:
        comparisons += ranking.compare(turns)
    if "serving" in only:
        comparisons += serving.compare(turns)
    if "score" in only:
        comparisons += scoring.compare(turns)
    if not set(only) - {"ids", "plan", "attention", "objectives", "peak", "ranking", "serving", "score"}:
        return comparisons
    config = _config(folder, num_workers=1)
    with ray_session(config.cluster):
        if "lookup" in only:
            comparisons += _lookup(folder, scale, turns)
        if "bags" in only:
            for num_workers in (1, 2):
                cluster = _config(folder, num_workers).cluster
                comparisons += _by_workers(bags.compare, turns, cluster)
        if "communication" in only:
            asked = (int(communicating.NUM_ROWS * scale), turns)
            cluster = _config(folder, num_workers=2).cluster
            comparisons += _by_workers(communicating.compare, asked, cluster)
        if "prepare" in only:
            comparisons += _prepare(folder, arguments.events, turns)
        if "stream" in only:
            comparisons += _stream(folder, min(arguments.events, streaming.NUM_EVENTS), turns)
        if "evaluate" in only:
            for num_items in evaluating.CATALOGUES:
                comparisons += _evaluate(folder, int(num_items * scale), turns)
        if "simulate" in only:
            comparisons += simulation.compare(folder / "simulation", turns)
        if "checkpoint" in only:
            comparisons += _checkpoint(folder, scale, turns)
        if "train" not in only:
            return comparisons
        generate(
            SyntheticConfig(
                num_users=int(3000 * scale), num_items=3000, mean_events_per_user=100.0, users_per_file=int(750 * scale)
            ),
            folder / "logs",
        )
        prepare(config, lambda progress: None)
        cpus = int(ray.cluster_resources()["CPU"])
        for num_workers in (1, cpus):
            settings = _config(folder, num_workers, cpus_per_worker=cpus // num_workers)
            comparisons.append(_by_workers(training.compare, (job_of(settings), turns), settings.cluster))
    return comparisons


def _config(folder: Path, num_workers: int, cpus_per_worker: int = 1, logs: str = "") -> Config:
    return check_config(
        {
            "run": {"dir": str(folder / f"run{logs}-{num_workers}"), "dataset": str(folder / f"dataset{logs}")},
            "logs": {"path": str(folder / f"logs{logs}/events-*.parquet")},
            "model": {"max_history": 200},
            "tables": {"item": {"dim": 64}},
            "cluster": {"num_workers": num_workers, "cpus_per_worker": cpus_per_worker},
        },
        "benchmark",
    )


if __name__ == "__main__":
    main()
