"""Entries of how values are written in logs: text files of every source, types of ids, formats of times, missing values."""

from collections.abc import Iterator

from tests.settings.entry import Entry, Settings
from tests.settings.observations.logs import count, histories, number_marks_of_history, rows_read

FORMAT = "%d/%m/%Y %H:%M:%S"
REFUSED = "refused"
EVENT_TIMES: Settings = {"logs.time_format": FORMAT}
SHOWN: Settings = {
    **EVENT_TIMES,
    "logs.path": "LOGS/text/shown_plain.csv",
    "split.validation_time": "2024-10-13",
    "split.test_time": "2024-10-14",
}
NUMBERS: Settings = {"kind": "numeric", "column": "number"}

# Of each source: its settings, the settings that it is read with, the rows of the logs, and the world.
SOURCES: dict[str, tuple[str, Settings, int, str]] = {
    "events": ("logs", {**EVENT_TIMES, "logs.features.thing": NUMBERS}, 209, "events"),
    "items": (
        "logs.items",
        {"logs.items": {"path": "LOGS/items.parquet", "features": {"thing": NUMBERS}}},
        209,
        "events",
    ),
    "users": (
        "logs.users",
        {"logs.users": {"path": "LOGS/users.parquet", "features": {"thing": NUMBERS}}},
        209,
        "events",
    ),
    "past": (
        "logs.history",
        {
            **SHOWN,
            "logs.history": {"path": "LOGS/text/past_plain.csv", "time_format": FORMAT},
            "logs.features.thing": NUMBERS,
        },
        336 + 209,
        "impressions",
    ),
}
NO_NUMBERS = "of a history users, items and times are read, and none of them has decimals or thousands"
VALUES = {"delimiter": ";", "encoding": "latin-1", "quoting": "none", "decimal": ",", "thousands": ","}


def text_entries() -> Iterator[Entry]:
    """Yield an entry for each setting of text files of each source: a file that is refused without it."""
    for name, (section, base, num_rows, world) in SOURCES.items():
        for setting, value in VALUES.items():
            file = {f"{section}.path": f"LOGS/text/{name}_{setting}.csv"}
            semicolons = {f"{section}.text.delimiter": ";"} if setting in ("decimal", "thousands") else {}
            key = f"{section}.text.{setting}"
            if name == "past" and setting in ("decimal", "thousands"):
                number_mark = number_marks_of_history(setting)
                yield Entry(key, value, number_mark, value, base=base, world=world, free=NO_NUMBERS)
                continue
            yield Entry(key, value, rows_read, num_rows, base={**base, **file, **semicolons}, world=world)
        if name != "events":
            file = {f"{section}.path": f"LOGS/text/{name}_delimiter.csv"}
            yield Entry(f"{section}.text", {"delimiter": ";"}, rows_read, num_rows, base={**base, **file}, world=world)


def feature_entries() -> Iterator[Entry]:
    """Yield types of categories and formats of moments, of every owner of features."""
    for name, section in (("events", "logs"), ("items", "logs.items"), ("users", "logs.users")):
        file = {"path": f"LOGS/text/{name}_plain.csv"}
        base: Settings = {"logs.path": file["path"], **EVENT_TIMES} if name == "events" else {section: file}
        key = f"{section}.features.thing"
        colours = {**base, key: {"kind": "categorical", "column": "colour"}}
        yield Entry(f"{key}.type", "integer", rows_read, REFUSED, base=colours)
        moments = {**base, key: {"kind": "timestamp", "column": "moment"}}
        yield Entry(f"{key}.format", FORMAT, rows_read, 209, base=moments)


ENTRIES = (
    *text_entries(),
    *feature_entries(),
    *(
        Entry(
            f"logs.{name}_type",
            "integer",
            rows_read,
            REFUSED,
            base={**EVENT_TIMES, "logs.path": "LOGS/text/events_plain.csv"},
        )
        for name in ("user", "item")
    ),
    *(
        Entry(
            f"logs.{name}_type",
            "text",
            histories,
            becomes,
            base={**EVENT_TIMES, "logs.path": "LOGS/text/events_plain.csv", f"logs.{name}": "code"},
        )
        for name, becomes in (
            ("user", lambda found: {str(user): items for user, items in found.items()}),
            ("item", lambda found: {user: [str(item) for item in items] for user, items in found.items()}),
        )
    ),
    Entry("logs.time_format", FORMAT, rows_read, 209, base={"logs.path": "LOGS/text/events_plain.csv"}),
    Entry(
        "logs.history.time_format",
        FORMAT,
        rows_read,
        336 + 209,
        base={**SHOWN, "logs.history": {"path": "LOGS/text/past_plain.csv"}},
        world="impressions",
    ),
    Entry("logs.null_values", ["i03"], count("num_items"), 15, base={"logs.max_rejected_fraction": 1.0}),
)
