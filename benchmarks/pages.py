"""Tables of measured figures in pages: each stands between two marks, and is written from a stored result."""

import re
from collections.abc import Sequence

END = "<!-- end -->"


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
