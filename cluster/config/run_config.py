"""The whole config of a run: parts from every package, read from TOML, overridden, checked once. Imports neither torch nor ray."""

import difflib
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.config.defaults import with_defaults
from cluster.config.file import apply_override, read_values, refuse_unusable
from models.config import NextItemConfig
from models.ranking.config import RankingConfig, learned_labels
from sharding.config import CommunicationConfig, DynamicIdsConfig, IdsConfig, PlanConfig, TableConfig
from sharding.support import codec_reason, placement_reason
from trainer.config import (
    CheckpointConfig,
    EvaluateConfig,
    LeaveOneOutConfig,
    SplitConfig,
    TrainConfig,
    daily_training_reason,
)
from trainer.data.inputs import check_bags, used_specs
from trainer.data.logs.config import LogsConfig, feature_specs
from trainer.errors import UserError
from trainer.job import Job
from trainer.settings import flatten
from trainer.tasks.metrics import unusable_reason

MAX_SECONDS = 10_000_000.0  # 115 days; torch and Ray count in 64 bits of nanoseconds


class RunConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The run as a whole."""

    dir: str = Field(
        "runs/default", description="folder of the run; created if absent, continued if it holds the same run"
    )
    dataset: str | None = Field(
        None, description="folder of the sequence dataset, if not dataset/ in the run folder; lets runs share one"
    )
    new_logs: Literal["ask", "evaluate", "continue"] = Field(
        "ask",
        description="log files that came since the run was trained: stop and name the choices, append them and evaluate the "
        "trained model, or append them and train on (not used with train.days)",
    )
    seed: int = Field(1, ge=0, description="seed of the initial weights, the order of histories, dropout and negatives")


class ClusterConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The workers and where they run."""

    address: str | None = Field(
        None, description='address of a running Ray cluster ("auto", "host:6379"); none starts one on this machine'
    )
    num_workers: int = Field(2, ge=1, description="training workers; results do not depend on it")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) of each worker")
    gpus_per_worker: int = Field(
        0, ge=0, le=1, description="GPUs of each worker: 0 trains on CPUs with gloo, 1 with NCCL"
    )
    prepare_tasks: int | None = Field(
        None, ge=1, description="tasks of prepare that run side by side; none uses every CPU of the cluster"
    )
    collective_timeout_seconds: float = Field(
        300.0,
        gt=0.0,
        le=MAX_SECONDS,
        description="how long a worker waits for the others in one collective operation before it fails",
    )

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What workers compute on."""
        return "cuda" if self.gpus_per_worker else "cpu"


class Config(BaseModel, extra="forbid", frozen=True, strict=True):
    """Everything that a run needs to know. Most of it has defaults; `logs` does not."""

    run: RunConfig = Field(default_factory=RunConfig)
    logs: LogsConfig
    split: SplitConfig = Field(default_factory=LeaveOneOutConfig)
    model: Annotated[NextItemConfig | RankingConfig, Field(discriminator="task")] = Field(
        default_factory=NextItemConfig
    )
    tables: dict[str, TableConfig] = Field(default_factory=dict)
    plan: PlanConfig = Field(default_factory=PlanConfig)
    communication: CommunicationConfig = Field(default_factory=CommunicationConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @model_validator(mode="before")
    @classmethod
    def _what_is_left_out_follows(cls, values: Any) -> Any:
        return with_defaults(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Config":
        used = {"item", *(spec.table for spec in feature_specs(self.logs) if spec.table)}
        for name in self.tables:
            if name not in used:
                raise ValueError(
                    f"tables.{name}: no such table; there are {', '.join(sorted(used))} (features name theirs with `table`)"
                )
        if isinstance(self.tables["item"].ids, DynamicIdsConfig):
            raise ValueError(
                'tables.item.ids.kind = "dynamic" is for tables of features: the catalogue, out of which the next item is '
                'predicted, has to be known; choose "vocabulary" or "hash"'
            )
        if self.model.task != self.logs.task:
            raise ValueError(
                f'model.task = "{self.model.task}", and the logs are for "{self.logs.task}": with logs.labels rows are '
                "impressions, which are ranked; without, events, of which the next is predicted"
            )
        width, attention = self.tables["item"].dim, self.model.encoder.attention
        interest = self.model.interest.attention if isinstance(self.model, RankingConfig) else attention
        for part, number in (("encoder", attention.num_heads), ("interest", interest.num_heads)):
            if width % number:
                raise ValueError(f"model.{part}.attention.num_heads = {number} must divide tables.item.dim = {width}")
        halves = attention.differential + (self.model.encoder.positions == "rotary")
        if width // attention.num_heads % 2**halves:
            raise ValueError(
                f"tables.item.dim / model.encoder.attention.num_heads = {width // attention.num_heads} must be a multiple of "
                f"{2**halves}: rotary positions pair the numbers of a head, and differential attention halves it"
            )
        try:
            used_specs(self.logs, self.model.inputs)
            check_bags(self.logs, self.model, self.tables)
        except UserError as error:
            raise ValueError(str(error)) from None
        device = self.cluster.device
        not_by_days = daily_training_reason(self.train, self.split, self.model.task)
        unplaceable = (
            f"tables.{name}: {why}" for name, t in self.tables.items() if (why := placement_reason(t, device))
        )
        for reason in (not_by_days, codec_reason(self.communication, device), *unplaceable):
            if reason is not None:
                raise ValueError(reason)
        longest = self.model.max_history
        for name in ("batch_tokens", "micro_batch_tokens"):
            tokens = getattr(self.train, name)
            if tokens is not None and tokens < longest:
                raise ValueError(
                    f"train.{name} = {tokens} must be at least model.max_history = {longest}, or it could not hold a single "
                    "long history"
                )
        self._metric_is_measured()
        if isinstance(self.model, RankingConfig):
            learned_labels(self.model, self.logs.labels)
            self._examples_are_whole()
        return self

    def _examples_are_whole(self) -> None:
        """In ranking an example is a user with all of the user's training impressions."""
        if self.train.batch_tokens is not None:
            raise ValueError(
                "train.batch_tokens counts events of histories, and ranking counts users with their impressions: leave it out, and "
                "bound the memory of a step by train.micro_batch_tokens"
            )
        if self.train.long_histories != "recent":
            raise ValueError(
                'train.long_histories = "windows" cuts histories into examples, and ranking keeps a user\'s impressions together: '
                'leave it at "recent"'
            )

    def _metric_is_measured(self) -> None:
        stopping = self.train.early_stopping
        if stopping is None:
            return
        labels = tuple(self.model.labels or self.logs.labels) if isinstance(self.model, RankingConfig) else ()
        reason = unusable_reason(stopping.metric, self.model.task, self.evaluate.ks, labels)
        if reason is not None:
            raise ValueError(f"train.early_stopping.metric = {stopping.metric!r}: {reason}")

    @property
    def ids_of_tables(self) -> dict[str, IdsConfig]:
        """How the values of each table become rows."""
        return {name: table.ids for name, table in self.tables.items()}

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir)

    @property
    def dataset_dir(self) -> Path:
        return Path(self.run.dataset) if self.run.dataset else self.run_dir / "dataset"


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


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a TOML (or a run's resolved config.json), apply `key=value` overrides, check.

    Raises UserError naming the file, the key, and for an unknown key the nearest known one.
    """
    values = read_values(path)
    for override in overrides or []:
        apply_override(override, values)
    return check_config(values, str(path))


def check_config(values: dict[str, Any], origin: str) -> Config:
    """Build a Config from plain values; `origin` names their source in errors."""
    refuse_unusable(values, f"config {origin}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, origin, Config)) from None


def explain(error: ValidationError, origin: str, model: type[BaseModel]) -> str:
    """What pydantic found wrong with a config of this model, for people: every key once, with the nearest name that there is."""
    details = error.errors(include_url=False)
    places = [_place(detail["loc"]) for detail in details]
    choices: dict[str, list[str]] = {}  # of a setting that is one of several literals, or a list of them
    for location, detail in zip(places, details, strict=True):
        if detail["type"] == "literal_error":
            choices.setdefault(".".join(location), []).append(detail["ctx"]["expected"])
    lines = []
    for location, detail in zip(places, details, strict=True):
        key = ".".join(location) or "(whole config)"
        match detail["type"]:
            case "extra_forbidden":
                known = _known_keys(model, detail["loc"][:-1])
                nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
                hint = f"; did you mean {'.'.join([*location[:-1], nearest[0]])}?" if nearest else ""
                lines.append(f"{key}: no such setting{hint}")
            case "union_tag_invalid":
                lines.append(f"{key}.kind: {_wrong_kind(detail)}")
            case "literal_error" if any(other.startswith(f"{key}.") for other in choices):
                pass  # a list of literals was given, and one of its entries is the mistake
            case "literal_error" | "list_type" if key in choices:
                lines.append(f"{key}: no such choice {detail['input']!r}; choose {', '.join(choices[key])}")
            case "missing":
                lines.append(f"{key}: is missing; add it to the config or pass --set {key}=...")
            case _:
                value = detail.get("input")
                got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
                lines.append(
                    f"{key}: {detail['msg'].removeprefix('Value error, ').replace('Input should be', 'must be')}{got}"
                )
    return f"config {origin}:\n  " + "\n  ".join(dict.fromkeys(lines))


# What pydantic adds to the place of an error within a union: the tag, or the type, of the member that it tried.
_UNION_PART = re.compile(
    r"(leave_one_out|global_time|full_softmax|sampled_softmax|sasrec|categorical|numeric|timestamp|vector|vocabulary|hash|dynamic"
    r"|str|(list|literal)\[.*\])$"
)


# Words that may be names elsewhere: tags only behind these settings.
_KINDS_OF = {
    "model": ("next_item", "ranking"),
    "objective": ("bce", "gbce"),
    "negatives": ("uniform", "popularity", "in_batch", "cross_rank", "mixed"),
}


def _place(location: Iterable[str | int]) -> list[str]:
    """Where an error is, as a person would write it."""
    place: list[str] = []
    for part in map(str, location):
        of_setting = _KINDS_OF.get(place[-1], ()) if place else ()
        if not _UNION_PART.match(part) and part not in of_setting:
            place.append(part)
    return place


def _wrong_kind(detail: Any) -> str:
    """A tagged union's own message speaks of tags; say which kinds there are."""
    context = detail["ctx"]
    return f"no such kind {context['tag']!r}; choose one of {context['expected_tags']}"


def _known_keys(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """Names that may stand below `location`, found by walking the models' fields. Tags choose among the members of a union."""
    candidates: list[Any] = [model]
    for part in location:
        if all(part in c.model_fields for c in candidates):
            candidates = [m for c in candidates for m in _models_in(c.model_fields[part].annotation)]
        else:  # a tag, or else the name of a table or feature
            candidates = [c for c in candidates if part in _tags_of(c)] or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _tags_of(model: type[BaseModel]) -> tuple[Any, ...]:
    return tuple(
        tag
        for name in ("task", "kind")
        if name in model.model_fields
        for tag in get_args(model.model_fields[name].annotation)
    )


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def identity(config: Config) -> dict[str, Any]:
    """The flat settings that make a run what it is: {"train.batch_size": 128, ...} without FREE_TO_CHANGE."""
    flat = flatten(config.model_dump(mode="json"))
    # Where the number of steps decides every step's rate, the end may not move.
    ends = ("train.epochs", "train.max_steps") if config.train.needs_the_end else ()
    # Day by day the held-out period moves on as logs come, and what was held out is trained.
    moving = ("split.validation_time", "split.test_time") if config.train.days is not None else ()
    free = [name for name in (*FREE_TO_CHANGE, *moving) if name not in ends]
    return {k: v for k, v in flat.items() if not is_among(k, free)}


def at_default(config: Config) -> frozenset[str]:
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


def job_of(config: Config) -> Job:
    """The worker's view of a config: absolute paths, because workers run in folders of their own."""
    return Job(
        run_dir=config.run_dir.resolve(),
        dataset_dir=config.dataset_dir.resolve(),
        seed=config.run.seed,
        model=config.model,
        tables=config.tables,
        train=config.train,
        checkpoint=config.checkpoint,
        evaluate=config.evaluate,
        communication=config.communication,
        plan_config=config.plan,
        config=config.model_dump(mode="json"),
        identity=identity(config),
        at_default=at_default(config),
    )
