"""The goals of speed in one table: `python -m benchmarks.goals_page` writes it into docs/results.md, from stored figures only.

Each line states the file of its figures; the commands are on the same page.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, stored_figures, stored_rows, with_table
from benchmarks.peers.figures import ratios
from benchmarks.peers.questions import QUESTIONS

RESULTS, PAGE, MARK = Path("docs/results"), Path("docs/results.md"), "goals"
OURS = "2 workers, compiled kernels"


@dataclass(frozen=True)
class Goal:
    """A goal with the figure of each turn; without any, it was not measured."""

    question: str
    file: str
    turns: Sequence[float]
    least: float
    """The goal: the median must reach it."""
    digits: int = 2
    """Shown after the point."""

    def cells(self) -> list[str]:
        """Return the cells of its line."""
        if not self.turns:
            return [self.question, f"{self.least:g}", "not measured", "", ""]
        median = statistics.median(self.turns)
        low, middle, high = (f"{value:.{self.digits}f}" for value in (min(self.turns), median, max(self.turns)))
        figure = f"{middle} ({low} - {high})"
        reached = "reached" if median >= self.least else "missed"
        return [self.question, f"{self.least:g}", figure, reached, f"[{self.file}](results/{self.file})"]


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table()), encoding="utf-8")


def table() -> str:
    """Return all goals with their figures."""
    header = ["question", "goal: at least", "median (spread)", "", "figures"]
    return markdown(header, [goal.cells() for goal in (*_peers(), *_quality(), *_machine(), *_system())])


def _peers() -> list[Goal]:
    file = "benchmark_peers.json"
    speeds = stored_figures(RESULTS / file)["speeds"] if (RESULTS / file).is_file() else {}
    goals = [
        Goal(
            f"{name}: two workers with kernels, times the fastest other tool",
            file,
            ratios(speeds[name], OURS) if name in speeds else [],
            question.goal,
        )
        for name, question in QUESTIONS.items()
    ]
    name = "DIN with Dice, 20 impressions a user"
    return [
        *goals,
        Goal(
            f"{name}: step, times DeepCTR-Torch's", "benchmark_ranking.json", _of("benchmark_ranking.json", name), 3.0
        ),
    ]


def _quality() -> list[Goal]:
    """Return the goals of quality, with a figure for each seed."""
    budget = "cpu_budget.json"
    outcomes = stored_figures(RESULTS / budget)["outcomes"] if (RESULTS / budget).is_file() else []
    within = [outcome["metrics"]["ndcg@10"] for outcome in outcomes]
    folder = "movielens1m_times"
    runs = sorted((RESULTS / folder).glob("ligr_*/metrics.json"))
    timed = [stored_figures(path)["metrics"]["ndcg@10"] for path in runs]
    return [
        Goal("MovieLens-1M: NDCG@10 after 600 seconds of one processor", budget, within, 0.175, 4),
        Goal("MovieLens-1M with times: NDCG@10", folder, timed, 0.23, 4),
    ]


def _machine() -> list[Goal]:
    file = "benchmark_peak.json"
    names = {
        precision: f"SASRec step, width 64, full softmax, {precision}, compiled"
        for precision in ("float32", "bfloat16")
    }
    rows = {precision: _row(file, name) for precision, name in names.items()}
    gains = [half / full for half, full in zip(rows["bfloat16"]["ours"], rows["float32"]["ours"], strict=True)]
    score, whole = "benchmark_score.json", "benchmark_evaluate.json"
    return [
        Goal("SASRec step with kernels, of the matmul peak, float32", file, _of(file, names["float32"]), 0.6),
        Goal("SASRec step with kernels, of the matmul peak, bfloat16", file, _of(file, names["bfloat16"]), 0.4),
        Goal("bfloat16, times float32, with kernels", file, gains, 1.3),
        *(
            Goal(
                f"encoding and ranking among {items:,} items, of forward at peak, product and top-k",
                score,
                _of(score, f"encode and rank, {items:,} items, one thread"),
                0.7,
            )
            for items in (10_000, 100_000, 1_000_000)
        ),
        *(
            Goal(
                f"evaluation among {items:,} items by 2 workers{kernels}, from files to metrics, of the same",
                whole,
                _of(whole, f"evaluate {items:,} items, 2 workers{kernels}"),
                0.7,
            )
            for items in (10_000, 100_000, 1_000_000)
            for kernels in ("", ", compiled kernels")
        ),
    ]


def _system() -> list[Goal]:
    checkpoint = "benchmark_checkpoint.json"
    goals = [
        Goal(
            f"checkpoint, {kind}, {workers}, of bare files",
            checkpoint,
            _of(checkpoint, f"checkpoint, {kind}, {workers}"),
            0.7,
        )
        for kind in ("write", "restore")
        for workers in ("1 worker", "2 workers")
    ]
    loop = [
        Goal(
            f"whole loop, {workers}, of a bare loop", "benchmark.json", _of("benchmark.json", f"train, {workers}"), 0.95
        )
        for workers in ("1 worker", "2 workers")
    ]
    scaling = [
        Goal(
            f"{name}: weak scaling from one worker to two",
            "weak_scaling.json",
            [alone / together for alone, together in zip(sides["alone"], sides["together"], strict=True)],
            0.9,
        )
        for name, sides in stored_figures(RESULTS / "weak_scaling.json")["models"].items()
    ]
    return [*loop, *goals, *scaling]


def _of(file: str, name: str) -> list[float]:
    """Return the ratios of the turns of a stored comparison."""
    row = _row(file, name)
    return [ours / other for ours, other in zip(row["ours"], row["ceiling"], strict=True)]


def _row(file: str, name: str) -> dict[str, Any]:
    return stored_rows(RESULTS / file)[name]


if __name__ == "__main__":
    main()
