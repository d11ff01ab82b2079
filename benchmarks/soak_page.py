"""Table of the stored soak: `python -m benchmarks.soak_page` writes it into docs/reliability.md."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, with_table

RESULTS, PAGE = Path("docs/results/soak.json"), Path("docs/reliability.md")
MARK = "soak"


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(with_soak(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_soak(text: str) -> str:
    """Return the page with the table of the stored result."""
    return with_table(text, MARK, table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def table(result: dict[str, Any]) -> str:
    """Return the end of a soak, its cost, and its faults by kind."""
    happened = result["num_faults"] - len(result["not_happened"])
    kinds = Counter(fault["kind"] for fault in result["faults"])
    rows = [
        ["end", "EXACT" if result["exact"] else "; ".join(result["differences"])],
        ["faults carried out", f"{happened} of {result['num_faults']}, seed {result['seed']}"],
        ["not carried out", "; ".join(result["not_happened"]) or "-"],
        ["steps", f"{result['steps']:,}, of {1e3 * result['seconds_per_step']:.0f} ms without a fault"],
        ["commands", f"{result['commands']}"],
        ["restarts of workers without a new command", f"{result['restarts_by_itself']}"],
        ["seconds with faults", f"{result['elapsed_seconds']:,.0f}"],
        ["goodput", f"{result['goodput']:.3f}"],
        ["kinds of faults drawn", ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())],
    ]
    return markdown(["soak", "result"], rows)


if __name__ == "__main__":
    main()
