"""A hook of MkDocs that lists the packages with their files, from the docstrings of their `__init__.py`.

It replaces the line `<!-- code map -->` of a page. Docstrings are parsed and never executed, so torch and Ray are not needed.
"""

import ast
import tomllib
from pathlib import Path
from typing import Any

PLACE = "<!-- code map -->"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with the code map in its place."""
    if PLACE not in markdown:
        return markdown
    root = Path(config["config_file_path"]).parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    folders = [path.parent for package in packages for path in sorted((root / package).rglob("__init__.py"))]
    return markdown.replace(PLACE, "\n\n".join(_section(folder, root) for folder in folders))


def _section(folder: Path, root: Path) -> str:
    """Return a heading, the description and the table of files of one package."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    description, _, listed = docstring.partition("Files:\n")
    lines = [f"### {folder.relative_to(root)}", "", description.strip()]
    entries = [line.split(maxsplit=1) for line in listed.splitlines() if line.strip()]
    if entries:
        lines += ["", "| file | content |", "|---|---|"]
        lines += [f"| `{name}` | {phrase.replace('|', chr(92) + '|')} |" for name, phrase in entries]
    return "\n".join(lines)
