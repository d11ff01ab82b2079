"""Tables of stored figures of the compiled kernels: `python -m benchmarks.kernels_page` writes them into docs/objectives.md.

The figures are those of `python -m benchmarks.softmax` and `python -m benchmarks --only peak --json
docs/results/benchmark_peak.json`.
"""

import statistics
from pathlib import Path
from typing import Any

from benchmarks import softmax
from benchmarks.pages import markdown, ratio_text, stored_figures, with_table

PEAK, PAGE = Path("docs/results/benchmark_peak.json"), Path("docs/objectives.md")


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    text = with_table(text, "softmax", softmax_table(stored_figures(softmax.RESULTS)["rows"]))
    PAGE.write_text(with_table(text, "peak", peak_table(stored_figures(PEAK)["rows"])), encoding="utf-8")


def softmax_table(rows: list[dict[str, Any]]) -> str:
    """Return the forms of the cross-entropy as a table."""
    header = [
        "targets x items x width",
        "precision",
        "form",
        "targets/s",
        "speed: median (spread)",
        "peak memory",
        "errors",
    ]
    lines = []
    for row in rows:
        speeds = sorted(row["ours"])
        errors = " / ".join(f"{row[f'{part}_error']:.0e}" for part in ("value", "user", "item"))
        ratio = ratio_text(row)
        lines.append(
            [
                " x ".join(f"{size:,}" for size in row["shape"]),
                row["precision"],
                row["form"],
                f"{speeds[len(speeds) // 2]:,.0f}",
                "1" if row["form"] == softmax.OURS else ratio,
                f"{row['ours_peak_bytes'] / 1e6:,.0f} MB",
                errors,
            ]
        )
    return markdown(header, lines)


def peak_table(rows: list[dict[str, Any]]) -> str:
    """Return the shares of the peak of matrix products, each step without and with kernels, and their ratio."""
    header = ["step", "torch: GFLOP/s", "share of the peak", "compiled: GFLOP/s", "share of the peak", "peak, GFLOP/s"]
    by_name = {row["name"]: row for row in rows}
    lines = []
    for name, row in by_name.items():
        if (compiled := by_name.get(f"{name}, compiled")) is None:
            continue
        peak = statistics.median([*row["ceiling"], *compiled["ceiling"]])
        lines.append([name.removeprefix("SASRec step, "), *_speed(row), *_speed(compiled), f"{peak:,.0f}"])
    return markdown(header, lines)


def _speed(row: dict[str, Any]) -> tuple[str, str]:
    share = ratio_text(row)
    return f"{statistics.median(row['ours']):,.0f}", share


if __name__ == "__main__":
    main()
