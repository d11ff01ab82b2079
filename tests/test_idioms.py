"""Idioms that a reader has to guess are in no page, comment, docstring, description or message."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import PAGES, ROOT

# CONTRIBUTING.md has the rules, docs/glossary.md the terms.
IDIOMS = re.compile(
    r"\b(whose|lies?|lying|told|anew|mend(s|ed|ing)?|alike|dear(er|est)?|giveaways?|beside|goes on|go on|went on|sees to it"
    r"|put down|as (it|they) comes?|at hand|whoever|nothing but)\b",
    re.I,
)
SOURCES = ("shoal", "cluster", "trainer", "sharding", "models", "benchmarks", "examples", "tests")
# A shorter string is a name, or the text of a test, rather than a sentence.
WORDS_OF_A_SENTENCE = 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_free_of_idioms(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert [line for line in prose.splitlines() if IDIOMS.search(line)] == []


@pytest.mark.parametrize("folder", SOURCES)
def test_sources_are_free_of_idioms(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for line, text in sentences(path.read_text(encoding="utf-8"))
        if IDIOMS.search(text)
    ]
    assert not found, "\n".join(found)


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments, docstrings and sentences among the strings of a source, each with its number."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and len(node.value.split()) >= WORDS_OF_A_SENTENCE
        ):
            prose = re.sub(r"`[^`\n]*`", "", node.value)
            yield from ((node.lineno + number, line) for number, line in enumerate(prose.splitlines()))


def test_comments_docstrings_and_messages_are_read() -> None:
    source = '''
x = f"the {1} whose name is told"
def f():
    """Return what
    is anew."""
    # beside it
    return "told"
'''
    lines = sorted({line for line, text in sentences(source) if IDIOMS.search(text)})
    assert lines == [2, 5, 6]
