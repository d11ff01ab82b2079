"""Figures of the comparison with other tools: ratios of turns, their table, and the gate on stored ratios."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import markdown
from benchmarks.peers.questions import QUESTIONS, RUNS

MARK = "peers"  # of the table in a page
MOST_LOST = 0.15  # of a stored ratio, before the gate fails


def ratios(sides: Mapping[str, Sequence[float]], ours: str) -> list[float]:
    """Return, for each turn, the speed of a run of Shoal divided by that of the fastest form of the other tool."""
    others = [speeds for side, speeds in sides.items() if side not in RUNS]
    return [own / max(of_turn) for own, *of_turn in zip(sides[ours], *others, strict=True)]


def table(results: dict[str, Any]) -> str:
    """Return the median speed of every side, and the ratios with their spread."""
    header = ["model and objective", "side", "histories/s", "of the fastest other", "goal"]
    rows = []
    for name, sides in results["speeds"].items():
        for side, speeds in sides.items():
            ratio, goal = "", ""
            if side in RUNS:
                of_turns = ratios(sides, side)
                ratio = f"{statistics.median(of_turns):.1f}x ({min(of_turns):.1f} - {max(of_turns):.1f})"
                goal = f"{QUESTIONS[name].goal:g}x"
            label = f"Shoal, {side}" if side in RUNS else side
            rows.append([name, label, f"{statistics.median(speeds):,.0f}", ratio, goal])
    return markdown(header, rows)


def lost(results: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Return a sentence for each median ratio that is more than MOST_LOST below the stored one."""
    texts = []
    for name, sides in stored["speeds"].items():
        for side in RUNS:
            before = statistics.median(ratios(sides, side))
            now = statistics.median(ratios(results["speeds"][name], side))
            if now < (1 - MOST_LOST) * before:
                texts.append(f"{name}, Shoal, {side}: {now:.2f}x of the fastest other tool; it was {before:.2f}x")
    return texts
