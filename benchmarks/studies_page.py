"""Tables of stored studies in docs/results.md: `python -m benchmarks.studies_page` writes them.

docs/results/STUDY/results.json    a copy of that file of the study's folder
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, stored_figures, with_table

FOLDER, PAGE = Path("docs/results"), Path("docs/results.md")
# By name: whether all variants train the same examples, so that the work of a history compares them.
STUDIES = {"study_attention_2026": True, "study_times_movielens1m": False}


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), FOLDER), encoding="utf-8")


def with_tables(text: str, folder: Path) -> str:
    """Return the page with the tables of the stored studies in a folder."""
    for name, same_examples in STUDIES.items():
        results = stored_figures(folder / name / "results.json")
        text = with_table(text, name.replace("_", " "), table(results, same_examples))
    return text


def table(results: Mapping[str, Any], same_examples: bool = True) -> str:
    """Return a line for each variant: quality on both splits, and cost; that of a history if all train the same examples."""
    metric = str(results["metric"]).upper()
    header = [
        "variant",
        "seeds",
        f"validation {metric} +- seeds",
        "minus the first, +- users",
        f"test {metric} +- seeds",
        "training FLOPs/event",
        *(["FLOPs/history, of the first"] if same_examples else []),
    ]
    points = results["points"]
    first = _flops_per_history(points[0])
    lines = [
        [
            point["title"],
            str(len(point["seeds"])),
            _with_half(point["validation"], "over_seeds"),
            "" if point["difference"] is None else _signed(point["difference"]),
            _with_half(point["test"], "over_seeds"),
            f"{point['costs']['training_flops_per_event'] / 1e6:.2f}M",
            *([f"{_flops_per_history(point) / first:.2f}"] if same_examples else []),
        ]
        for point in points
    ]
    return markdown(header, lines)


def _flops_per_history(point: Mapping[str, Any]) -> float:
    costs = point["costs"]
    return float(costs["training_flops_per_event"] * costs["events_per_history"])


def _with_half(value: Mapping[str, Any], spread: str) -> str:
    """Return a mean, and half of its interval if there is one."""
    interval = value[spread]
    return f"{value['mean']:.4f}" + ("" if interval is None else f" +- {(interval[1] - interval[0]) / 2:.4f}")


def _signed(difference: Mapping[str, Any]) -> str:
    """Return a difference with half of its interval over users, and a star if all intervals exclude zero."""
    intervals = [each for each in (difference["over_users"], difference["over_seeds"]) if each is not None]
    star = "*" if len(intervals) == 2 and all(low > 0 or high < 0 for low, high in intervals) else ""
    low, high = difference["over_users"]
    return f"{difference['mean']:+.4f} +- {(high - low) / 2:.4f}{star}"


if __name__ == "__main__":
    main()
