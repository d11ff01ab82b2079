"""Settings as flat names and values, and how two sets of them differ."""

from collections.abc import Container, Iterator
from typing import Any


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 1}} becomes {"train.epochs": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changed_settings(before: dict[str, Any], now: dict[str, Any], at_default: Container[str] = ()) -> list[str]:
    """One line for each flat setting in which two identities differ, sorted by name.

    at_default: settings of `now` at their defaults. `before` may lack them: it is of a version that did not know them, and a
    new setting's default does what was done without it.
    """
    compared = (name for name in before.keys() | now.keys() if name in before or name not in at_default)
    names = sorted(name for name in compared if before.get(name) != now.get(name))
    return [f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in names]


def plain_values(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (setting, value) of every plain value in nested tables and lists; those of a list share its name."""
    match values:
        case dict():
            for key, value in values.items():
                yield from plain_values(value, f"{place}.{key}" if place else str(key))
        case list():
            for value in values:
                yield from plain_values(value, place)
        case _:
            yield place, values
