"""Flattens nested settings to names and values, and compares two sets of them."""

from collections.abc import Container, Iterator
from typing import Any


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as flat ones: {"train": {"epochs": 1}} becomes {"train.epochs": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changed_settings(before: dict[str, Any], now: dict[str, Any], at_default: Container[str] = ()) -> list[str]:
    """Return one line for each flat setting in which two identities differ, sorted by name.

    Args:
        before: The identity of an existing run.
        now: The identity of the run to start.
        at_default: The settings of `now` at their defaults. `before` may lack them if an earlier version wrote it, because the
            default of a new setting preserves the earlier behaviour.
    """
    compared = (name for name in before.keys() | now.keys() if name in before or name not in at_default)
    names = sorted(name for name in compared if before.get(name) != now.get(name))
    return [f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in names]


def plain_values(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (setting, value) of each plain value in nested tables and lists. Values of a list share its name."""
    match values:
        case dict():
            for key, value in values.items():
                yield from plain_values(value, f"{place}.{key}" if place else str(key))
        case list():
            for value in values:
                yield from plain_values(value, place)
        case _:
            yield place, values
