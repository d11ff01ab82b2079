"""Entries of [logs] and [split]: which files and columns are read, which rows are kept, what features become."""

from collections.abc import Iterator

import numpy as np

from tests.settings.entry import Entry, Settings
from tests.settings.logs import DAY, NUM_USERS, START
from tests.settings.observations.logs import (
    count,
    cuts,
    cuts_at,
    histories,
    kept_share,
    labels,
    longest,
    longest_value,
    owners,
    rejected,
    rows_read,
    thing,
    values,
)

LENIENT: Settings = {"logs.max_rejected_fraction": 1.0}
ITEMS: Settings = {
    "logs.items": {"path": "LOGS/items.parquet", "features": {"thing": {"kind": "timestamp", "column": "moment"}}}
}
USERS: Settings = {
    "logs.users": {"path": "LOGS/users.parquet", "features": {"thing": {"kind": "timestamp", "column": "moment"}}}
}
TIMES = {"validation_time": START + 3 * DAY, "test_time": START + 5 * DAY}
PAST: Settings = {"logs.history": {"path": "LOGS/past.parquet"}}

FILES = (
    Entry("logs.path", "LOGS/half.parquet", rows_read, 104),
    Entry("logs.format", "parquet", rows_read, 209, base={"logs.path": "LOGS/events.table"}),
    Entry("logs.user", "other_user", count("num_users"), 10),
    Entry("logs.item", "other_item", count("num_items"), 5),
    Entry("logs.time", "other_time", histories, lambda found: {user: items[::-1] for user, items in found.items()}),
    Entry("logs.max_unreadable_files", 1, rows_read, 209, base={"logs.path": "LOGS/broken"}),
)

ROWS = (
    Entry("logs.duplicates", "keep", count("rows_kept"), 209),
    Entry("logs.negative_ids", "keep", count("num_users"), NUM_USERS, base={**LENIENT, "logs.user": "user_number"}),
    Entry("logs.earliest_time", START + 2 * DAY, rejected, ["time too early"], base=LENIENT),
    Entry("logs.latest_time", START + 2 * DAY, rejected, ["duplicate", "time too late"], base=LENIENT),
    Entry("logs.max_events_per_user", 4, longest, 4, base=LENIENT),
    Entry("logs.max_rejected_fraction", 1.0, rows_read, 209, base={"logs.earliest_time": START + 2 * DAY}),
)

IMPRESSIONS = (
    Entry(
        "logs.labels", ["click", "like"], labels, ["click", "like"], besides={"logs.outcomes": []}, world="impressions"
    ),
    Entry(
        "logs.outcomes",
        ["number"],
        refused="logs.features.number reads column 'number', which is among logs.outcomes",
        base={"logs.features.number": {"kind": "numeric"}},
        world="impressions",
    ),
    Entry("logs.history_label", "like", histories, base={"logs.labels": ["click", "like"]}, world="impressions"),
    Entry(
        "logs.history", PAST["logs.history"], count("history_events"), lambda found: found + 208, world="impressions"
    ),
    Entry("logs.negative_sampling_rate", 0.25, kept_share, 0.25, world="impressions"),
    *(
        Entry(f"logs.history.{name}", value, histories, base={**PAST, **LENIENT}, world="impressions")
        for name, value in (
            ("path", "LOGS/half_past.parquet"),
            ("user", "other_user"),
            ("item", "other_item_id"),
            ("time", "other_time"),
        )
    ),
    Entry(
        "logs.history.format",
        "parquet",
        rows_read,
        336 + 209,
        base={"logs.history": {"path": "LOGS/past.table"}},
        world="impressions",
    ),
)

OWNERS = (
    Entry("logs.items", ITEMS["logs.items"], owners, ["item"]),
    Entry("logs.users", USERS["logs.users"], owners, ["user"]),
    *(
        entry
        for key, column, base in (("logs.items", "item", ITEMS), ("logs.users", "user", USERS))
        for entry in (
            Entry(f"{key}.path", f"LOGS/half_{column}s.parquet", values, base=base),
            Entry(f"{key}.format", "parquet", rows_read, 209, base={**base, f"{key}.path": f"LOGS/{column}s.table"}),
            Entry(f"{key}.{column}", f"other_{column}_id", values, base=base),
        )
    ),
)


