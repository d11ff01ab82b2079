"""The settings that identify a run, and those that may change between two starts of it."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from trainer.config.run_config import RunConfig
from trainer.settings import flatten

# Settings that may change between two starts of one run, because they alter neither the weights nor their meaning.
# All other settings identify the run. A difference in them is refused by name.
FREE_TO_CHANGE = (
    "run.dir",
    "run.dataset",
    "run.new_logs",
    "logs.path",  # the dataset's fingerprint and digest identify the logs, wherever they are stored
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
    "train.sample_log",
    "train.deal_by",  # only decides which worker trains an example
    "train.catalogue_workers",  # only decides where items are scored
    "train.max_nonfinite_steps",
    "train.send_ids_early",  # only decides when ids are sent
    "tables.*.sharding",
    "tables.*.lookup",  # only decides where rows are summed
    "tables.*.kernel",
    "tables.*.ranks",
    "tables.*.min_partition",
    "tables.*.pooling_factor",
    "tables.*.cache_load_factor",
    "plan",
    "guards",  # skipped steps change the weights, but the guard is there to be set when a run under way meets a spike
    "checkpoint",
    "storage",
    "evaluate",
    "tracking",
    "cluster",
)


# Settings that earlier versions did not have, with the values under which they change nothing. At these values they are left out,
# so that runs and stages of earlier versions keep their digests.
LATER = {
    "train.send_ids_early": False,
    "train.deal_by": "length",
    "train.streams": 64,
    "train.catalogue_workers": 1,
    "train.compiled_kernels": False,
    "evaluate.compiled_kernels": False,
    "train.tf32": False,
    "train.torch_compile": False,
    "model.encoder.heads_by_block": None,
    "model.stochastic_length": None,
    "model.later_targets": 0,
    "model.later_weight": 0.5,
    "model.encoder.candidate_norms": False,
    "model.encoder.truncate_after": None,
    "model.encoder.truncate_to": None,
    "model.encoder.merge_size": None,
    "model.encoder.merge_recent": None,
    "model.encoder.merge_form": "projection",
    "model.encoder.attention.temperature_factor": 1.0,
    "model.interest.attention.temperature_factor": 1.0,
}


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the flat settings that identify a run, {"train.batch_size": 128, ...}: all except FREE_TO_CHANGE."""
    flat = flatten(config.model_dump(mode="json"))
    # If the rate of each step depends on the number of steps, that number is fixed.
    ends = ("train.epochs", "train.max_steps") if config.train.needs_the_end else ()
    # In daily training the held-out period moves forward with new logs.
    moving = ("split.validation_time", "split.test_time") if config.train.days is not None else ()
    free = [name for name in (*FREE_TO_CHANGE, *moving) if name not in ends]
    return {k: v for k, v in flat.items() if not is_among(k, free) and not is_later_default(k, v)}


def at_default(config: RunConfig) -> frozenset[str]:
    """Return the flat settings that are at their own defaults. A setting that a preset changes is not."""
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


def is_later_default(key: str, value: Any) -> bool:
    """Return whether a flat setting is one of LATER, at the value under which it changes nothing."""
    return key in LATER and LATER[key] == value


def is_among(key: str, names: Iterable[str]) -> bool:
    """Return whether a flat setting is one of `names`, or below one. In a name * stands for any part."""
    return any(fnmatchcase(key, name) or fnmatchcase(key, f"{name}.*") for name in names)
