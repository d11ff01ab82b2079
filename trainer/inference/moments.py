"""Moments of requests: integers, dates or text, in the unit of a dataset's times."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from models.config import ModelConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.inputs import ticks_per_second
from trainer.data.logs.times import parse_iso
from trainer.errors import UserError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def moment_of(value: Any, manifest: Manifest, model: ModelConfig) -> int:
    """Return a moment in the unit of the dataset's times.

    Args:
        value: an integer in that unit; or a date, a datetime or ISO 8601 text, in UTC if it names no zone.
        manifest: the manifest of the dataset.
        model: the settings of the model, which may name the unit of integer times.

    Raises:
        UserError: the value is no moment, or nobody knows the unit of the dataset's times.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*", value):
        return int(value)
    microseconds = _microseconds(value)
    if manifest.source.get("time", {}).get("kind") == "timestamp":
        return microseconds
    return microseconds * ticks_per_second(manifest, model) // 10**6


def latest_time(manifest: Manifest) -> int:
    """Return the latest time of the logs of a dataset; 0 if it is not known."""
    return int(manifest.source.get("time", {}).get("last") or 0)


def _microseconds(value: Any) -> int:
    """Return the microseconds since 1970 in UTC."""
    match value:
        case datetime():
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return (moment - EPOCH) // MICROSECOND
        case date():
            return (datetime.combine(value, time(), UTC) - EPOCH) // MICROSECOND
        case np.datetime64() if not np.isnat(value):
            return int(value.astype("datetime64[us]").astype(np.int64))
        case str():
            try:
                return int(parse_iso(pa.array([value.strip()])).cast(pa.int64())[0].as_py())
            except pa.ArrowInvalid:
                pass
    raise UserError(
        f"at = {value!r}: must be an integer in the unit of the logs' times, a datetime, or ISO text such as 2024-05-01T12:00:00"
    )


def moments_of(at: Any, users: pa.Array, manifest: Manifest, model: ModelConfig) -> np.ndarray | None:
    """Return the moment of each user's request, (B,) int64; None if `at` is None.

    Args:
        at: one moment for all users, or a mapping from users to moments.
        users: (B,) values as in the logs.
        manifest: as for `moment_of`.
        model: as for `moment_of`.
    """
    if at is None:
        return None
    if not isinstance(at, Mapping):
        return np.full(len(users), moment_of(at, manifest, model), np.int64)
    missing = [user for user in users.to_pylist() if user not in at]
    if missing:
        raise UserError(f"at: has no moment for {len(missing)} of {len(users)} users, such as {missing[0]!r}")
    return np.asarray([moment_of(at[user], manifest, model) for user in users.to_pylist()], np.int64)
