"""Steps of two workers with and without ids that are sent early: `python -m benchmarks.early_ids --json FILE`.

Two trainings take turns, each with two workers of one thread: one sends the ids of a batch at its look-up, the other while the
step before computes (`train.send_ids_early`). One model has a large dense part, the other a small one, of which sending ids is a
larger share. `--page FILE` writes the table into a page.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import processor_name
from benchmarks.pages import markdown, measure_or_show
from benchmarks.simulation import BATCH, PREDICTED, config_of, prepared
from benchmarks.step_times import step_seconds
from cluster.config.run_config import Config

MARK = "early ids"
WORKERS = 2
SMALL: dict[str, Any] = {
    "model": {
        "max_history": 50,
        "encoder": {"kind": "sasrec", "num_blocks": 1},
        "objective": {"kind": "sampled_softmax", "num_negatives": 256},
    },
    "tables": {"item": {"dim": 32, "sharding": "row_wise"}},
}
MODELS: dict[str, dict[str, Any]] = {"HSTU, 3 blocks of width 64": PREDICTED, "SASRec, 1 block of width 32": SMALL}


def main() -> None:
    """Measure, or write a table of stored figures into a page."""
    measure_or_show("Steps with ids that are sent early.", MARK, measure, table)


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Return the seconds of a step of each side in each turn, by model."""
    prepared(folder)
    models: dict[str, dict[str, list[float]]] = {}
    for name, model in MODELS.items():
        sides: dict[str, list[float]] = {"plain": [], "early": []}
        for _ in range(turns):
            for side, seconds in sides.items():
                seconds.append(step_seconds(_sending(config_of(folder, side, model, 2 * BATCH, WORKERS, False), side)))
        models[name] = sides
    machine = processor_name()
    return {
        "machine": machine,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "batch": 2 * BATCH,
        "models": models,
    }


def _sending(config: Config, side: str) -> Config:
    """Return the config of a side."""
    train = config.train.model_copy(update={"send_ids_early": side == "early"})
    return config.model_copy(update={"train": train})


def table(results: dict[str, Any]) -> str:
    """Return the step of each side, and the speed with early ids over that without, as median and spread of the turns."""
    header = ["model", "ids at the look-up", "ids early", "speed with early ids"]
    rows = []
    for name, sides in results["models"].items():
        ratios = [plain / early for plain, early in zip(sides["plain"], sides["early"], strict=True)]
        times = [f"{1e3 * statistics.median(sides[side]):.1f} ms" for side in ("plain", "early")]
        rows.append([name, *times, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"])
    return markdown(header, rows)


if __name__ == "__main__":
    main()
