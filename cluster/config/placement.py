"""The sections [cluster.placement] and [cluster.evaluation.placement]: on which nodes workers are placed. Imports no ray."""

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator

PlacementStrategy = Literal["pack", "spread", "strict_pack", "strict_spread"]

# The syntax of Ray's label selectors: a value, in(VALUE, ...), and ! before either.
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{{0,251}}[a-zA-Z0-9])?/)?{_NAME}")
_CONDITION = re.compile(rf"(?P<no>!)?(?:in\((?P<many>{_NAME}(?:, ?{_NAME})*)\)|(?P<one>{_NAME}))")

Condition = tuple[bool, frozenset[str]]


def condition_of(text: str) -> Condition:
    """Return whether a label must have one of the values (True) or none of them, and the values. Raises ValueError."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}" is no condition; write "VALUE", "!VALUE", "in(A, B)" or "!in(A, B)"')
    values = match["one"] or match["many"]
    return match["no"] is None, frozenset(re.split(", ?", values))


def check_selector(labels: dict[str, str]) -> dict[str, str]:
    """Return label conditions as they are. Raises ValueError if a key or a condition has a wrong syntax."""
    for key, text in labels.items():
        if _KEY.fullmatch(key) is None:
            raise ValueError(f'"{key}" is no label of a node; write "NAME" or "DOMAIN/NAME"')
        condition_of(text)
    return labels


class PlacementConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The nodes of workers, and what each worker reserves there. Without effect on a cluster that a command starts itself."""

    strategy: PlacementStrategy = Field(
        "pack",
        description="`pack`: on as few nodes as possible. `spread`: on as many as possible. `strict_pack`: all on one node. "
        "`strict_spread`: each on a node of its own",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description='labels that a node must have, and their values: `"VALUE"`, `"!VALUE"`, `"in(A, B)"` or `"!in(A, B)"`',
    )
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="what each worker reserves besides CPUs and GPUs, by Ray's names: `memory` in bytes, or resources of your own",
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        return check_selector(labels)

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in ("CPU", "GPU"):
                raise ValueError(f"{name} is set by {name.lower()}s_per_worker")
            if amount <= 0:
                raise ValueError(f"{name} = {amount:g} is no amount above 0")
        return resources
