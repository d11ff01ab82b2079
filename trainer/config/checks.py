"""Checks across the sections of a config. Each raises ValueError that names the settings and the remedy.

Those that need the metrics of a task are in trainer/tasks/checks.py.
"""

from models.config import ModelConfig, NextItemConfig
from models.objectives.config import FullSoftmaxConfig
from models.ranking.config import RankingConfig, learned_labels
from sharding.config import DynamicIdsConfig, TableConfig
from trainer.config.evaluate import EvaluateConfig
from trainer.config.split import SplitConfig
from trainer.config.train import TrainConfig
from trainer.data.inputs import check_bags, used_specs
from trainer.data.logs.config import LogsConfig, feature_specs
from trainer.errors import UserError


def check_tables(tables: dict[str, TableConfig], logs: LogsConfig) -> None:
    """Reject tables that no feature names, and dynamic ids of items."""
    used = {"item", *(spec.table for spec in feature_specs(logs) if spec.table)}
    for name in tables:
        if name not in used:
            raise ValueError(
                f"tables.{name}: no such table; there are {', '.join(sorted(used))} (a feature names its table with `table`)"
            )
    if isinstance(tables["item"].ids, DynamicIdsConfig):
        raise ValueError(
            'tables.item.ids.kind = "dynamic" is for tables of features: the items of the catalogue must be '
            'known; choose "vocabulary" or "hash"'
        )


def check_task(model: ModelConfig, logs: LogsConfig) -> None:
    """Reject a model for another task than that of the logs, and labels that the logs do not have."""
    if model.task != logs.task:
        raise ValueError(
            f'model.task = "{model.task}", and the logs are for "{logs.task}": with logs.labels rows are '
            "impressions (ranking); without, they are events (next_item)"
        )
    if isinstance(model, RankingConfig):
        learned_labels(model, logs.labels)


def check_heads(model: ModelConfig, width: int) -> None:
    """Reject numbers of attention heads that do not divide the model's width, tables.item.dim."""
    attention = model.encoder.attention
    interest = model.interest.attention if isinstance(model, RankingConfig) else attention
    for part, number in (("encoder", attention.num_heads), ("interest", interest.num_heads)):
        if width % number:
            raise ValueError(f"model.{part}.attention.num_heads = {number} must divide tables.item.dim = {width}")
    halves = attention.differential + (model.encoder.positions == "rotary")
    if width // attention.num_heads % 2**halves:
        raise ValueError(
            f"tables.item.dim / model.encoder.attention.num_heads = {width // attention.num_heads} must be a multiple of "
            f"{2**halves}: rotary positions pair the numbers of a head, and differential attention halves it"
        )


def check_inputs(logs: LogsConfig, model: ModelConfig, tables: dict[str, TableConfig]) -> None:
    """Reject features that the logs do not declare, and bags in tables from which the model needs individual rows."""
    try:
        used_specs(logs, model.inputs)
        check_bags(logs, model, tables)
    except UserError as error:
        raise ValueError(str(error)) from None


def check_days(train: TrainConfig, split: SplitConfig, task: str) -> None:
    """Reject daily training of a task without impressions, or without a split by time."""
    if train.days is None:
        return
    if task != "ranking":
        raise ValueError(
            f"train.days trains on impressions, and model.task = {task!r} has none; leave out [train.days]"
        )
    if split.kind != "global_time":
        raise ValueError(
            'train.days needs split.kind = "global_time": training must end before the held-out period begins'
        )


def check_batches(train: TrainConfig, model: ModelConfig) -> None:
    """Reject limits of events that the longest history exceeds, and settings of histories where users are ranked."""
    longest = model.max_history
    for name in ("batch_tokens", "micro_batch_tokens"):
        tokens = getattr(train, name)
        if tokens is not None and tokens < longest:
            raise ValueError(
                f"train.{name} = {tokens} must be at least model.max_history = {longest}, or one long history "
                "would not fit"
            )
    if train.catalogue_workers > 1 and not _scores_catalogue(model):
        raise ValueError(
            f"train.catalogue_workers = {train.catalogue_workers} divides the catalogue of model.objective.kind = "
            '"full_softmax", and this model never scores the whole catalogue in training; leave it at 1'
        )
    if train.catalogue_workers > 1 and isinstance(model, NextItemConfig) and model.later_targets:
        raise ValueError(
            f"train.catalogue_workers = {train.catalogue_workers} exchanges the targets of the next events only: leave it at 1, or "
            "set model.later_targets = 0"
        )
    if train.compiled_kernels and not isinstance(model, NextItemConfig):
        raise ValueError(
            "train.compiled_kernels = true: rankers have no such kernels, so it changes nothing; leave it out"
        )
    if not isinstance(model, RankingConfig):
        return
    if train.batch_tokens is not None:
        raise ValueError(
            "train.batch_tokens counts events of histories, and ranking counts users with their impressions: leave it out, and "
            "bound the memory of a step by train.micro_batch_tokens"
        )
    if train.deal_by != "length":
        raise ValueError(
            f'train.deal_by = "{train.deal_by}" divides histories, and ranking gives workers equal numbers of users: leave it out'
        )
    if train.long_histories != "recent":
        raise ValueError(
            'train.long_histories = "windows" cuts histories into examples, and ranking keeps a user\'s impressions together: '
            'leave it at "recent"'
        )


def _scores_catalogue(model: ModelConfig) -> bool:
    """Return True if training scores the whole catalogue in each step."""
    return isinstance(model, NextItemConfig) and isinstance(model.objective, FullSoftmaxConfig)


def check_protocol(evaluate: EvaluateConfig, model: ModelConfig) -> None:
    """Reject settings of ranked lists where impressions are scored."""
    if not isinstance(model, RankingConfig):
        return
    defaults = EvaluateConfig()
    if evaluate.compiled_kernels:
        raise ValueError(
            "evaluate.compiled_kernels = true: rankers have no such kernels, so it changes nothing; leave it out"
        )
    for name in ("targets", "candidates", "repeats"):
        if getattr(evaluate, name) != getattr(defaults, name):
            raise ValueError(
                f"evaluate.{name} = {getattr(evaluate, name)!r} is for next-item models: a ranker scores every impression of the "
                f"split as it was shown; leave it at {getattr(defaults, name)!r}"
            )
