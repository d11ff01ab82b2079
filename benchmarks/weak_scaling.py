"""Steps of one and of two workers with the same batch per worker: `python -m benchmarks.weak_scaling --json FILE`.

Three sides take turns, each with workers of one thread: one worker alone; two trainings of one worker each, at the same time, that
share only the machine; two workers of one training with twice the batch. The second is what the machine allows: two cores
share caches, memory and clock. `--page FILE` writes the table into a page.
"""

import os
import platform
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, measure_or_show
from benchmarks.simulation import BATCH, MEAN_EVENTS, NUM_ITEMS, NUM_USERS, PREDICTED, config_of
from benchmarks.step_times import step_seconds
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session
from trainer.data.synthetic.log import generate
from trainer.data.synthetic.world import SyntheticConfig

MARK = "weak scaling"
SASREC: dict[str, Any] = {
    "model": {
        "max_history": 200,
        "encoder": {"kind": "sasrec", "num_blocks": 2},
        "objective": {"kind": "full_softmax"},
    },
    "tables": {"item": {"dim": 64, "sharding": "data_parallel"}},
}
# By name: the model, and whether a batch is a number of events, with its histories dealt by length.
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "HSTU, 256 negatives": (PREDICTED, False),
    "HSTU, 256 negatives, dealt by length": (PREDICTED, True),
    "SASRec, full softmax": (SASREC, False),
    "SASRec, full softmax, dealt by length": (SASREC, True),
}


def main() -> None:
    """Measure, or write a table of stored figures into a page."""
    measure_or_show("Weak scaling from one worker to two.", MARK, measure, table)


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Return the seconds of a step of each side in each turn, by model."""
    logs = SyntheticConfig(
        num_users=NUM_USERS, num_items=NUM_ITEMS, mean_events_per_user=MEAN_EVENTS, users_per_file=1000
    )
    generate(logs, folder / "logs")
    first = config_of(folder, "first", PREDICTED, BATCH, 1)
    with ray_session(first.cluster):
        prepare(first, lambda progress: None)
    models: dict[str, dict[str, list[float]]] = {}
    for name, (model, by_events) in MODELS.items():
        sides: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
        for _ in range(turns):
            sides["alone"].append(step_seconds(config_of(folder, "alone", model, BATCH, 1, False, by_events)))
            sides["apart"].append(_apart(folder, model, by_events))
            sides["together"].append(step_seconds(config_of(folder, "together", model, 2 * BATCH, 2, False, by_events)))
        models[name] = sides
    machine = platform.processor() or platform.machine()
    return {
        "machine": machine,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "batch": BATCH,
        "models": models,
    }


def _apart(folder: Path, model: dict[str, Any], by_events: bool) -> float:
    """Return the mean over two trainings at the same time of the seconds of a step."""
    configs = [config_of(folder, f"apart-{number}", model, BATCH, 1, False, by_events) for number in range(2)]
    with ThreadPoolExecutor(2) as threads:
        return statistics.mean(threads.map(step_seconds, configs))


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
