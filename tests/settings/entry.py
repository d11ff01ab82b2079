"""One entry of the test that every setting has an effect: what is changed, what is observed, and what must be seen then."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from trainer.errors import UserError

Settings = Mapping[str, Any]  # config keys to values
Observation = Callable[[Any, Any], Any]  # of (lab, checked settings)


class _Differs:
    """What is seen has to differ, and nothing more is known of it."""

    def __repr__(self) -> str:
        return "anything else"


DIFFERS = _Differs()


def accepted(lab: Any, settings: Any) -> bool:
    """Return that settings were accepted."""
    return True


def attribute(part: Observation, name: str, owner: str) -> Observation:
    """Return the observation of one attribute of a part. owner: the part's name in messages, as in "the load's"."""

    def observe(lab: Any, settings: Any) -> Any:
        return getattr(part(lab, settings), name)

    observe.__name__ = f"{owner} {name}"
    return observe


@dataclass(frozen=True)
class Entry:
    """One setting with a value that differs from the one in its base, and the effect of the difference.

    The entry holds if `observe` sees `becomes` with the new value, and something else without it.
    """

    # As written in a config, such as "tables.item.dim".
    key: str
    # Another value than the default or the one in `base`.
    value: Any
    # What is looked at: a function of observations/.
    observe: Observation = accepted
    # What is seen with the value; a function is called with what is seen without it and returns that.
    becomes: Any = DIFFERS
    # What is seen with the value, computed by another path: a function of (lab, settings with the value).
    formula: Observation | None = None
    # Settings that both sides have besides those of the world.
    base: Settings = field(default_factory=dict)
    # Settings that the value cannot go without, on its side only.
    besides: Settings = field(default_factory=dict)
    # Which base config and logs: "events", "impressions", or another root of the settings.
    world: str = "events"
    # Part of the message with which the value is refused; it is accepted without the settings of `base`.
    refused: str = ""
    # The leaf, where a key cannot lead to it because tables in a list are on the way; `besides` then holds the change.
    leaf: str = ""
    # Why results do not depend on the setting; `observe` then looks at what it does instead.
    free: str = ""

    @property
    def given(self) -> Settings:
        """Return the settings of the side with the value."""
        return {**self.base, **self.besides, **({} if self.leaf else {self.key: self.value})}

    @property
    def name(self) -> str:
        """Return the name of the test."""
        return f"{self.key}={self.value!r}"


def check(entry: Entry, lab: Any) -> None:
    """Compare what is seen with and without an entry's value. Raises AssertionError naming the setting."""
    before = lab.see(entry.observe, lab.settings(entry.world, entry.base))
    if entry.refused:
        return _check_refused(entry, lab)
    changed = lab.settings(entry.world, entry.given)
    after = lab.see(entry.observe, changed)
    seen = f"{entry.key} = {entry.value!r}: {getattr(entry.observe, '__name__', 'observe')}"
    assert not same(before, after), f"{seen} shows no effect: {shown(before)} with the value and without it"
    if entry.formula is not None or entry.becomes is not DIFFERS:
        expected = entry.becomes(before) if callable(entry.becomes) else entry.becomes
        if entry.formula is not None:
            expected = entry.formula(lab, changed)
        assert same(expected, after), f"{seen} shows {shown(after)}, and should show {shown(expected)}"
    return None


def _check_refused(entry: Entry, lab: Any) -> None:
    with pytest.raises(UserError, match=re.escape(entry.refused)):
        lab.settings(entry.world, entry.given)


def same(left: Any, right: Any) -> bool:
    """Return whether two observations are equal; numbers but for rounding in float32."""
    if isinstance(left, Tensor | np.ndarray) or isinstance(right, Tensor | np.ndarray):
        left, right = np.asarray(left), np.asarray(right)
        return left.shape == right.shape and bool(np.allclose(left, right, rtol=1e-5, atol=1e-6, equal_nan=True))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-9) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


def shown(value: Any) -> str:
    """Return an observation as messages show it."""
    with_limit = str(value if not isinstance(value, Tensor) else value.flatten()[:8].tolist())
    return with_limit if len(with_limit) < 500 else f"{with_limit[:500]} ..."


def toml(value: Any) -> str:
    """Return a value as `--set` takes it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str() | Path():
            return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        case dict():
            return "{" + ", ".join(f"{toml(str(key))} = {toml(entry)}" for key, entry in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return str(value)
