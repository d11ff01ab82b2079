"""Settings of event logs: files, columns, features, labels. Imports no torch."""

import codecs
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from trainer.data.logs.format_names import FormatSetting
from trainer.data.logs.time_formats import check_format

ValueType = Literal["auto", "integer", "text"]


class TextConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Format of text files (CSV, TSV). A source without such a table takes `logs.text`. Parquet files need none of it."""

    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description='character between fields, such as ";"; default: a comma, or a tab in .tsv and .inter files',
    )
    encoding: str = Field("utf-8", description='character encoding of the files, such as "latin-1" or "utf-16"')
    quoting: Literal["auto", "none", "double", "escaped"] = Field(
        "auto",
        description="double: fields in double quotes, with quotes inside them doubled; escaped: with quotes inside them "
        'written as \\"; none: quotes are ordinary characters; auto: double, and files with quotes that may be ordinary characters '
        "are refused",
    )
    decimal: Literal[".", ","] = Field(".", description="decimal mark of numeric features and labels")
    thousands: Literal["", ",", ".", " ", "'"] = Field(
        "", description="mark between groups of three digits in numeric features and labels"
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f'no encoding is called {encoding!r}; use a name such as "latin-1" or "cp1252"') from None
        return encoding

    @model_validator(mode="after")
    def _marks_differ(self) -> "TextConfig":
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; they must differ")
        return self


class CategoricalFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """One or several values from a set: integers, strings, or lists of them. Each value has a row in a table."""

    kind: Literal["categorical"] = Field("categorical", description="kind of feature")
    column: str | None = Field(None, description="column of the feature; default: the name of the feature")
    table: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description='table of its rows (tables.NAME). Features that name the same table share it, and "item" shares the ids of '
        "items; default: the name of the feature",
    )
    type: ValueType = Field(
        "auto",
        description="type of the values. auto: in Parquet the type of the column; in text files integer if each value of each "
        "file is an integer without leading zeros, otherwise text",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description='string between several values in one text, such as "|". List columns need none; default: one value',
    )
    max_values: int = Field(
        32, ge=1, description="maximum number of values kept per row. Further values are dropped and counted"
    )


class NumericFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A number. Mean and standard deviation, or the bounds of buckets, are fitted on the training part only."""

    kind: Literal["numeric"] = Field(description="kind of feature")
    column: str | None = Field(None, description="column of the feature; default: the name of the feature")
    transform: Literal["none", "log1p"] = Field(
        "none", description="transform before scaling. log1p is sign(x) log(1 + |x|), for counts and durations"
    )
    scale: Literal["standard", "none"] = Field(
        "standard", description="standard subtracts the mean and divides by the standard deviation"
    )
    buckets: int | None = Field(
        None,
        ge=2,
        le=4096,
        description="number of quantile buckets. Bucket k is row k of the table, and row 0 stands for missing values; default: "
        "a number, without buckets",
    )
    table: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="table of the buckets' rows; default: the name of the feature",
    )


class TimestampFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A point in time, such as the publication of an item: an integer unchanged, or a timestamp or text in microseconds (UTC)."""

    kind: Literal["timestamp"] = Field(description="kind of feature")
    column: str | None = Field(None, description="column of the feature; default: the name of the feature")
    format: str | None = Field(None, description="format of text, in the form of logs.time_format; default: ISO 8601")

    _check_format = field_validator("format")(check_format)


class VectorFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A vector of fixed width, such as a pretrained content embedding: a list column of numbers."""

    kind: Literal["vector"] = Field(description="kind of feature")
    column: str | None = Field(None, description="column of the feature; default: the name of the feature")
    dim: int = Field(ge=1, le=65536, description="width of the vector")


FeatureConfig = Annotated[
    CategoricalFeatureConfig | NumericFeatureConfig | TimestampFeatureConfig | VectorFeatureConfig,
    Field(discriminator="kind"),
]
Features = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], FeatureConfig]


class FurtherFilesConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Files besides the logs, and their format."""

    path: str | list[str]
    format: FormatSetting = Field("auto", description="file format; auto: by the ending of each file")
    text: TextConfig | None = Field(None, description="format of the text files of this source; default: logs.text")


class ItemsConfig(FurtherFilesConfig, extra="forbid", frozen=True, strict=True):
    """The catalogue: one row per item with its features. It also lists items without events."""

    path: str | list[str] = Field(description="files of items, in the forms of logs.path")
    item: str = Field("item_id", description="column of the item, of the same type as in the logs")
    features: Features = Field(default_factory=dict, description="features of items by name")


class UsersConfig(FurtherFilesConfig, extra="forbid", frozen=True, strict=True):
    """One row per user with its features."""

    path: str | list[str] = Field(description="files of users, in the forms of logs.path")
    user: str = Field("user_id", description="column of the user, of the same type as in the logs")
    features: Features = Field(default_factory=dict, description="features of users by name")


class HistoryConfig(FurtherFilesConfig, extra="forbid", frozen=True, strict=True):
    """For logs of impressions: further logs with events that belong to the history and are not impressions."""

    path: str | list[str] = Field(description="files of events, in the forms of logs.path")
    user: str = Field("user_id", description="column of the user, of the same type as in the logs")
    item: str = Field("item_id", description="column of the item, of the same type as in the logs")
    time: str = Field("time", description="column of the time, of the same kind and unit as in the logs")
    time_format: str | None = Field(
        None, description="format of times in text, in the form of logs.time_format; default: ISO 8601"
    )

    _check_format = field_validator("time_format")(check_format)


class LogsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The event logs and the meaning of their columns. One row is one event, or with `labels` one impression."""

    path: str | list[str] = Field(
        description="a file, folder or glob of event logs, or a list of them: local paths, or URIs of any filesystem that "
        "pyarrow supports (s3://, gs://, hdfs://). Relative paths start at the current folder"
    )
    format: FormatSetting = Field(
        "auto", description="file format; auto: by the ending of each file (.parquet, .csv, .tsv, .inter)"
    )
    text: TextConfig = Field(default_factory=TextConfig, description="format of text files")
    user: str = Field("user_id", description="column of the user: integer or string")
    item: str = Field("item_id", description="column of the item: integer or string")
    user_type: ValueType = Field(
        "auto",
        description="type of users in all files. auto: in Parquet the type of the column; in text files integer if each value "
        "of each file is an integer without leading zeros, otherwise text",
    )
    item_type: ValueType = Field("auto", description="type of items in all files, in the form of logs.user_type")
    time: str = Field(
        "time",
        description="column that orders the events of a user: integer, timestamp, date or ISO 8601 text. Equal times keep the "
        "order of the log",
    )
    time_format: str | None = Field(
        None,
        description='strptime format of times in text, such as "%m/%d/%Y %H:%M". Times without a zone are UTC; default: ISO '
        "8601",
    )
    null_values: list[str] = Field(
        default_factory=list,
        description='texts that mean a missing value in any column, such as ["-", "None"]. Empty text always does',
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="drop or keep an event that equals another in user, item and time. Dropped events are counted",
    )
    negative_ids: Literal["reject", "keep"] = Field(
        "reject",
        description="reject or keep users and items that are negative integers, which often mean a missing id. Keep them if "
        "ids are hashes",
    )
    earliest_time: int | str | None = Field(
        None,
        description="earliest valid time, in the form of split.validation_time. Earlier rows are rejected; default: no limit",
    )
    latest_time: int | str | None = Field(
        None,
        description="latest valid time, in the form of split.validation_time. Later rows are rejected, for example those of "
        "wrong clocks; default: no limit",
    )
    max_events_per_user: int | None = Field(
        None,
        ge=3,
        description="maximum number of events kept per user, the most recent ones. The others are rejected; default: no limit",
    )
    max_rejected_fraction: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of rows that may be rejected, for example for null ids, before prepare stops",
    )
    max_unreadable_files: int = Field(
        0,
        ge=0,
        description="number of damaged or missing files that may be left out. The manifest names them",
    )
    features: Features = Field(default_factory=dict, description="features of events by name")
    items: ItemsConfig | None = Field(None, description="features of items")
    users: UsersConfig | None = Field(None, description="features of users")
    labels: list[str] = Field(
        default_factory=list,
        description="columns of the outcomes of an impression (0 or 1, or a number). Any label makes rows impressions, and the "
        "dataset one for ranking",
    )
    outcomes: list[str] = Field(
        default_factory=list,
        description="further columns that are known only after an impression, such as a watch time. They are never features",
    )
    history_label: str | None = Field(
        None,
        description="label that makes an impression an event of the history, if it is above 0; default: impressions are not "
        "part of the history",
    )
    history: HistoryConfig | None = Field(None, description="further events of the history")
    negative_sampling_rate: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of the impressions without any label above 0 that the log contains. It is recorded, so that "
        "calibration can be corrected",
    )

    _check_format = field_validator("time_format")(check_format)

    @model_validator(mode="after")
    def _columns_fit_together(self) -> "LogsConfig":
        known_after = dict.fromkeys(self.outcomes, "logs.outcomes") | dict.fromkeys(self.labels, "logs.labels")
        for owner, features in (
            ("logs", self.features),
            ("logs.items", self.items and self.items.features),
            ("logs.users", self.users and self.users.features),
        ):
            for feature, config in (features or {}).items():
                column = config.column or feature
                if column in known_after:
                    raise ValueError(
                        f"{owner}.features.{feature} reads column {column!r}, which is among {known_after[column]}: it is known "
                        "only after the impression, so it would reveal the answer to the model; leave the feature out"
                    )
        if not self.labels:
            for name in ("history_label", "history"):
                if getattr(self, name) is not None:
                    raise ValueError(f"logs.{name} is for impressions, and logs.labels names no label")
        elif self.history_label is None and self.history is None:
            raise ValueError(
                "logs.labels makes rows impressions, but no setting defines the events of a history: "
                "set logs.history_label to one of the labels, or logs.history to further logs"
            )
        elif self.history_label is not None and self.history_label not in self.labels:
            raise ValueError(f"logs.history_label = {self.history_label!r} is not among logs.labels = {self.labels}")
        return self

    @model_validator(mode="after")
    def _rows_of_tables_mean_one_thing(self) -> "LogsConfig":
        owners = {s.table: s.setting for s in feature_specs(self) if isinstance(s.config, CategoricalFeatureConfig)}
        owners |= {"item": "logs.item"}
        for spec in feature_specs(self):
            if isinstance(spec.config, NumericFeatureConfig) and spec.table in owners:
                raise ValueError(
                    f"{spec.setting}: its buckets would share rows of table {spec.table!r} with the values of "
                    f"{owners[spec.table]}, although they are different values; set another `table`"
                )
            if self.labels and spec.owner == "event" and spec.name in _COLUMNS_OF_IMPRESSIONS:
                raise ValueError(
                    f"{spec.setting}: impressions already have a column named {spec.name!r}; give the feature another name, "
                    f'with column = "{spec.source}"'
                )
        return self

    def text_of(self, source: Literal["logs", "history", "items", "users"]) -> TextConfig:
        """Return the format of the text files of a source."""
        match source:
            case "logs":
                return self.text
            case "history":
                return (self.history and self.history.text) or self.text
            case "items":
                return (self.items and self.items.text) or self.text
            case "users":
                return (self.users and self.users.text) or self.text

    @property
    def task(self) -> Literal["next_item", "ranking"]:
        """Task that a dataset of these logs serves."""
        return "ranking" if self.labels else "next_item"


