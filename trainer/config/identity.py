"""The settings that identify a run, and those that may change between two starts of it."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from trainer.config.run_config import RunConfig
from trainer.settings import flatten

# Settings that may change between two starts of one run: they alter neither the weights nor what they mean.
# All else belongs to the run's identity, and a difference is refused by name.
FREE_TO_CHANGE = (
    "run.dir",
    "run.dataset",
    "run.new_logs",
    "logs.path",  # where logs lie is not what they are: the dataset's fingerprint and digest say that
    "logs.items.path",
    "logs.users.path",
    "logs.history.path",
    "logs.max_rejected_fraction",
    "logs.max_unreadable_files",
    "train.epochs",
    "train.max_steps",
    "train.evaluate_every_epochs",
    "train.days.evaluate_next",
    "train.early_stopping",
    "train.log_every_steps",
    "train.ledger",
    "train.max_nonfinite_steps",
    "tables.*.sharding",
    "tables.*.lookup",  # where rows are added up
    "tables.*.kernel",
    "tables.*.ranks",
    "tables.*.min_partition",
    "tables.*.pooling_factor",
    "tables.*.cache_load_factor",
    "plan",
    "checkpoint",
    "evaluate",
    "cluster",
)


def identity(config: RunConfig) -> dict[str, Any]:
    """The flat settings that make a run what it is: {"train.batch_size": 128, ...} without FREE_TO_CHANGE."""
    flat = flatten(config.model_dump(mode="json"))
    # Where the number of steps decides every step's rate, the end may not move.
    ends = ("train.epochs", "train.max_steps") if config.train.needs_the_end else ()
    # Day by day the held-out period moves on as logs come, and what was held out is trained.
    moving = ("split.validation_time", "split.test_time") if config.train.days is not None else ()
    free = [name for name in (*FREE_TO_CHANGE, *moving) if name not in ends]
    return {k: v for k, v in flat.items() if not is_among(k, free)}


def at_default(config: RunConfig) -> frozenset[str]:
    """The flat settings that are at their own defaults; what a preset sets otherwise is not."""
    return frozenset(_at_default(config, ""))


def _at_default(settings: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            flat = f"{prefix}{name}.{key}".removesuffix(".")
            if isinstance(part, BaseModel):
                yield from _at_default(part, f"{flat}.")
            elif value == field.get_default(call_default_factory=True):
                yield flat


def is_among(key: str, names: Iterable[str]) -> bool:
    """Whether a flat setting is one of `names`, in which * stands for any part, or lies below one."""
    return any(fnmatchcase(key, name) or fnmatchcase(key, f"{name}.*") for name in names)
