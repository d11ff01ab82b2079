"""A small reader of PromQL: tokens, brackets, names of metrics and their labels. It refuses what it does not know."""

import re
from dataclasses import dataclass

FUNCTIONS = {"sum", "avg", "max", "min", "rate", "increase", "label_values"}
WORDS = {"by", "without", "and", "or", "on"}
TOKEN = re.compile(
    r'\s*(?:(?P<text>"[^"]*")|(?P<number>\d+(?:\.\d+)?)(?![\w])|(?P<name>[a-zA-Z_:][\w:]*)'
    r"|(?P<window>\[(?:\d+[smhd]|\$__rate_interval)\])|(?P<mark>==|!=|=~|!~|>=|<=|[-+*/<>=(){},]))"
)
CLOSES = {")": "(", "}": "{"}


@dataclass(frozen=True)
class Expression:
    """Metrics and labels that an expression refers to."""

    metrics: frozenset[str]
    # Labels that select or group series.
    labels: frozenset[str]


def read(text: str) -> Expression:
    """Read an expression. Raises ValueError that names what is wrong."""
    metrics: set[str] = set()
    labels: set[str] = set()
    stack: list[str] = []
    position = 0
    previous = ""
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text[position:]!r}")
        position = match.end()
        token = match[0].strip()
        following = text[position:].lstrip()[:1]
        if match["mark"] in ("(", "{"):
            is_group = token == "(" and previous in ("by", "without")
            stack.append("labels" if is_group else token)
        elif match["mark"] in (")", "}"):
            opened = stack.pop() if stack else ""
            if opened != CLOSES[token] and not (token == ")" and opened == "labels"):
                raise ValueError(f"{token} closes {opened or 'nothing'} in {text!r}")
        elif match["name"]:
            if stack and stack[-1] in ("{", "labels"):
                labels.add(token)
            elif token not in FUNCTIONS | WORDS:
                if following == "(":
                    raise ValueError(f"{token} is no known function")
                metrics.add(token)
        elif match["window"] and following not in (")",):
            raise ValueError(f"{token} is not the end of an argument in {text!r}")
        previous = token
    if stack:
        raise ValueError(f"{stack[-1]} is not closed in {text!r}")
    return Expression(frozenset(metrics), frozenset(labels))
