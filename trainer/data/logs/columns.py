"""Columns to read from each source of the logs, with the role of each."""

from dataclasses import dataclass, field, replace
from typing import Literal

from trainer.data.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    LogsConfig,
    NumericFeatureConfig,
    Owner,
    TextConfig,
    TimestampFeatureConfig,
    ValueType,
    VectorFeatureConfig,
    feature_specs,
)

SourceName = Literal["logs", "history", "items", "users"]
Role = Literal["id", "time", "label", "categorical", "numeric", "timestamp", "vector"]
# Source that holds the features of each owner.
SOURCES: dict[Owner, SourceName] = {"event": "logs", "item": "items", "user": "users"}


@dataclass(frozen=True)
class Column:
    """A column to read, with the settings that decide how its values are read."""

    # The column's name after reading.
    name: str
    # The column's name in the files.
    source: str
    # The setting that names the column.
    setting: str
    # The use of the column, which decides the types that it may have.
    role: Role
    # Splits text into several values.
    separator: str | None = None
    # Width of vectors.
    dim: int | None = None
    # Columns of one group ("user", "item" or a table) hold values that are compared, so they are read as one type.
    group: str | None = None
    # Declared type of ids and categorical values.
    type: ValueType = "auto"
    # The setting that declares the type.
    type_setting: str = ""
    # strptime format of times that are text; None for ISO 8601.
    time_format: str | None = None
    # The setting of that format.
    format_setting: str = ""
    # Texts that stand for a missing value.
    null_values: tuple[str, ...] = ()
    # How text files of the column's source are written.
    text: TextConfig = field(default_factory=TextConfig)
    # Name of the setting above.
    text_setting: str = "logs.text"


def columns_of(logs: LogsConfig) -> dict[SourceName, tuple[Column, ...]]:
    """Return the columns to read from each source."""
    specs = feature_specs(logs)

    def features(owner: str) -> list[Column]:
        return [_feature_column(spec, logs) for spec in specs if spec.owner == owner]

    def user(source: str, setting: str) -> Column:
        return Column("user", source, setting, "id", group="user", type=logs.user_type, type_setting="logs.user_type")

    def item(source: str, setting: str) -> Column:
        return Column("item", source, setting, "id", group="item", type=logs.item_type, type_setting="logs.item_type")

    def time(source: str, setting: str, format: str | None) -> Column:
        return Column("time", source, setting, "time", time_format=format, format_setting=f"{setting}_format")

    labels = [Column(f"label.{name}", name, "logs.labels", "label") for name in logs.labels]
    columns: dict[SourceName, list[Column]] = {
        "logs": [
            user(logs.user, "logs.user"),
            item(logs.item, "logs.item"),
            time(logs.time, "logs.time", logs.time_format),
            *labels,
            *features("event"),
        ]
    }
    if logs.history is not None:
        columns["history"] = [
            user(logs.history.user, "logs.history.user"),
            item(logs.history.item, "logs.history.item"),
            time(logs.history.time, "logs.history.time", logs.history.time_format),
        ]
    if logs.items is not None:
        columns["items"] = [item(logs.items.item, "logs.items.item"), *features("item")]
    if logs.users is not None:
        columns["users"] = [user(logs.users.user, "logs.users.user"), *features("user")]
    return {name: tuple(_written(column, logs, name) for column in read) for name, read in columns.items()}


def _written(column: Column, logs: LogsConfig, source: SourceName) -> Column:
    """Return the column with the settings for the text files of its source."""
    own = source != "logs" and getattr(logs, source).text is not None
    setting = f"logs.{source}.text" if own else "logs.text"
    return replace(column, null_values=tuple(logs.null_values), text=logs.text_of(source), text_setting=setting)


def _feature_column(spec: FeatureSpec, logs: LogsConfig) -> Column:
    match spec.config:
        case CategoricalFeatureConfig():
            type = spec.config.type
            type_setting = f"{spec.setting}.type"
            if spec.table == "item" and type == "auto":
                type = logs.item_type
                type_setting = "logs.item_type"
            return Column(
                spec.key,
                spec.source,
                spec.setting,
                "categorical",
                spec.config.separator,
                group="item" if spec.table == "item" else f"table {spec.table}",
                type=type,
                type_setting=type_setting,
            )
        case NumericFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "numeric")
        case TimestampFeatureConfig():
            return Column(
                spec.key,
                spec.source,
                spec.setting,
                "timestamp",
                time_format=spec.config.format,
                format_setting=f"{spec.setting}.format",
            )
        case VectorFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "vector", dim=spec.config.dim)
