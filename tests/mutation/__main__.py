"""`make mutate`: plant small faults one at a time, run the nearest tests, and report the faults that no test finds.

Ends with 1 if a fault survives without an explanation, no longer fits the sources, or could not be judged.
"""

import argparse
import json
import queue
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutation.faults import Fault, read_faults
from tests.mutation.trial import Copy, Result, copy_tree, try_fault

ROOT = Path(__file__).resolve().parents[2]
BASELINE_DEADLINE = 3600.0  # seconds for all tests together, without a fault


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the chosen faults. Returns the exit code."""
    options = _parser().parse_args(arguments)
    faults = chosen(read_faults(), options.only)
    console = Console(stderr=True)
    if not faults:
        console.print(f"no fault matches {options.only!r}")
        return 1
    with tempfile.TemporaryDirectory(prefix="shoal-mutate-") as folder:
        copies = [
            copy_tree(ROOT, Path(folder) / f"copy-{number}", Path(options.shared_data).resolve())
            for number in range(options.jobs)
        ]
        if not options.skip_baseline and not _passes_without_fault(faults, copies[0], console):
            return 1
        results = _try_all(faults, copies, options.deadline, console)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    Console(width=160).print(table_of(results))
    print(f"results: {out}")
    return int(any(result.is_failure for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="faults with a matching name or file, as in '*seed*'"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of faults tried at a time")
    parser.add_argument("--deadline", type=float, default=300.0, metavar="SECONDS", help="for the tests of one fault")
    parser.add_argument("--shared-data", default=ROOT.parent / "shared/data", help="folder of real logs")
    parser.add_argument("--out", default=ROOT / "build/mutation.json", metavar="FILE", help="where results are written")
    parser.add_argument(
        "--skip-baseline", action="store_true", help="do not first run the tests without a fault (they just passed)"
    )
    return parser


def chosen(faults: list[Fault], pattern: str) -> list[Fault]:
    """Return the faults with a name or file that matches a pattern; a pattern without wildcards matches anywhere."""
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [fault for fault in faults if fnmatch(fault.name, wanted) or fnmatch(fault.file, wanted)]


def _passes_without_fault(faults: list[Fault], copy: Copy, console: Console) -> bool:
    """Run the tests of all faults once without any. A test that fails anyway says nothing about a fault."""
    tests = sorted({test for fault in faults for test in fault.tests})
    console.print(f"running {len(tests)} tests and files of tests without a fault")
    code, failed = copy.run(tests, BASELINE_DEADLINE, first_only=False)
    if code != 0:
        console.print(f"the tests do not pass without a fault (pytest ended with {code}): {', '.join(failed)}")
    return code == 0


def _try_all(faults: list[Fault], copies: list[Copy], deadline: float, console: Console) -> list[Result]:
    """Try all faults, as many at a time as there are copies."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def one(fault: Fault) -> Result:
        copy = free.get()
        try:
            result = try_fault(fault, copy, deadline)
        finally:
            free.put(copy)
        console.print(f"{result.outcome}: {result.name} ({result.seconds:g} s)", markup=False, highlight=False)
        return result

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(one, faults))


def table_of(results: list[Result]) -> Table:
    """Return one row per fault, those that need work last."""
    counts = Counter(result.outcome for result in results)
    table = Table(title=", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()))
    for heading in ("outcome", "fault", "found by, or why not", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for result in sorted(results, key=lambda result: (result.is_failure, result.outcome)):
        table.add_row(result.outcome, result.name, result.detail, f"{result.seconds:.0f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
