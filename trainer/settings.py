"""Settings as flat names and values, and how two sets of them differ."""

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


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each flat setting in which two identities differ, sorted by name."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in names]