def features(owner: str) -> Iterator[Entry]:
    """Yield entries of all kinds of features. owner: the table that the features are in."""
    key, base = f"{owner}.features.thing", {"logs.items": ITEMS, "logs.users": USERS}.get(owner, {})

    def of(**settings: object) -> Settings:
        return {**base, key: settings}

    tally = of(kind="numeric", column="tally")
    yield Entry(f"{key}.kind", "categorical", thing("kind"), "categorical", base=tally)
    yield Entry(f"{key}.kind", "numeric", thing("kind"), "numeric", base=of(kind="categorical", column="tally"))
    yield Entry(f"{key}.kind", "timestamp", thing("kind"), "timestamp", base=of(kind="categorical", column="moment"))
    vector = {f"{key}.column": "vector", f"{key}.dim": 3}
    yield Entry(f"{key}.kind", "vector", thing("kind"), "vector", base=tally, besides=vector)
    for kind, first, second in (
        ("categorical", "colour", "shade"),
        ("numeric", "number", "tally"),
        ("timestamp", "moment", "later"),
    ):
        yield Entry(f"{key}.column", second, values, base=of(kind=kind, column=first))
    yield Entry(f"{key}.column", "far", values, base=of(kind="vector", column="vector", dim=3))
    yield Entry(
        f"{key}.dim",
        5,
        thing("dim"),
        5,
        base=of(kind="vector", column="vector", dim=3),
        besides={f"{key}.column": "wide"},
    )
    colour = of(kind="categorical", column="colour")
    words = of(kind="categorical", column="words", separator="|")
    yield Entry(f"{key}.table", "paint", thing("table"), "paint", base=colour)
    yield Entry(f"{key}.separator", "|", longest_value, 3, base=words | {f"{key}.separator": "-"})
    yield Entry(f"{key}.max_values", 2, longest_value, 2, base=words)
    number = of(kind="numeric", column="number", scale="none")
    yield Entry(f"{key}.transform", "log1p", values, lambda before: np.log1p(np.asarray(before)).tolist(), base=number)
    yield Entry(
        f"{key}.scale",
        "none",
        thing("fitted"),
        {"transform": "none", "mean": 0.0, "std": 1.0},
        base=of(kind="numeric", column="number"),
    )
    yield Entry(f"{key}.buckets", 4, thing("num_rows"), 5, base=number)
    yield Entry(f"{key}.table", "bins", thing("table"), "bins", base=number | {f"{key}.buckets": 4})


LAST_TWO = {"kind": "last_n", "num_targets": 2}
HOLDOUT = {"kind": "user_holdout", "test_share": 0.3, "validation_share": 0.3}

SPLIT = (
    Entry(
        "split.kind",
        "global_time",
        cuts,
        formula=cuts_at(3, 5),
        besides={f"split.{name}": time for name, time in TIMES.items()},
    ),
    Entry("split.kind", "leave_one_out", cuts, base={"split": {"kind": "global_time", **TIMES}}, besides={"split": {}}),
    Entry(
        "split.validation_time",
        START + 4 * DAY,
        cuts,
        formula=cuts_at(4, 5),
        base={"split": {"kind": "global_time", **TIMES}},
    ),
    Entry(
        "split.test_time",
        START + 4 * DAY,
        cuts,
        formula=cuts_at(3, 4),
        base={"split": {"kind": "global_time", **TIMES}},
    ),
    Entry("split.min_events", 4, count("users_not_evaluated"), 1),
    Entry(
        "split.kind", "last_n", count("test_targets"), lambda number: 2 * (number - 2), besides={"split.num_targets": 2}
    ),
    Entry("split.num_targets", 3, count("test_targets"), lambda number: number * 3 // 2, base={"split": LAST_TWO}),
    Entry("split.min_events", 9, count("users_not_evaluated"), base={"split": LAST_TWO}),
    Entry("split.kind", "user_holdout", count("train_events")),
    Entry("split.num_targets", 2, count("test_targets"), lambda number: 2 * number, base={"split": HOLDOUT}),
    Entry("split.test_share", 0.5, count("test_targets"), base={"split": HOLDOUT}),
    Entry("split.validation_share", 0.6, count("validation_targets"), base={"split": HOLDOUT}),
    Entry("split.validation_share", 0.5, count("validation_targets")),
)

ENTRIES = (
    *FILES,
    *ROWS,
    *IMPRESSIONS,
    *OWNERS,
    *features("logs"),
    *features("logs.items"),
    *features("logs.users"),
    *SPLIT,
)
