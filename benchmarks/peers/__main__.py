"""Command of the comparison with other tools: turns of all sides, and the table and the gate of their figures."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import processor_name
from benchmarks.pages import stored_figures, with_table
from benchmarks.peers.environment import python_of_peers, run_program
from benchmarks.peers.figures import MARK, lost, table
from benchmarks.peers.questions import (
    BATCH,
    CORES,
    DROPOUT,
    LENGTH,
    PEERS_WIDTH,
    QUESTIONS,
    RUNS,
    STEPS,
    WARM_UP,
    WIDTH,
    Question,
)
from benchmarks.step_times import step_times
from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session


def main() -> None:
    """Measure, store and print; or write the table of stored figures into a page."""
    parser = argparse.ArgumentParser(description="Training speed of Shoal and of other tools.")
    parser.add_argument("--logs", help="events_3416_items.parquet of MovieLens-1M")
    parser.add_argument("--turns", type=int, default=3, help="measured turns of each side")
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--page", type=Path, help="write the table of the figures into this page; measures nothing")
    parser.add_argument(
        "--gate", type=Path, help="exit with 1 if a ratio fell by more than 15 %% from that of this file"
    )
    given = parser.parse_args()
    if given.page is not None:
        page = with_table(given.page.read_text(encoding="utf-8"), MARK, table(stored_figures(given.json)))
        given.page.write_text(page, encoding="utf-8")
        return
    if given.logs is None:
        parser.error("--logs: the file of the logs is needed to measure")
    with tempfile.TemporaryDirectory(prefix="shoal-peers-") as folder:
        results = measure(Path(folder), given.logs, given.turns)
    given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    fallen = [] if given.gate is None else lost(results, stored_figures(given.gate))
    for text in fallen:
        print(text, file=sys.stderr)
    sys.exit(1 if fallen else 0)


def measure(folder: Path, logs: str, turns: int) -> dict[str, Any]:
    """Return the histories per second of each side in each turn, by question."""
    python_of_peers()
    first = config_of(folder, logs, QUESTIONS["SASRec, full cross-entropy"], "first", 1, False)
    with ray_session(first.cluster):
        prepare(first, lambda progress: None)
    speeds: dict[str, dict[str, list[float]]] = {}
    for name, question in QUESTIONS.items():
        sides: dict[str, list[float]] = {side: [] for side in (*RUNS, *question.peers)}
        for _ in range(turns):
            for side, (workers, threads, kernels) in RUNS.items():
                sides[side].append(of_shoal(config_of(folder, logs, question, side, workers, kernels), threads))
            for side, (program, options) in question.peers.items():
                sides[side].append(of_peer(logs, program, options))
        speeds[name] = sides
    machine = processor_name()
    versions = Path(__file__).parents[2].joinpath("requirements/peers.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in versions if line.startswith(("replay-rec", "rectools", "torch=="))]
    return {"machine": machine, "load_average": os.getloadavg(), "peers": pins, "speeds": speeds}


def config_of(folder: Path, logs: str, question: Question, side: str, workers: int, kernels: bool) -> Config:
    """Return the config of a training of Shoal, in a new run folder."""
    run_dir = Path(tempfile.mkdtemp(prefix=f"{side.replace(' ', '-')}-", dir=folder))
    values = {
        "run": {"dir": str(run_dir), "dataset": str(folder / "dataset")},
        "logs": {"path": logs, "time": "position"},
        "model": {"max_history": LENGTH, "encoder": question.encoder, "objective": question.objective},
        "tables": {"item": {"dim": WIDTH}},
        "train": {
            "batch_size": BATCH,
            "max_steps": WARM_UP + STEPS + 1,
            "epochs": 100,
            "evaluate_every_epochs": 100,
            "early_stopping": None,
            "compiled_kernels": kernels,
        },
        "cluster": {"num_workers": workers},
        "plan": {"measure": False},
    }
    return check_config(values, "benchmark")


def of_shoal(config: Config, threads: int) -> float:
    """Return the histories per second of a training of Shoal after the warm-up."""
    times = step_times(config, threads)[WARM_UP:]
    return BATCH * (len(times) - 1) / (times[-1] - times[0])


def of_peer(logs: str, program: str, options: Sequence[str]) -> float:
    """Return the histories per second of a training of another tool after the warm-up."""
    sizes = {
        "steps": STEPS,
        "warm-up": WARM_UP,
        "width": PEERS_WIDTH,
        "length": LENGTH,
        "batch": BATCH,
        "dropout": DROPOUT,
    }
    arguments = [logs, *options, *(f"--{name}={value}" for name, value in sizes.items())]
    return float(run_program(program, arguments, CORES)["histories_per_second"])


if __name__ == "__main__":
    main()
