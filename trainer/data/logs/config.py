"""Settings of event logs: files, columns, features, labels. Imports no torch."""

import codecs
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from trainer.data.logs.format_names import FormatSetting
from trainer.data.logs.time_formats import check_format

ValueType = Literal["auto", "integer", "text"]


class TextConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Format of text files (CSV, TSV). Parquet files need none of these settings."""

    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description='the character between fields, such as ";"; default: a comma, and a tab in .tsv and .inter files',
    )
    encoding: str = Field("utf-8", description='character encoding of the files, such as "latin-1" or "utf-16"')
    quoting: Literal["auto", "none", "double", "escaped"] = Field(
        "auto",
        description='"double": fields in double quotes, a quote inside them written twice; "escaped": a quote inside them '
        'written as \\"; "none": quotes are ordinary characters; auto is "double" and refuses files where quotes may be ordinary '
        "characters",
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


TEXT_DESCRIPTION = "format of the text files of this source; default: logs.text"


class CategoricalFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A feature with one or several values: an integer, a string, or a list of them. Each value has a row in a table."""

    kind: Literal["categorical"] = Field("categorical", description="kind of feature")
    column: str | None = Field(None, description="its column; default: the feature's name")
    table: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="table of its rows (tables.NAME); features that name the same table share it; default: the feature's "
        'name; "item" shares the ids of the items',
    )
    type: ValueType = Field(
        "auto",
        description="type of the values: integer, text, or auto: that of Parquet columns; in text files integer if every value "
        "of every file is an integer without leading zeros, and text otherwise",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description='text that separates several values in a string, such as "|"; not needed for list columns',
    )
    max_values: int = Field(
        32, ge=1, description="number of values kept per entry; further values are counted and dropped"
    )


class NumericFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A number. The mean and scale, or the bounds of buckets, are fitted on the training part only."""

    kind: Literal["numeric"] = Field(description="kind of feature")
    column: str | None = Field(None, description="its column; default: the feature's name")
    transform: Literal["none", "log1p"] = Field(
        "none", description="function applied first; log1p is sign(x) log(1 + |x|), for counts and durations"
    )
    scale: Literal["standard", "none"] = Field(
        "standard", description="standard subtracts the mean and divides by the standard deviation"
    )
    buckets: int | None = Field(
        None,
        ge=2,
        le=4096,
        description="number of quantile buckets, used instead of the number itself: bucket k is row k of the table, row 0 stands "
        "for a missing value",
    )
    table: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="with buckets: table of its rows; default: the feature's name",
    )


class TimestampFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A moment, for example the publication of an item.

    Integers are stored unchanged. Timestamps and text are stored as microseconds in UTC.
    """

    kind: Literal["timestamp"] = Field(description="kind of feature")
    column: str | None = Field(None, description="its column; default: the feature's name")
    format: str | None = Field(None, description="format of its text, in the form of logs.time_format")

    _check_format = field_validator("format")(check_format)


class VectorFeatureConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A vector of fixed width, such as a pretrained content embedding: a list column of numbers."""

    kind: Literal["vector"] = Field(description="kind of feature")
    column: str | None = Field(None, description="its column; default: the feature's name")
    dim: int = Field(ge=1, le=65536, description="numbers in a vector")


FeatureConfig = Annotated[
    CategoricalFeatureConfig | NumericFeatureConfig | TimestampFeatureConfig | VectorFeatureConfig,
    Field(discriminator="kind"),
]
Features = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], FeatureConfig]


class ItemsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The catalogue: one row per item with its features. It may list items that have no event."""

    path: str | list[str] = Field(description="files of items, in the forms of logs.path")
    format: FormatSetting = Field("auto", description="file format; auto uses each file's ending")
    text: TextConfig | None = Field(None, description=TEXT_DESCRIPTION)
    item: str = Field("item_id", description="column of the item, of the same type as in the logs")
    features: Features = Field(default_factory=dict, description="features of items by name")


class UsersConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """One row per user with its features."""

    path: str | list[str] = Field(description="files of users, in the forms of logs.path")
    format: FormatSetting = Field("auto", description="file format; auto uses each file's ending")
    text: TextConfig | None = Field(None, description=TEXT_DESCRIPTION)
    user: str = Field("user_id", description="column of the user, of the same type as in the logs")
    features: Features = Field(default_factory=dict, description="features of users by name")


class HistoryConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """For logs of impressions: further logs with events that belong to the history but are no impressions."""

    path: str | list[str] = Field(description="files of events, in the forms of logs.path")
    format: FormatSetting = Field("auto", description="file format; auto uses each file's ending")
    text: TextConfig | None = Field(None, description=TEXT_DESCRIPTION)
    user: str = Field("user_id", description="column of the user, of the same type as in the logs")
    item: str = Field("item_id", description="column of the item, of the same type as in the logs")
    time: str = Field("time", description="column of the time, of the same kind and unit as in the logs")
    time_format: str | None = Field(None, description="format of times that are text, in the form of logs.time_format")

    _check_format = field_validator("time_format")(check_format)


class LogsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Location of the event logs and meaning of their columns. One row is one event, or with `labels` one impression."""

    path: str | list[str] = Field(
        description="a file, folder or glob of event logs, or a list of them; local paths or URIs of any filesystem that "
        "pyarrow supports (s3://, gs://, hdfs://); paths are relative to the current folder"
    )
    format: FormatSetting = Field(
        "auto", description="file format; auto uses each file's ending (.parquet, .csv, .tsv, .inter)"
    )
    text: TextConfig = Field(default_factory=TextConfig, description="format of text files")
    user: str = Field("user_id", description="column of the user: integer or string")
    item: str = Field("item_id", description="column of the item: integer or string")
    user_type: ValueType = Field(
        "auto",
        description="type of users in all files: integer, text, or auto: that of Parquet columns; in text files integer if "
        "every value of every file is an integer without leading zeros, and text otherwise",
    )
    item_type: ValueType = Field("auto", description="type of items in all files, in the form of logs.user_type")
    time: str = Field(
        "time",
        description="column that orders a user's events: integer, timestamp, date or ISO 8601 text; ties keep the order of "
        "the log",
    )
    time_format: str | None = Field(
        None,
        description='strptime format of times that are text, such as "%m/%d/%Y %H:%M"; default: ISO 8601. Times without a zone '
        "are UTC",
    )
    null_values: list[str] = Field(
        default_factory=list,
        description='texts that mean a missing value in any column, such as ["-", "None"]; empty text always does',
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="drop or keep events that equal another one in user, item and time; dropped ones are counted",
    )
    negative_ids: Literal["reject", "keep"] = Field(
        "reject",
        description="reject or keep users and items that are negative integers, which often mark missing values; keep them "
        "if ids are hashes",
    )
    earliest_time: int | str | None = Field(
        None, description="rows before this time are rejected; in the form of split.validation_time"
    )
    latest_time: int | str | None = Field(
        None,
        description="rows after this time are rejected, for example rows from wrong clocks; in the form of "
        "split.validation_time",
    )
    max_events_per_user: int | None = Field(
        None, ge=3, description="most recent events kept per user; earlier ones are rejected; default: all events"
    )
    max_rejected_fraction: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of rows that may be rejected, for example for null ids; with more, prepare stops",
    )
    max_unreadable_files: int = Field(
        0,
        ge=0,
        description="number of damaged or missing files that may be left out; the manifest names them",
    )
    features: Features = Field(default_factory=dict, description="features of events by name")
    items: ItemsConfig | None = Field(None, description="features of items")
    users: UsersConfig | None = Field(None, description="features of users")
    labels: list[str] = Field(
        default_factory=list,
        description="columns with outcomes of an impression (0 or 1, or a number); with any label, rows are impressions and the "
        "dataset is for ranking",
    )
    outcomes: list[str] = Field(
        default_factory=list,
        description="further columns that are known only after an impression, such as a watch time; never used as features",
    )
    history_label: str | None = Field(
        None, description="name of a label; impressions where it is above 0 become events of the history"
    )
    history: HistoryConfig | None = Field(None, description="further events of the history")
    negative_sampling_rate: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of the impressions without any label above 0 that the log contains; recorded, so that calibration "
        "can be corrected",
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
