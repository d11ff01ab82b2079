"""The tutorial notebook runs from a fresh folder, cell after cell, and shows what its text says."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import ROOT
from tests.end_to_end.test_python import python

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
PRINT_LAST = """
def show_result(value):
    if value is not None:
        print(value.to_string() if hasattr(value, "to_string") else value)

"""


def cells(kind: str) -> list[str]:
    """Return the sources of the cells of a kind, in order."""
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def program() -> str:
    """Return the code of all cells as one program, which prints the value of each cell that ends with an expression."""
    pieces = [PRINT_LAST]
    for source in cells("code"):
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.Expr(ast.Call(ast.Name("show_result", ast.Load()), [last.value], []))
        pieces.append(ast.unparse(ast.fix_missing_locations(tree)))
    return "\n".join(pieces)


def test_every_cell_runs_in_order(tmp_path: Path) -> None:
    ended = python(program(), here=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    table = re.search(r"^ndcg@10 +(0\.\d+) .* (0\.\d+)$", ended.out, re.M)
    assert table is not None, ended.out
    assert float(table[1]) > 3 * float(table[2])
    assert "train: started" in ended.out
    assert re.search(r"^\d +reader .* [123] +Jazz piano, part 4$", ended.out, re.M), ended.out
    assert re.search(r"^\d +reader .* [123] +Chess openings, part 6$", ended.out, re.M), ended.out
    similar = re.findall(r"^\d +astr-06 .* \d +(\w+)[, ]", ended.out, re.M)
    assert similar.count("Astronomy") >= 3, ended.out
    assert "1200 users, 12000 rows" in ended.out


def test_the_notebook_has_no_outputs_and_its_links_lead_somewhere() -> None:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(cells("markdown"))):
        assert (NOTEBOOK.parent / target).exists(), target
