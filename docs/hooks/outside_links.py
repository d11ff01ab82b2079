"""A hook of MkDocs that turns links to source files and folders into their paths.

Pages link to source files, configs, folders of results and the README by relative paths. These work in the repository. The site has
no such pages, and a strict build refuses the links.
"""

import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with each link that leaves docs/ or leads to a folder replaced by its text and the path."""
    depth = page.file.src_uri.count("/")

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        leaves = target.count("../") > depth
        if not leaves and "." in target.rsplit("/", 1)[-1]:
            return match[0]
        path = re.sub(r"^(\.\./)+", "", target) if leaves else f"docs/{target}"
        plain = text.strip("`")
        return f"`{path}`" if path.rstrip("/").endswith(plain.rstrip("/")) else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)
