"""Settings of a study: which settings vary, over which seeds, and by which metric the outcome is judged. No torch, no ray.

A study file is a run's config, in part or by `base`, and a [study] section:

    base = "movielens100k_sasrec.toml"      # relative to this file; sections given here are merged over it
    [study]
    dir = "runs/study"
    [study.grid]
    "model.encoder.num_blocks" = [1, 2]
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.config.explain import explain
from cluster.config.file import apply_override, read_values
from trainer.config.defaults import metric_of_rankers
from trainer.errors import UserError
from trainer.storage.objects.paths import local_path
from trainer.tasks.metrics import METRICS, selection_pattern

Value = Any  # what a setting of the config may be is for the config to say


class VariantConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Settings that change together, under one name."""

    name: str = Field(min_length=1, description="name in tables and plots")
    settings: dict[str, Value] = Field(
        default_factory=dict,
        description='config keys with values, such as "model.encoder.kind" = "sasrec". A table as a value replaces the section',
    )


class RangeConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Range of random values of one config key: exactly one of these."""

    uniform: tuple[float, float] | None = Field(
        None, strict=False, description="low and high of a uniform distribution; default: unset"
    )
    log_uniform: tuple[float, float] | None = Field(
        None,
        strict=False,
        description="low and high, both above 0, of a log-uniform distribution; default: unset",
    )
    integers: tuple[int, int] | None = Field(
        None,
        strict=False,
        description="low and high of a uniform distribution of integers, both included; default: unset",
    )
    choice: list[Value] | None = Field(
        None, min_length=1, description="values with equal probabilities; default: unset"
    )

    @model_validator(mode="after")
    def _one_that_makes_sense(self) -> "RangeConfig":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of uniform, log_uniform, integers, choice")
        bounds = self.uniform or self.log_uniform or self.integers
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} = [low, high] needs low below high")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform = [low, high] needs low above 0")
        return self


class RandomConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Random points, the same for each variant."""

    points: int = Field(8, ge=1, le=10_000, description="number of points")
    seed: int = Field(1, ge=0, description="seed of the points. More points continue the same sequence")
    ranges: dict[str, RangeConfig] = Field(
        description="config keys with ranges, such as { log_uniform = [1e-4, 1e-2] }"
    )


class AssumedConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Assumptions of `--dry-run` before the dataset is prepared."""

    items: int = Field(10_000, ge=1, description="number of items in the catalogue")
    history: int | None = Field(None, ge=1, description="number of events of a history; default: model.max_history")
    impressions: int = Field(
        10, ge=1, description="rankers: number of impressions per user, all after the events of the history"
    )


class StudyConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Runs that differ in settings and seeds."""

    dir: str = Field(description="study folder. It is created if absent, and resumed if it holds the same study")
    kind: Literal["grid", "random"] = Field(
        "grid", description="all combinations of `grid`, or random points from `random.ranges`"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [1, 2, 3], min_length=1, description="seeds (run.seed) with which each point is run"
    )
    metric: str = Field(
        "ndcg@10",
        pattern="|".join(selection_pattern(task) for task in METRICS),
        description="validation metric that ranks the points. next_item: hr@K, ndcg@K, recall@K, precision@K, map@K, "
        "debiased_ndcg@K or mrr. ranking: auc, pr_auc, gauc, logloss or ne (less is better for the last two), with a label as in "
        "auc/click if there are several; its default is auc of the first label",
    )
    test: bool = Field(
        True, description="also evaluate each finished trial once on the test split, which affects no ranking"
    )
    colour: str | None = Field(
        None,
        description="config key that colours the plots by its values; default: the variant, or the first key of the grid",
    )
    max_trials: int = Field(
        256, ge=1, description="maximum number of trials. A larger study is refused before anything starts"
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="number of trials that run in parallel; default: as many as fit on the cluster's CPUs and GPUs",
    )
    keep_checkpoints: bool = Field(True, description="keep the checkpoints of finished trials. false deletes them")
    variants: list[VariantConfig] = Field(
        default_factory=list, description="named settings, each of which is combined with each point of grid or random"
    )
    grid: dict[str, list[Value]] = Field(
        default_factory=dict,
        description='config keys with lists of values, such as "model.encoder.num_blocks" = [1, 2]',
    )
    random: RandomConfig | None = Field(None, description='kind = "random": the points to draw')
    assumed: AssumedConfig = Field(
        default_factory=AssumedConfig, description="assumptions of --dry-run without a dataset"
    )

    @model_validator(mode="after")
    def _says_what_varies(self) -> "StudyConfig":
        if self.kind == "random" and (self.random is None or not self.random.ranges):
            raise ValueError('kind = "random" needs [study.random.ranges]')
        if self.kind == "random" and self.grid:
            raise ValueError('kind = "random" takes no [study.grid]; write its lists as ranges: { choice = [...] }')
        if self.kind == "grid" and self.random is not None:
            raise ValueError('kind = "grid" takes no [study.random]; set kind = "random"')
        names = [variant.name for variant in self.variants]
        for what, values in (("seeds", self.seeds), ("names of variants", names)):
            if len(set(values)) < len(values):
                raise ValueError(f"the {what} must differ from each other, not {values}")
        for key, choices in self.grid.items():
            if not choices:
                raise ValueError(f"grid.{key}: an empty list leaves nothing to run")
        return self


@dataclass(frozen=True)
class StudyFile:
    """A study, the values of the config that its trials start from (unchecked), and the file, for messages."""

    study: StudyConfig
    values: dict[str, Any]
    origin: str

    @property
    def folder(self) -> Path:
        return local_path(self.study.dir, "study.dir")


def read_study(path: str | Path, overrides: list[str] | None = None) -> StudyFile:
    """Read a study file and its base, and apply `key=value` overrides to either.

    Raises UserError naming the file and the key.
    """
    values = read_values(path)
    for override in overrides or []:
        apply_override(override, values)
    settings = values.pop("study", None)
    if not isinstance(settings, dict):
        raise UserError(f"study {path}: has no [study]; a single config is run by `shoal run {path}`")
    metric = metric_of_rankers(values)
    if metric is not None:
        settings = {"metric": metric, **settings}
    try:
        study = StudyConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error, f"{path}, [study]", StudyConfig)) from None
    return StudyFile(study, values, str(path))


def with_settings(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with config keys such as "model.encoder.num_blocks" set. Raises ValueError if a key leads through a value."""
    result = copy.deepcopy(values)
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key}: {section} is a value, not a section")
        place[name] = copy.deepcopy(value)
    return result
