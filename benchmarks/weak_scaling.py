"""Steps of one and of two workers with the same batch per worker: `python -m benchmarks.weak_scaling --json FILE`.

Three sides take turns, each with workers of one thread: one worker alone; two trainings of one worker each, at the same time, that
share only the machine; two workers of one training with twice the batch. The second is what the machine allows: two cores
share caches, memory and clock. `--page FILE` writes the table into a page.
"""

import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import processor_name
from benchmarks.pages import markdown, measure_or_show
from benchmarks.simulation import BATCH, PREDICTED, config_of, prepared
from benchmarks.step_times import step_seconds

MARK = "weak scaling"
SASREC: dict[str, Any] = {
    "model": {
        "max_history": 200,
        "encoder": {"kind": "sasrec", "num_blocks": 2},
        "objective": {"kind": "full_softmax"},
    },
    "tables": {"item": {"dim": 64, "sharding": "data_parallel"}},
}


@dataclass(frozen=True)
class _Case:
    """A training to compare."""

    name: str
    model: dict[str, Any]
    batch: int = BATCH  # histories of each worker, on average
    by_events: bool = False  # a batch is a number of events, and its histories are dealt by length


CASES = (
    _Case(f"HSTU, 256 negatives, {BATCH} histories", PREDICTED),
    _Case(f"HSTU, 256 negatives, {BATCH} histories, dealt by length", PREDICTED, by_events=True),
    _Case(f"HSTU, 256 negatives, {4 * BATCH} histories, dealt by length", PREDICTED, 4 * BATCH, by_events=True),
    _Case(f"SASRec, full softmax, {BATCH} histories", SASREC),
    _Case(f"SASRec, full softmax, {BATCH} histories, dealt by length", SASREC, by_events=True),
    _Case(f"SASRec, full softmax, {4 * BATCH} histories, dealt by length", SASREC, 4 * BATCH, by_events=True),
)


def main() -> None:
    """Measure, or write a table of stored figures into a page."""
    measure_or_show("Weak scaling from one worker to two.", MARK, measure, table)


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Return the seconds of a step of each side in each turn, by model."""
    prepared(folder)
    models: dict[str, dict[str, list[float]]] = {}
    for case in CASES:
        sides: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
        for _ in range(turns):
            sides["alone"].append(_seconds(folder, "alone", case, 1))
            sides["apart"].append(_apart(folder, case))
            sides["together"].append(_seconds(folder, "together", case, 2))
        models[case.name] = sides
    machine = processor_name()
    return {
        "machine": machine,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "models": models,
    }


def _seconds(folder: Path, side: str, case: _Case, workers: int) -> float:
    """Return the seconds of a step of a training."""
    return step_seconds(
        config_of(
            folder, side, case.model, workers * case.batch, workers, measures_tables=False, by_events=case.by_events
        )
    )


def _apart(folder: Path, case: _Case) -> float:
    """Return the mean over two trainings at the same time of the seconds of a step."""
    with ThreadPoolExecutor(2) as threads:
        return statistics.mean(threads.map(lambda number: _seconds(folder, f"apart-{number}", case, 1), range(2)))


def table(results: dict[str, Any]) -> str:
    """Return the step of each side, and how many times the speed of one worker two reach, and of what the machine allows."""
    header = [
        "model",
        "one worker",
        "two apart",
        "two together",
        "together, of twice one",
        "apart, of twice one",
        "together, of apart",
    ]
    rows = []
    for name, sides in results["models"].items():
        alone, apart, together = sides["alone"], sides["apart"], sides["together"]
        rows.append(
            [
                name,
                *(f"{1e3 * statistics.median(side):.1f} ms" for side in (alone, apart, together)),
                _share(alone, together),
                _share(alone, apart),
                _share(apart, together),
            ]
        )
    return markdown(header, rows)


def _share(fewer: Sequence[float], more: Sequence[float]) -> str:
    """Return the median and spread of the ratios of the turns."""
    ratios = [a / b for a, b in zip(fewer, more, strict=True)]
    return f"{statistics.median(ratios):.0%} ({min(ratios):.0%} - {max(ratios):.0%})"


if __name__ == "__main__":
    main()
