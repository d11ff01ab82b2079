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

from cluster.config.defaults import metric_of_rankers
from cluster.config.file import apply_override, read_values
from cluster.config.run_config import explain
from trainer.errors import UserError
from trainer.tasks.metrics import METRICS, selection_pattern

Value = Any  # what a setting of the config may be is for the config to say


class VariantConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Settings that move together under one name."""

    name: str = Field(min_length=1, description="how tables and plots call it")
    settings: dict[str, Value] = Field(
        default_factory=dict,
        description='config keys to values, such as "model.encoder.kind" = "sasrec"; a table as a value replaces the section',
    )


class RangeConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Where random values of one config key are drawn from: exactly one of these."""

    uniform: tuple[float, float] | None = Field(None, strict=False, description="low and high, drawn evenly")
    log_uniform: tuple[float, float] | None = Field(
        None, strict=False, description="low and high, both above 0, the logarithm drawn evenly"
    )
    integers: tuple[int, int] | None = Field(None, strict=False, description="low and high, both of which may be drawn")
    choice: list[Value] | None = Field(None, min_length=1, description="values, each as likely")

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
    """Points drawn at random, the same for every variant."""

    points: int = Field(8, ge=1, le=10_000, description="how many are drawn")
    seed: int = Field(
        1, ge=0, description="the same seed draws the same points; more points continue the same sequence"
    )
    ranges: dict[str, RangeConfig] = Field(description="config keys to ranges, such as { log_uniform = [1e-4, 1e-2] }")


class AssumedConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """What `--dry-run` takes for granted while the dataset is not prepared."""

    items: int = Field(10_000, ge=1, description="items of the catalogue")
    history: int | None = Field(None, ge=1, description="events of a history; none takes model.max_history")
    impressions: int = Field(
        10, ge=1, description="of a ranker: impressions of a user, all after the events of the history"
    )


class StudyConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Runs that differ in settings and seeds, on one dataset."""

    dir: str = Field(description="folder of the study; created if absent, continued if it holds the same study")
    kind: Literal["grid", "random"] = Field(
        "grid", description="all combinations of `grid`, or points drawn at random out of `random.ranges`"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [1, 2, 3], min_length=1, description="each point is run once with each as run.seed"
    )
    metric: str = Field(
        "ndcg@10",
        pattern="|".join(selection_pattern(task) for task in METRICS),
        description="metric of the validation split that ranks the points: hr@K, ndcg@K, recall@K, map@K or mrr; of rankers auc, "
        "gauc, logloss or ne (less is better for both), with several labels as in auc/click (default: auc of the first label)",
    )
    test: bool = Field(
        True, description="also evaluate every finished trial on the test split, once; no rank depends on it"
    )
    colour: str | None = Field(
        None,
        description="config key whose values colour the plots; none colours by variant, or by the first key of the grid",
    )
    max_trials: int = Field(256, ge=1, description="a study with more trials is refused before anything starts")
    max_concurrent: int | None = Field(
        None, ge=1, description="trials that run side by side; none takes as many as the cluster's CPUs and GPUs hold"
    )
    keep_checkpoints: bool = Field(True, description="keep the checkpoints of finished trials; false deletes them")
    variants: list[VariantConfig] = Field(
        default_factory=list, description="named settings; each is combined with every point of grid or random"
    )
    grid: dict[str, list[Value]] = Field(
        default_factory=dict, description='config keys to lists of values, such as "model.encoder.num_blocks" = [1, 2]'
    )
    random: RandomConfig | None = Field(None, description='what is drawn, under kind = "random"')
    assumed: AssumedConfig = Field(default_factory=AssumedConfig, description="used by --dry-run without a dataset")

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
        return Path(self.study.dir)


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
