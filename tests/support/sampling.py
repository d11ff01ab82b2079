"""Selects the cases of tests marked `pairwise`: a sample that covers every pair of parameter values, or all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from tests.support.pairwise import covering


def parameters(item: pytest.Item) -> dict[str, str]:
    """Return the values of a test's parameters as text; a dataclass has one parameter for each of its fields."""
    values: dict[str, str] = {}
    for name, value in item.callspec.params.items():  # type: ignore[attr-defined]
        if is_dataclass(value):
            values |= {f"{name}.{field.name}": repr(getattr(value, field.name)) for field in fields(value)}
        else:
            values[name] = repr(value)
    return values


def left_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the cases of tests marked `pairwise` that a sample does not need."""
    tests: dict[Any, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise") is not None:
            tests[item.parent, item.originalname].append(item)  # type: ignore[attr-defined]
    rest = []
    for cases in tests.values():
        kept = set(covering([parameters(case) for case in cases]))
        rest += [case for number, case in enumerate(cases) if number not in kept]
    return rest


def selected(request: pytest.FixtureRequest, test: str, group: str, parameter: str) -> dict[Any, list[Any]]:
    """Return, for each value of the parameter `group`, the values of `parameter` in the selected cases of a test.

    The test is one of the module that requests a fixture, which then computes what the selected cases need and no more.
    """
    values: dict[Any, list[Any]] = {}
    for item in request.session.items:
        if getattr(item, "originalname", "") == test and item.path == request.path:
            case = item.callspec.params  # type: ignore[attr-defined]
            values.setdefault(case[group], []).append(case[parameter])
    return values