Owner = Literal["event", "item", "user"]
_COLUMNS_OF_IMPRESSIONS = ("item", "time", "history_end")  # of the dataset
_SETTINGS: dict[Owner, str] = {"event": "logs", "item": "logs.items", "user": "logs.users"}


@dataclass(frozen=True)
class FeatureSpec:
    """A configured feature with its owner."""

    owner: Owner
    name: str
    config: FeatureConfig

    @property
    def key(self) -> str:
        """Name of its column from the logs to the dataset."""
        return f"{self.owner}.{self.name}"

    @property
    def source(self) -> str:
        """Name of its column in the files."""
        return self.config.column or self.name

    @property
    def setting(self) -> str:
        """Setting that declares the feature."""
        return f"{_SETTINGS[self.owner]}.features.{self.name}"

    @property
    def table(self) -> str | None:
        """Table that holds a row for each of its ids, or None."""
        match self.config:
            case CategoricalFeatureConfig():
                return self.config.table or self.name
            case NumericFeatureConfig(buckets=int()):
                return self.config.table or self.name
            case _:
                return None


def feature_specs(logs: LogsConfig) -> tuple[FeatureSpec, ...]:
    """Return all features: of events, of items, of users, each in the order of the config."""
    owners: list[tuple[Owner, dict[str, FeatureConfig]]] = [
        ("event", logs.features),
        ("item", logs.items.features if logs.items else {}),
        ("user", logs.users.features if logs.users else {}),
    ]
    return tuple(FeatureSpec(owner, name, config) for owner, features in owners for name, config in features.items())
