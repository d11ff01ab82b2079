"""Notes of the workers for the driver about baselines: names, descriptions, reasons for leaving others out, times. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "baselines.json"  # among the workers' partial results


@dataclass(frozen=True)
class BaselineNotes:
    """Notes of the first worker."""

    used: dict[str, str] = field(default_factory=dict)
    """By name, what the baseline recommends, in one sentence."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By name, the reason why the baseline does not fit."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Times: "model", "counting" of all baselines together, and the ranking of each baseline by name."""

    def write(self, folder: Path) -> None:
        """Write the notes among the partial results."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_notes(folder: Path) -> BaselineNotes:
    """Return what BaselineNotes.write wrote; no notes for partial results without the file."""
    path = folder / FILE
    return BaselineNotes(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else BaselineNotes()


def strongest_baseline(baselines: Mapping[str, Mapping[str, float | None]], metric: str) -> str | None:
    """Return the name of the baseline with the largest value of a metric, the first of equal ones; None without baselines."""
    values = {name: metrics.get(metric) for name, metrics in baselines.items()}
    known = {name: value for name, value in values.items() if value is not None}
    return max(known, key=lambda name: known[name], default=None)
