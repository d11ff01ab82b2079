"""Tables of measured figures in pages: each stands between two marks, and is written from a stored result."""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import processor_name

END = "<!-- end -->"


def stored_figures(path: Path) -> dict[str, Any]:
    """Return stored figures."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def stored_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stored comparisons of `python -m benchmarks` by name."""
    return {row["name"]: row for row in stored_figures(path)["rows"]}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell != '---' else cell for cell in line)}|" for line in lines)


def with_table(text: str, name: str, table: str) -> str:
    """Return a page with a table between its mark, `<!-- NAME -->`, and the end mark. Raises ValueError without the marks."""
    first = f"<!-- {name} -->\n"
    if first not in text:
        raise ValueError(f"no mark {first.strip()} in the page")
    # Blank lines around the table, or Markdown would take the mark for a row.
    between = f"{first}\n{table}\n\n{END}"
    return re.sub(f"{re.escape(first)}.*?{re.escape(END)}", lambda match: between, text, count=1, flags=re.DOTALL)


def ratio_text(row: Mapping[str, Any]) -> str:
    """Return the median and the spread of the ratios of a stored comparison."""
    return f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} - {row['ratio_max']:.2f})"


def measure_and_publish(
    description: str,
    measure: Callable[[int], dict[str, Any]],
    turns: int,
    paths: tuple[Path, Path],
    with_tables: Callable[[str, dict[str, Any]], str],
) -> None:
    """Run the command line of a benchmark of which the files are fixed: measure and store, then write the tables into the page.

    Args:
        description: of the command.
        measure: returns the figures, given the number of turns. Machine and CPUs are stored with them.
        turns: the default of that number.
        paths: the file of the figures, and the page.
        with_tables: returns the page with the tables of the figures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--turns", type=int, default=turns, help="measured turns of each side")
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    arguments = parser.parse_args()
    results, page = paths
    if not arguments.page:
        machine = {"machine": processor_name(), "cpus": os.cpu_count()}
        results.write_text(json.dumps({**machine, **measure(arguments.turns)}, indent=1) + "\n", encoding="utf-8")
    page.write_text(with_tables(page.read_text(encoding="utf-8"), stored_figures(results)), encoding="utf-8")


def measure_or_show(
    description: str,
    name: str,
    measure: Callable[[Path, int], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Run the command line of a benchmark with one table: measure and store, or write the table of stored figures into a page.

    Args:
        description: of the command.
        name: of the table's mark in the page.
        measure: returns the figures, given a temporary folder and the number of turns.
        table: returns the table of figures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each side")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--page", type=Path, help="write the table of the figures in --json into this page; measures nothing"
    )
    arguments = parser.parse_args()
    if arguments.page is not None:
        page = with_table(arguments.page.read_text(encoding="utf-8"), name, table(stored_figures(arguments.json)))
        arguments.page.write_text(page, encoding="utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        results = measure(Path(folder), arguments.turns)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
