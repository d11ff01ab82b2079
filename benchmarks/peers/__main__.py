"""Command of the comparison with other tools: turns, table, gate."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, with_table
from benchmarks.peers.environment import python_of_peers, run_program
from benchmarks.step_times import step_times
from cluster.config.run_config import Config, check_config
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session

MARK = "peers"
CORES = 2
BATCH, LENGTH, DROPOUT = 128, 200, 0.2
WIDTH, PEERS_WIDTH = 52, 50  # rows of a table of fbgemm have a multiple of four numbers
STEPS, WARM_UP = 24, 6
MOST_LOST = 0.15  # of a stored ratio, before the gate fails
RUNS = {"2 workers": (2, 1, False), "1 worker of 2 threads": (1, 2, False), "2 workers, compiled kernels": (2, 1, True)}
"""Shoal's runs by name: workers, threads of each, compiled kernels."""


@dataclass(frozen=True)
class Question:
    """A model and objective that Shoal and another tool train."""

    encoder: Mapping[str, Any]
    """Settings of Shoal's encoder."""
    objective: Mapping[str, Any]
    """Settings of Shoal's objective."""
    peers: Mapping[str, tuple[str, tuple[str, ...]]]
    """Programs and arguments of the other tools, by name."""
    goal: float
    """The ratio to reach: Shoal's two workers, compared with the fastest form of the other tool."""


SASREC = {"kind": "sasrec", "num_blocks": 2, "feed_forward_multiple": 1, "dropout": DROPOUT}
HSTU = {"kind": "hstu", "num_blocks": 2, "dropout": DROPOUT, "attention": {"num_heads": 1, "bias": "position"}}
NEGATIVES = {"kind": "sampled_softmax", "num_negatives": 128}
QUESTIONS = {
    "SASRec, 128 shared negatives": Question(
        {**SASREC, "attention": {"num_heads": 1}},
        NEGATIVES,
        {
            "RePlay": ("replay_sasrec", ("--negatives", "128")),
            "RePlay, length buckets": ("replay_sasrec", ("--negatives", "128", "--buckets")),
        },
        5.0,
    ),
    "SASRec, full cross-entropy": Question(
        {**SASREC, "attention": {"num_heads": 1}},
        {"kind": "full_softmax"},
        {
            "RePlay": ("replay_sasrec", ("--negatives", "0")),
            "RePlay, length buckets": ("replay_sasrec", ("--negatives", "0", "--buckets")),
        },
        5.0,
    ),
    "HSTU, 128 negatives": Question(HSTU, NEGATIVES, {"RecTools": ("rectools_hstu", ("--negatives", "128"))}, 12.0),
}


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
        page = with_table(given.page.read_text(encoding="utf-8"), MARK, table(read(given.json)))
        given.page.write_text(page, encoding="utf-8")
        return
    if given.logs is None:
        parser.error("--logs: the file of the logs is needed to measure")
    with tempfile.TemporaryDirectory(prefix="shoal-peers-") as folder:
        results = measure(Path(folder), given.logs, given.turns)
    given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    fallen = [] if given.gate is None else lost(results, read(given.gate))
    for text in fallen:
        print(text, file=sys.stderr)
    sys.exit(1 if fallen else 0)


def read(path: Path) -> dict[str, Any]:
    """Return stored figures."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


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
    machine = platform.processor() or platform.machine()
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


def ratios(sides: Mapping[str, Sequence[float]], ours: str) -> list[float]:
    """Return, for each turn, the speed of a run of Shoal divided by that of the fastest form of the other tool."""
    others = [speeds for side, speeds in sides.items() if side not in RUNS]
    return [own / max(of_turn) for own, *of_turn in zip(sides[ours], *others, strict=True)]


def table(results: dict[str, Any]) -> str:
    """Return the median speed of every side, and the ratios with their spread."""
    header = ["model and objective", "side", "histories/s", "of the fastest other", "goal"]
    rows = []
    for name, sides in results["speeds"].items():
        for side, speeds in sides.items():
            ratio, goal = "", ""
            if side in RUNS:
                of_turns = ratios(sides, side)
                ratio = f"{statistics.median(of_turns):.1f}x ({min(of_turns):.1f} - {max(of_turns):.1f})"
                goal = f"{QUESTIONS[name].goal:g}x"
            label = f"Shoal, {side}" if side in RUNS else side
            rows.append([name, label, f"{statistics.median(speeds):,.0f}", ratio, goal])
    return markdown(header, rows)


def lost(results: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Return a sentence for each median ratio that is more than MOST_LOST below the stored one."""
    texts = []
    for name, sides in stored["speeds"].items():
        for side in RUNS:
            before = statistics.median(ratios(sides, side))
            now = statistics.median(ratios(results["speeds"][name], side))
            if now < (1 - MOST_LOST) * before:
                texts.append(f"{name}, Shoal, {side}: {now:.2f}x of the fastest other tool; it was {before:.2f}x")
    return texts


if __name__ == "__main__":
    main()
