"""KuaiRand by Kuaishou and USTC: impressions of short videos with all their feedback. Times are Unix milliseconds.

video_features_statistic_*.csv is not read: it holds means over the whole month, which include events after an
impression. For the same reason `visible_status` is left out, the state of a video when the set was published.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.public_sets.columns import code_as_text, split_text
from trainer.data.public_sets.source import SourceFolder, read_csv, read_parquet
from trainer.data.public_sets.tables import FLAG, FLOAT, INT, TEXT, TEXTS, Table, events, record_batch, schema_of

_FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")
_MILLISECONDS = ("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time")
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_RANGES = tuple(f"{name}_range" for name in _USER_NUMBERS)
_USER_CODES = (
    *("is_lowactive_period", "is_live_streamer", "is_video_author"),
    *(f"onehot_feat{number}" for number in range(18)),
)

IMPRESSIONS = pa.schema(
    [("user_id", INT), ("item_id", INT), ("time", INT), ("date", INT), ("hourmin", INT), ("tab", TEXT), ("is_rand", FLAG)]
    + [(name, FLAG) for name in _FLAGS]
    + [(name, INT) for name in _MILLISECONDS]
)  # fmt: skip
ITEMS = schema_of(
    item_id=INT,
    author_id=TEXT,
    video_type=TEXT,
    upload_type=TEXT,
    upload_day=INT,
    music_id=TEXT,
    music_type=TEXT,
    video_duration=FLOAT,
    tag=TEXTS,
)
USERS = pa.schema(
    [("user_id", INT), ("user_active_degree", TEXT)]
    + [(name, INT) for name in _USER_NUMBERS]
    + [(name, TEXT) for name in (*_USER_RANGES, *_USER_CODES)]
)
HISTORY = schema_of(user_id=INT, item_id=INT, time=INT)

_LOG_COLUMNS = ["user_id", "video_id", "time_ms", *(name for name in IMPRESSIONS.names[3:])]
_VERSION = re.compile(r"_(pure|1k|27k)(_part\d+)?\.csv$")
_LOGS = ("log_standard_*.csv", "log_random_*.csv")


def read(source: SourceFolder) -> list[Table]:
    """Return the logs, standard and random, with the basic features of users and videos, as in the folder data/."""
    for pattern in _LOGS:
        source.some(pattern)
    logs = source.some(*_LOGS)
    videos = source.some("video_features_basic_*.csv")
    users = source.some("user_features_*.csv")
    versions = {match[1] for path in (*logs, *videos, *users) if (match := _VERSION.search(path.name))}
    if len(versions) > 1:
        raise source.wrong(
            f"it mixes the versions {' and '.join(sorted(versions))}, which number users and videos differently"
        )
    return [
        events(IMPRESSIONS, (batch for path in logs for batch in _impressions_csv(path))),
        Table("items", ITEMS, (batch for path in videos for batch in _items(path))),
        Table("users", USERS, (batch for path in users for batch in _users_csv(path))),
    ]


def read_valtest(source: SourceFolder) -> list[Table]:
    """Return a processed KuaiRand-Pure: impressions of two later periods, and each user's earlier history as one list."""
    val = source.one("val.parquet")
    test = source.one("test.parquet")
    histories = source.one("user_sequences.parquet")
    videos = source.one("video_features_basic_pure.csv")
    users = source.one("user_features.parquet")
    return [
        Table("impressions-val", IMPRESSIONS, _impressions_parquet(val)),
        Table("impressions-test", IMPRESSIONS, _impressions_parquet(test)),
        Table("history", HISTORY, _history(histories)),
        Table("items", ITEMS, _items(videos)),
        Table("users", USERS, _users_parquet(users)),
    ]


def _impressions_csv(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_csv(path, dict.fromkeys(_LOG_COLUMNS, INT)):
        yield _impressions(batch)


def _impressions_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield impressions without columns that were derived from the feedback or joined from the videos' features."""
    for batch in read_parquet(path, _LOG_COLUMNS):
        yield _impressions(batch.select(_LOG_COLUMNS))


def _impressions(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = dict(zip(IMPRESSIONS.names, batch.columns, strict=True))
    return record_batch(IMPRESSIONS, {**columns, "tab": code_as_text(columns["tab"])})


def _history(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield one row per element of watch_seq. Only the last time is known, so times are 1 ms apart and end there."""
    for batch in read_parquet(path, ["user_id", "last_time_ms", "watch_seq"]):
        watched = batch.column("watch_seq")
        length = np.asarray(pc.fill_null(pc.list_value_length(watched), 0), np.int64)
        end = np.cumsum(length)
        places_from_end = np.repeat(end, length) - 1 - np.arange(end[-1] if len(end) else 0)
        row = pa.array(np.repeat(np.arange(batch.num_rows), length))
        last_time = batch.column("last_time_ms").take(row)
        yield record_batch(
            HISTORY,
            {
                "user_id": batch.column("user_id").take(row),
                "item_id": watched.flatten(),
                "time": pc.subtract(last_time, pa.array(places_from_end)),
            },
        )


def _items(path: Path) -> Iterator[pa.RecordBatch]:
    types = {
        **dict.fromkeys(("video_id", "author_id", "music_id"), INT),
        **dict.fromkeys(("video_type", "upload_type", "tag"), TEXT),
        **dict.fromkeys(("music_type", "video_duration"), FLOAT),
        "upload_dt": pa.date32(),
    }
    for batch in read_csv(path, types):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        codes = {name: code_as_text(columns[name]) for name in ("author_id", "music_id", "music_type")}
        derived = {
            "item_id": columns["video_id"],
            "upload_day": columns["upload_dt"].cast(pa.int32()),
            "tag": split_text(columns["tag"], ","),
        }
        yield record_batch(ITEMS, {**columns, **codes, **derived})


def _users_csv(path: Path) -> Iterator[pa.RecordBatch]:
    types = {
        **dict.fromkeys(("user_id", *_USER_NUMBERS), INT),
        **dict.fromkeys(("user_active_degree", *_USER_RANGES), TEXT),
        **dict.fromkeys(_USER_CODES, FLOAT),  # some are written as 1.0
    }
    for batch in read_csv(path, types):
        yield _users(batch)


def _users_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    for batch in read_parquet(path, USERS.names):
        yield _users(batch)


def _users(batch: pa.RecordBatch) -> pa.RecordBatch:
    codes = {name: code_as_text(batch.column(name)) for name in _USER_CODES}
    return record_batch(USERS, {**dict(zip(batch.schema.names, batch.columns, strict=True)), **codes})
