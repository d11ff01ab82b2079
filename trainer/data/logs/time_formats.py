"""Formats of times that are text, in the directives of strptime. Imports neither torch nor pyarrow.

A format becomes a regular expression that the whole text must match. This catches errors that strptime accepts: a year
of two digits instead of four, or text behind the time.
"""

import re

DIRECTIVES = {
    "Y": r"\d{4}", "y": r"\d{2}", "m": r"\d{1,2}", "d": r"\d{1,2}", "H": r"\d{1,2}", "I": r"\d{1,2}", "M": r"\d{1,2}",
    "S": r"\d{1,2}", "f": r"\d{1,9}", "p": "[AaPp][Mm]", "b": "[A-Za-z]+", "B": "[A-Za-z]+", "a": "[A-Za-z]+",
    "A": "[A-Za-z]+", "z": r"Z|[+-]\d{2}:?\d{2}",
}  # fmt: skip
_GROUPS = {"d": "day", "f": "fraction", "z": "zone"}
_DATES = (("Y", "m", "d"), ("y", "m", "d"), ("Y", "b", "d"), ("y", "b", "d"), ("Y", "B", "d"), ("y", "B", "d"))
_TOKEN = re.compile(r"%(.?)")


def check_format(format: str | None) -> str | None:
    """Return the format unchanged. Raises ValueError if a directive is unknown or the format names no day."""
    if format is None:
        return None
    names = _TOKEN.findall(format)
    unknown = sorted({f"%{name}" for name in names if name not in DIRECTIVES and name != "%"})
    if unknown:
        known = ", ".join(f"%{name}" for name in DIRECTIVES)
        raise ValueError(f"the format {format!r} has the unknown {', '.join(unknown)}; known are {known} and %%")
    repeated = sorted({f"%{name}" for name in names if names.count(name) > 1 and name != "%"})
    if repeated:
        raise ValueError(f"the format {format!r} has {', '.join(repeated)} more than once")
    if not any(set(date) <= set(names) for date in _DATES):
        raise ValueError(
            f'the format {format!r} must name year, month and day, such as "%m/%d/%Y" or "%d.%m.%Y %H:%M:%S"'
        )
    if ("I" in names) != ("p" in names):
        raise ValueError(f"the format {format!r} needs both %I and %p, or %H for hours from 0 to 23")
    if "f" in names and not re.search(r"%S[.,]%f", format):
        raise ValueError(f"in the format {format!r} %f must follow the seconds, as in %S.%f")
    return format


def pattern_of(format: str) -> str:
    """Return a regular expression of texts in this format, with the groups `day`, `fraction` and `zone` if it has them."""
    return f"^{_pattern(format)}$"


def split_at_fraction(format: str) -> tuple[str, str] | None:
    """Return regular expressions of the text before and after the fraction of a second; None if the format has none."""
    if "%f" not in format:
        return None
    before, after = re.split(r"[.,]%f", format)
    return _pattern(before, named=False), _pattern(after, named=False)


def without_fraction(format: str) -> str:
    """Return the format of the same texts without the fraction and its mark."""
    return re.sub(r"[.,]%f", "", format)


def _pattern(format: str, named: bool = True) -> str:
    pieces = []
    end = 0
    for match in _TOKEN.finditer(format):
        name = match[1]
        pieces.append(re.escape(format[end : match.start()]))
        inner = DIRECTIVES.get(name, "%")
        group = _GROUPS.get(name) if named else None
        pieces.append(f"(?P<{group}>{inner})" if group else f"(?:{inner})")
        end = match.end()
    pieces.append(re.escape(format[end:]))
    return "".join(pieces)
