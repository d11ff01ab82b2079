"""Tables of stored runs with several seeds in docs/results.md: `python -m benchmarks.runs_page` writes them.

docs/results/RUN/config.json         of the run
docs/results/RUN/metrics.json        of the test split
docs/results/RUN/validation.jsonl    the lines of validation of its metrics.jsonl, if they were kept
docs/results/cpu_budget.json         the figures of `python -m benchmarks.cpu_budget`
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, stored_figures, with_table

FOLDER, PAGE = Path("docs/results"), Path("docs/results.md")
# By mark of the table, and by name: folders of one run with several seeds.
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "runs movielens1m": {
        "SASRec": ("movielens1m_sasrec", "movielens1m/sasrec_2", "movielens1m/sasrec_3"),
        "LiGR as published": ("movielens1m/ligr_1", "movielens1m/ligr_2", "movielens1m/ligr_3"),
        "HSTU, position bias": ("movielens1m/hstu_1", "movielens1m/hstu_2", "movielens1m/hstu_3"),
        "LiGR, entmax, position bias": ("movielens1m/best_1", "movielens1m/best_2", "movielens1m/best_3"),
    },
    "runs movielens1m times": {
        "LiGR, entmax, all events": (
            "movielens1m_times/ligr_1",
            "movielens1m_times/ligr_2",
            "movielens1m_times/ligr_3",
        ),
    },
}
HEADER = ("", "seed", "validation NDCG@10", "NDCG@10", "95 % interval", "HR@10", "MRR")


@dataclass(frozen=True)
class StoredRun:
    """The figures of a run."""

    seed: int
    validation: float | None  # NDCG@10 of the checkpoint that was tested
    ndcg: float
    interval: tuple[float, float]
    hit_rate: float
    mrr: float


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), FOLDER), encoding="utf-8")


def with_tables(text: str, folder: Path) -> str:
    """Return the page with the tables of the stored runs in a folder."""
    for mark, groups in TABLES.items():
        lines = [line for name, runs in groups.items() for line in rows(name, [read(folder / run) for run in runs])]
        text = with_table(text, mark, markdown(HEADER, lines))
    budget = folder / "cpu_budget.json"
    return with_table(text, "cpu budget", within_budget(stored_figures(budget))) if budget.is_file() else text


def read(folder: Path) -> StoredRun:
    """Return the figures of a stored run."""
    metrics = stored_figures(folder / "metrics.json")
    low, high = metrics["ci95"]["ndcg@10"]
    of_test = metrics["metrics"]
    seed = stored_figures(folder / "config.json")["run"]["seed"]
    validation = _validation(folder / "validation.jsonl", metrics["checkpoint"])
    return StoredRun(seed, validation, of_test["ndcg@10"], (low, high), of_test["hr@10"], of_test["mrr"])


def rows(name: str, runs: Sequence[StoredRun]) -> list[list[str]]:
    """Return a line for each run of a group, and one of their means and standard deviations."""
    lines = [
        [
            "" if number else name,
            str(run.seed),
            "" if run.validation is None else f"{run.validation:.4f}",
            f"{run.ndcg:.4f}",
            f"{run.interval[0]:.4f} - {run.interval[1]:.4f}",
            f"{run.hit_rate:.4f}",
            f"{run.mrr:.4f}",
        ]
        for number, run in enumerate(runs)
    ]
    if len(runs) == 1:
        return lines
    validations = [run.validation for run in runs if run.validation is not None]
    spread = [_spread(values) for values in ([run.ndcg for run in runs], [run.hit_rate for run in runs])]
    of_validation = _spread(validations) if len(validations) == len(runs) else ""
    mrr = _spread([run.mrr for run in runs])
    return [*lines, ["", "mean, standard deviation", of_validation, spread[0], "", spread[1], mrr]]


def within_budget(figures: Mapping[str, Any]) -> str:
    """Return a line for each training within a budget of processor time, and one of their means and standard deviations."""
    outcomes = figures["outcomes"]
    lines = [
        [
            str(each["seed"]),
            f"{each['steps']:,}",
            f"{each['cpu_seconds']:.0f} s",
            f"{each['metrics']['ndcg@10']:.4f}",
            f"{each['metrics']['hr@10']:.4f}",
        ]
        for each in outcomes
    ]
    header = ["seed", "steps", "processor time", f"{figures['split']} NDCG@10", "HR@10"]
    if len(outcomes) > 1:
        spread = [_spread([each["metrics"][name] for each in outcomes]) for name in ("ndcg@10", "hr@10")]
        lines.append(["mean, standard deviation", "", "", *spread])
    return markdown(header, lines)


def _validation(path: Path, checkpoint: str) -> float | None:
    """Return the NDCG@10 on the validation split at the step of a checkpoint."""
    if not path.exists():
        return None
    step = int(checkpoint.removeprefix("step_"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next(float(line["ndcg@10"]) for line in lines if line["step"] == step)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f}, {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
