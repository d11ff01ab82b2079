"""Tables of stored figures of `python -m benchmarks`: this command writes them into docs/results.md.

docs/results/benchmark_NAME.json    python -m benchmarks --only NAME --json FILE, for prepare, lookup and evaluate
docs/results/benchmark.json         the same for train
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, ratio_text, stored_figures, with_table

FOLDER, PAGE = Path("docs/results"), Path("docs/results.md")
GIGA = 1e9

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), FOLDER), encoding="utf-8")


def with_tables(text: str, folder: Path) -> str:
    """Return the page with the tables of the figures in a folder."""
    for mark, file, table in (
        ("prepare", "benchmark_prepare.json", preparation),
        ("train", "benchmark.json", training),
        ("evaluate", "benchmark_evaluate.json", evaluations),
        ("lookup", "benchmark_lookup.json", look_ups),
    ):
        text = with_table(text, mark, table(stored_figures(folder / file)["rows"]))
    return text


def preparation(rows: Rows) -> str:
    """Return the speed and memory of prepare, compared with each other program."""
    header = [
        "compared with",
        "Shoal (median)",
        "other (median)",
        "ratio: median (spread)",
        "peak memory: Shoal / other",
    ]
    lines = [
        [
            row["ceiling_name"],
            f"{_median(row, 'ours') / 1e6:.1f} M events/s",
            f"{_median(row, 'ceiling') / 1e6:.1f} M events/s",
            ratio_text(row),
            f"{row['ours_peak_bytes'] / GIGA:.1f} / {row['ceiling_peak_bytes'] / GIGA:.1f} GB",
        ]
        for row in rows
        if row["name"] == "prepare"
    ]
    return markdown(header, lines)


def training(rows: Rows) -> str:
    """Return the speed of the whole loop, compared with a bare one."""
    return _speeds((row for row in rows if row["name"].startswith("train")), "events/s")


def evaluations(rows: Rows) -> str:
    """Return the speed of whole evaluations, compared with their ceiling."""
    return _speeds((row for row in rows if row["name"].startswith("evaluate")), "users/s")


def _speeds(rows: Iterable[Mapping[str, Any]], unit: str) -> str:
    header = [
        "what",
        f"Shoal, {unit} (median)",
        f"ceiling, {unit} (median)",
        "ratio: median (spread)",
        "the ceiling is",
    ]
    lines = [
        [
            row["name"],
            f"{_median(row, 'ours'):,.0f}",
            f"{_median(row, 'ceiling'):,.0f}",
            ratio_text(row),
            row["ceiling_name"],
        ]
        for row in rows
    ]
    return markdown(header, lines)


def look_ups(rows: Rows) -> str:
    """Return the rows per second of look-ups, compared with tables of fbgemm and of torch."""
    pairs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["name"].startswith("look up"):
            pairs.setdefault(row["name"], {})["torch" if "torch" in row["ceiling_name"] else "fbgemm"] = row
    header = ["workers", "rows, ids", "", "Shoal", "fbgemm", "ratio", "torch", "ratio"]
    lines = []
    for name, of_name in pairs.items():
        match = re.fullmatch(r"(look up(?: and update)?), ([\d,]+) rows, (\w+), (\d+) workers", name)
        assert match is not None, name
        what, num_rows, ids, workers = match.groups()
        bare, others = of_name["fbgemm"], of_name["torch"]
        exponent = len(num_rows.replace(",", "")) - 1
        lines.append(
            [
                *(workers, f"10^{exponent}, {ids}", what),
                *(_millions(bare, "ours"), _millions(bare, "ceiling"), ratio_text(bare)),
                *(_millions(others, "ceiling"), ratio_text(others)),
            ]
        )
    return markdown(header, lines)


def _median(row: Mapping[str, Any], side: str) -> float:
    return float(statistics.median(row[side]))


def _millions(row: Mapping[str, Any], side: str) -> str:
    return f"{_median(row, side) / 1e6:.2g}"


if __name__ == "__main__":
    main()
