"""Faults that are planted on purpose, to see whether a test finds them: what they are and whether they still fit the sources.

A fault is declared in faults/*.toml: one text of one file, what takes its place, and the nearest tests. The list is checked by
test_faults.py, so that a fault with missing text or tests is noticed at once.
"""

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "faults"


@dataclass(frozen=True)
class Fault:
    """One small fault."""

    # What goes wrong, in a few words; unique.
    name: str
    # The source file, relative to the root of the repository.
    file: str
    # The text that is replaced. It occurs exactly once in the file.
    original: str
    # What takes its place.
    planted: str
    # The nearest tests as pytest takes them: FOLDER, FILE or FILE::TEST, relative to the root.
    tests: tuple[str, ...]
    # Why the fault may survive its tests; empty if it may not.
    explained: str = ""


def read_faults(folder: Path = FOLDER) -> list[Fault]:
    """Read all faults, file by file. Raises ValueError if two of them have the same name."""
    faults = [
        Fault(**{**entry, "tests": tuple(entry["tests"])})
        for path in sorted(folder.glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    ]
    names = [fault.name for fault in faults]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"faults: these names occur twice: {repeated}")
    return faults


def stale_reason(fault: Fault, root: Path) -> str | None:
    """Return why a fault no longer fits the tree at `root`, or None if it fits."""
    path = root / fault.file
    if not path.is_file():
        return f"{fault.file} does not exist"
    count = path.read_text(encoding="utf-8").count(fault.original)
    if count != 1:
        return f"its text occurs {count} times in {fault.file}, not once"
    if fault.original == fault.planted:
        return "it changes nothing"
    missing = [test for test in fault.tests if not has_test(root, test)]
    if missing or not fault.tests:
        return f"no such tests: {missing}" if missing else "it names no tests"
    return None


def has_test(root: Path, test: str) -> bool:
    """Return whether a file or folder of tests exists and, where a test is named, defines it."""
    file, _, name = test.partition("::")
    path = root / file
    if not name:
        return path.exists()
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return name.partition("[")[0] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
