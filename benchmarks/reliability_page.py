"""Tables of stored checkpoints, soak, recovery and nodes: `python -m benchmarks.reliability_page` writes them into the docs.

`--recovery RUN --machine TEXT` first stores the restarts of a run folder of `tests/end_to_end/test_recovery.py`, and `--nodes RUN`
those of `tests/end_to_end/test_nodes.py`.
"""

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, ratio_text, stored_figures, with_table

SOAK, RECOVERY = Path("docs/results/soak.json"), Path("docs/results/recovery.json")
CHECKPOINTS, NODES = Path("docs/results/benchmark_checkpoint.json"), Path("docs/results/nodes.json")
PAGE, PAGE_OF_RESULTS = Path("docs/reliability.md"), Path("docs/results.md")
ACTIONS = {"kill": "SIGKILL", "stop": "SIGSTOP", "exception": "exception"}
EVENTS = {
    "preemption": "node taken back, 2 workers to 1",
    "resize": "node added, 1 worker to 2",
    "failure": "node lost, 2 workers to 1",
}
# Columns of the table of recovery, and the parts that each one adds up.
PARTS = {
    "detection": ("detection",),
    "end of the group": ("end of the group",),
    "start of workers": ("start of workers",),
    "imports": ("imports",),
    "waiting for the other rank": ("agreement",),
    "checkpoint, plan, data, first step": (
        "verification of the checkpoint",
        "model and tables",
        "loading of the checkpoint",
        "data",
        "first step",
    ),
}


def main() -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(description="Tables of soak and recovery.")
    parser.add_argument(
        "--recovery", type=Path, help="store the restarts of this run folder, with faults.json in the folder above it"
    )
    parser.add_argument("--nodes", type=Path, help="store the restarts of this run folder, of lost and added nodes")
    parser.add_argument("--machine", default="", help="the machine of these restarts, and its load")
    arguments = parser.parse_args()
    if arguments.recovery is not None:
        store_recovery(arguments.recovery, arguments.machine)
    if arguments.nodes is not None:
        store_nodes(arguments.nodes, arguments.machine)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE_OF_RESULTS.write_text(with_checkpoints(PAGE_OF_RESULTS.read_text(encoding="utf-8")), encoding="utf-8")


def store_recovery(run: Path, machine: str) -> None:
    """Store the restarts of a run, each with its fault. The test has compared the end of the run with an undisturbed one."""
    faults = json.loads((run.parent / "faults.json").read_text(encoding="utf-8"))
    restarts = [json.loads(line) for line in (run / "restarts.jsonl").read_text(encoding="utf-8").splitlines()]
    known = ("seconds", "parts", "steps", "rows")
    rows = [
        {**fault, **{name: restart[name] for name in known}} for fault, restart in zip(faults, restarts, strict=True)
    ]
    values = {
        "test": "tests/end_to_end/test_recovery.py, two workers",
        "exact": True,
        "machine": machine,
        "restarts": rows,
    }
    RECOVERY.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def store_nodes(run: Path, machine: str) -> None:
    """Store the restarts of a run with lost and added nodes."""
    restarts = [json.loads(line) for line in (run / "restarts.jsonl").read_text(encoding="utf-8").splitlines()]
    known = ("cause", "seconds", "parts", "steps", "rows", "text")
    rows = [{name: restart[name] for name in known} for restart in restarts]
    test = "tests/end_to_end/test_nodes.py: two nodes, one drained, one added, one lost; one worker on each"
    values = {"test": test, "machine": machine, "restarts": rows}
    NODES.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def with_tables(text: str) -> str:
    """Return the page with the tables of the stored results."""
    text = with_table(text, "soak", soak(stored_figures(SOAK)))
    text = with_table(text, "recovery", recovery(stored_figures(RECOVERY)))
    return with_table(text, "nodes", nodes(stored_figures(NODES)))


def with_checkpoints(text: str) -> str:
    """Return the page of results with the table of the stored speed of checkpoints."""
    return with_table(text, "checkpoint", checkpoints(stored_figures(CHECKPOINTS)))


def checkpoints(result: dict[str, Any]) -> str:
    """Return the speed of checkpoints compared with bare files, and the share of training time that they stall."""
    lines = []
    for row in result["rows"]:
        ours, other = (f"{statistics.median(row[side]):,.1f} {row['unit']}" for side in ("ours", "ceiling"))
        ratio = ratio_text(row)
        lines.append([row["name"].removeprefix("checkpoint, "), ours, other, row["ceiling_name"], ratio])
    return markdown(["", "Shoal", "other side", "which is", "ratio"], lines)


def recovery(result: dict[str, Any]) -> str:
    """Return the seconds from each fault to training again by part, and their medians."""
    lines = [
        [f"{ACTIONS[one['action']]}: {one['point']}, step {one['step']}", *_seconds(one), f"{one['rows']}"]
        for one in result["restarts"]
    ]
    columns = zip(*(map(float, line[1:]) for line in lines), strict=True)
    medians = [f"{statistics.median(column):.1f}" for column in columns]
    return markdown(["fault", "seconds to training again", *PARTS, "rows again"], [*lines, ["median", *medians]])


def nodes(result: dict[str, Any]) -> str:
    """Return the seconds from each event of a node to training again, by part."""
    lines = [[EVENTS[one["cause"]], *_seconds(one), f"{one['rows']}"] for one in result["restarts"]]
    return markdown(["event", "seconds to training again", *PARTS, "rows again"], lines)


def _seconds(restart: dict[str, Any]) -> list[str]:
    """Return the whole and each part."""
    parts = [sum(restart["parts"].get(name, 0.0) for name in names) for names in PARTS.values()]
    return [f"{value:.1f}" for value in (restart["seconds"], *parts)]


def soak(result: dict[str, Any]) -> str:
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
