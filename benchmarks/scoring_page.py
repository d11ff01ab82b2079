"""Tables of stored figures of encoding and ranking: `python -m benchmarks.scoring_page` writes them into docs/results.md."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.evaluating import CATALOGUES
from benchmarks.pages import markdown, ratio_text, stored_rows, with_table
from benchmarks.scoring import OPERATIONS, OTHER

RESULTS, PAGE = Path("docs/results/benchmark_score.json"), Path("docs/results.md")


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), stored_rows(RESULTS)), encoding="utf-8")


def with_tables(text: str, rows: dict[str, dict[str, Any]]) -> str:
    """Return the page with both tables; without shares if they are not among the figures."""
    text = with_table(text, "score", speeds(rows))
    return with_table(text, "score shares", shares(rows)) if f"encode, {OTHER}, one thread" in rows else text


def speeds(rows: dict[str, dict[str, Any]]) -> str:
    """Return the speed of both parts and of their sum, compared with the ceiling."""
    header = [
        "items",
        "encode, ratio",
        "rank, ratio",
        "encode and rank, users/s",
        "ceiling, users/s",
        "ratio: median (spread)",
    ]
    lines = []
    for num_items in CATALOGUES:
        encode, rank, both = (
            rows[f"{part}, {num_items:,} items, one thread"] for part in ("encode", "rank", "encode and rank")
        )
        lines.append(
            [
                f"{num_items:,}",
                f"{encode['ratio_median']:.2f}",
                f"{rank['ratio_median']:.2f}",
                f"{statistics.median(both['ours']):,.0f}",
                f"{statistics.median(both['ceiling']):,.0f}",
                ratio_text(both),
            ]
        )
    return markdown(header, lines)


def shares(rows: dict[str, dict[str, Any]]) -> str:
    """Return the share of each kind of operation in the time of encoding."""
    lines = []
    for kind in (*OPERATIONS, OTHER):
        row = rows[f"encode, {kind}, one thread"]
        lines.append(
            [kind, f"{statistics.median(row['ours']):.0f} % ({min(row['ours']):.0f} - {max(row['ours']):.0f})"]
        )
    return markdown(["operation", "share of the time: median (spread)"], lines)


if __name__ == "__main__":
    main()
