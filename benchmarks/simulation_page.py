"""Tables of predicted steps: `python -m benchmarks.simulation_page` writes them from stored results into docs/sharding.md."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, stored_figures, with_table
from sharding.planning.units import bytes_text, count_text, seconds_text

VALIDATION = Path("docs/results/simulation.json")
SCALING = Path("docs/results/scaling_hstu/simulation.json")
BY_BUDGET = Path("docs/results/scaling_hstu_budget/simulation.json")
PAGE = Path("docs/sharding.md")


def main() -> None:
    """Write the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    text = with_table(text, "simulation", compared(stored_figures(VALIDATION)))
    text = with_table(text, "scaling", scaling(stored_figures(SCALING)))
    text = with_table(text, "scaling by budget", by_budget(stored_figures(BY_BUDGET)))
    PAGE.write_text(text, encoding="utf-8")


def compared(values: dict[str, Any]) -> str:
    """Return measured times of a step, the errors of their prediction, and the load of the machine."""
    header = ["scaling", "workers", "batch", "measured: median (spread)", "error of the prediction: median (spread)"]
    lines = []
    for step in values["steps"]:
        measured = step["measured_seconds"]
        errors = step["errors"]
        lines.append(
            [
                step["scaling"],
                f"{step['workers']}",
                f"{step['batch']}",
                f"{seconds_text(statistics.median(measured))} ({seconds_text(min(measured))} - {seconds_text(max(measured))})",
                f"{statistics.median(errors):+.0%} ({min(errors):+.0%} - {max(errors):+.0%})",
            ]
        )
    load = values["load_average"][2]
    return (
        f"{markdown(header, lines)}\n\nLoad average of the {values['cores']} cores during the measurement: {load:.0f}."
    )


def scaling(values: dict[str, Any]) -> str:
    """Return the speed and the cost of failures of a simulation by workers."""
    header = ["GPUs", "step", "straggler", "exchange", "events/s", "efficiency", "checkpoint interval", "goodput"]
    lines = [
        [
            f"{point['workers']:,}",
            seconds_text(point["step_seconds"]),
            seconds_text(point["parts"]["straggler"]),
            seconds_text(point["parts"]["exchange"]),
            count_text(point["events_per_second"]),
            f"{point['efficiency']:.1%}",
            seconds_text(point["failures"]["interval_seconds"]),
            f"{point['failures']['goodput']:.2%}",
        ]
        for point in values["points"]
    ]
    return markdown(header, lines)


def by_budget(values: dict[str, Any]) -> str:
    """Return the parts of a step that a budget of events changes."""
    header = ["GPUs", "step", "straggler", "exchange", "read by all", "efficiency"]
    lines = [
        [
            f"{point['workers']:,}",
            seconds_text(point["step_seconds"]),
            seconds_text(point["parts"]["straggler"]),
            seconds_text(point["parts"]["exchange"]),
            f"{bytes_text(point['read_bytes_per_second'])}/s",
            f"{point['efficiency']:.1%}",
        ]
        for point in values["points"]
    ]
    return markdown(header, lines)


if __name__ == "__main__":
    main()
