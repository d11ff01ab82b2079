"""Sides of a comparison: single runs, or groups of runs that differ in their seed only; with their cost and settings."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.comparison.evaluations import StoredEvaluation
from trainer.errors import UserError
from trainer.metrics_log import read_metrics, read_training_time
from trainer.settings import flatten

SEED = "run.seed"
# Two runs that differ only in these and in the seed are one model under two seeds.
_PLACES = ("run.dir", "run.dataset")
_CLUSTER = "cluster."  # results do not depend on the workers
_SEED_IN_NAME = re.compile(r"[-_./]?(seed)?[-_=]?\d*$", re.I)


@dataclass(frozen=True)
class Cost:
    """Cost of the training of a run, as far as the run folder records it."""

    seconds: float | None
    """From start to end, over all attempts, with validation and checkpoints."""
    num_workers: int | None
    """Number of workers."""
    on_gpus: bool
    """True if each worker has a GPU."""
    steps: int | None
    """The last logged step."""
    events_per_second: float | None
    """The last logged speed."""


@dataclass(frozen=True)
class RunFacts:
    """One run of a side."""

    name: str
    """Its name in the comparison."""
    folder: str
    """The folder of the evaluation."""
    checkpoint: str
    """The evaluated checkpoint."""
    seed: int | None
    """The seed of training; None if the config is not known."""
    cost: Cost
    """The cost of its training."""


@dataclass(frozen=True)
class Side:
    """One of the models that are compared: a run, or several that differ only in their seed."""

    name: str
    """Its name in the comparison."""
    evaluations: tuple[StoredEvaluation, ...]
    """One per seed."""

    @property
    def num_seeds(self) -> int:
        """The number of runs."""
        return len(self.evaluations)

    @property
    def title(self) -> str:
        """The name, with the number of seeds if there are several."""
        return f"{self.name} ({self.num_seeds} seeds)" if self.num_seeds > 1 else self.name

    @property
    def runs(self) -> tuple[RunFacts, ...]:
        """Facts of each run."""
        return tuple(_facts(evaluation) for evaluation in self.evaluations)


def sides_of(evaluations: Sequence[StoredEvaluation]) -> list[Side]:
    """Group evaluations that differ only in the seed of their runs, in the order of their first one.

    Runs with the same name that the user chose must be such a group. Others are grouped unless all of them would be one group:
    then the seeds themselves are compared.

    Raises UserError if runs of one name differ in other settings, or if all runs have one name.
    """
    groups: dict[Any, list[StoredEvaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(_key(evaluation), []).append(evaluation)
    for key, group in [*groups.items()]:
        if group[0].side is None and len({_seed(one) for one in group}) < len(group):
            # The same seed twice is no second draw, so these runs stay apart.
            del groups[key]
            groups |= {id(evaluation): [evaluation] for evaluation in group}
    if len(groups) == 1:
        if evaluations[0].side is not None:
            raise UserError(
                f"compare: all runs are called {evaluations[0].side}; give the runs of another model another name"
            )
        groups = {id(evaluation): [evaluation] for evaluation in evaluations}
    for group in groups.values():
        _refuse_other_settings(group)
    places = {id(evaluation): place for place, evaluation in enumerate(evaluations)}
    in_order = sorted(groups.values(), key=lambda group: places[id(group[0])])
    return [Side(name, tuple(group)) for name, group in zip(_group_names(in_order), in_order, strict=True)]


def differ_only_in_seed(sides: Sequence[Side]) -> bool:
    """Return whether all sides are the same model under different seeds."""
    settings = [_settings(side.evaluations[0]) for side in sides]
    return settings[0] is not None and all(one == settings[0] for one in settings)


def changed_settings(sides: Sequence[Side]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which sides differ with the value of each side, by name; the seeds are not among them.

    A side without a config, or of a version without the setting, has None.
    """
    flat = [flatten(side.evaluations[0].config or {}) for side in sides]
    names = sorted({name for of_side in flat for name in of_side} - {"run.dir", SEED})
    return [
        (name, [of_side.get(name) for of_side in flat])
        for name in names
        if any(of_side.get(name) != flat[0].get(name) for of_side in flat)
    ]


def dataset_digest(evaluation: StoredEvaluation) -> str | None:
    """Return the digest of the dataset of a run as its stage record has it, None if it is not known."""
    if evaluation.run_dir is None:
        return None
    try:
        stages = json.loads((evaluation.run_dir / "state.json").read_text(encoding="utf-8"))["stages"]
        digest: str = stages["prepare"]["result"]["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest


def _key(evaluation: StoredEvaluation) -> Any:
    """Return what runs of one side share."""
    if evaluation.side is not None:
        return evaluation.side
    settings = _settings(evaluation)
    return id(evaluation) if settings is None else repr(sorted(settings.items()))


def _settings(evaluation: StoredEvaluation) -> dict[str, Any] | None:
    """Return the flat settings that runs of one model share; None if they are not known."""
    if evaluation.config is None:
        return None
    return {name: value for name, value in flatten(evaluation.config).items() if _identifies(name)}


def _identifies(name: str) -> bool:
    """Return whether a setting distinguishes models."""
    return name not in (*_PLACES, SEED) and not name.startswith(_CLUSTER)


def _seed(evaluation: StoredEvaluation) -> int | None:
    seed: int | None = flatten(evaluation.config or {}).get(SEED)
    return seed


def _refuse_other_settings(group: Sequence[StoredEvaluation]) -> None:
    """Raise UserError if the runs of a group differ in more than their seed."""
    first = _settings(group[0]) or {}
    for other in group[1:]:
        settings = _settings(other) or {}
        differing = sorted(name for name in first.keys() | settings.keys() if first.get(name) != settings.get(name))
        if differing:
            raise UserError(
                f"compare: {group[0].folder} and {other.folder} are both called {other.side or other.name}, but they "
                f"differ in more than {SEED}: {', '.join(differing)}; give them different names"
            )


def _group_names(groups: Sequence[Sequence[StoredEvaluation]]) -> list[str]:
    """Return the name of each group: the chosen one, or what the names of its runs have in common if that is unique."""
    names = []
    for group in groups:
        shared = _common_beginning([evaluation.name for evaluation in group])
        common = _SEED_IN_NAME.sub("", shared) if len(group) > 1 else ""
        names.append(group[0].side or common or group[0].name)
    return names if len(set(names)) == len(names) else [group[0].name for group in groups]


def _common_beginning(names: Sequence[str]) -> str:
    """Return the characters that all names begin with."""
    first, last = min(names), max(names)
    number = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:number]


def _facts(evaluation: StoredEvaluation) -> RunFacts:
    return RunFacts(
        evaluation.name, str(evaluation.folder), evaluation.values["checkpoint"], _seed(evaluation), _cost(evaluation)
    )


def _cost(evaluation: StoredEvaluation) -> Cost:
    """Return the cost of a run's training."""
    if evaluation.run_dir is None:
        return Cost(None, None, False, None, None)
    cluster = (evaluation.config or {}).get("cluster", {})
    took = read_training_time(evaluation.run_dir)
    rows = read_metrics(evaluation.run_dir / "metrics.jsonl")
    speeds = [row["events_per_second"] for row in rows if "events_per_second" in row]
    return Cost(
        seconds=None if took is None else took.seconds,
        num_workers=cluster.get("num_workers"),
        on_gpus=bool(cluster.get("gpus_per_worker")),
        steps=max((row["step"] for row in rows), default=None),
        events_per_second=speeds[-1] if speeds else None,
    )
