"""Which columns are read from which source of the logs, and what each is for."""

from dataclasses import dataclass
from typing import Literal

from trainer.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    LogsConfig,
    NumericFeatureConfig,
    Owner,
    TimestampFeatureConfig,
    VectorFeatureConfig,
    feature_specs,
)

SourceName = Literal["logs", "history", "items", "users"]
Role = Literal["id", "time", "label", "categorical", "numeric", "timestamp", "vector"]
SOURCES: dict[Owner, SourceName] = {"event": "logs", "item": "items", "user": "users"}  # where whose features are


@dataclass(frozen=True)
class Column:
    """A column that is read. name: what it is called from here on; source: in the files; setting: that names it."""

    name: str
    source: str
    setting: str
    role: Role
    separator: str | None = None
    dim: int | None = None


def columns_of(logs: LogsConfig) -> dict[SourceName, tuple[Column, ...]]:
    """What is read from each source."""
    specs = feature_specs(logs)

    def features(owner: str) -> list[Column]:
        return [_feature_column(spec) for spec in specs if spec.owner == owner]

    labels = [Column(f"label.{name}", name, "logs.labels", "label") for name in logs.labels]
    columns: dict[SourceName, list[Column]] = {
        "logs": [
            Column("user", logs.user, "logs.user", "id"),
            Column("item", logs.item, "logs.item", "id"),
            Column("time", logs.time, "logs.time", "time"),
            *labels,
            *features("event"),
        ]
    }
    if logs.history is not None:
        columns["history"] = [
            Column("user", logs.history.user, "logs.history.user", "id"),
            Column("item", logs.history.item, "logs.history.item", "id"),
            Column("time", logs.history.time, "logs.history.time", "time"),
        ]
    if logs.items is not None:
        columns["items"] = [Column("item", logs.items.item, "logs.items.item", "id"), *features("item")]
    if logs.users is not None:
        columns["users"] = [Column("user", logs.users.user, "logs.users.user", "id"), *features("user")]
    return {name: tuple(found) for name, found in columns.items()}


def _feature_column(spec: FeatureSpec) -> Column:
    match spec.config:
        case CategoricalFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "categorical", spec.config.separator)
        case NumericFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "numeric")
        case TimestampFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "timestamp")
        case VectorFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "vector", dim=spec.config.dim)
