"""Packed histories and impressions: rows of a sequence dataset as flat arrays with offsets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.stream.columns import Column, Lists, concatenate_all


@dataclass(frozen=True)
class PackedImpressions:
    """The impressions of packed histories: history r owns those from starts[r] to ends[r]."""

    # (m,) int32 ids.
    items: np.ndarray
    # (m,) int64.
    times: np.ndarray
    # (m,) int64, number of events of the history before the impression.
    history_end: np.ndarray
    # By name: an entry per impression.
    labels: Mapping[str, np.ndarray]
    # By name: an entry per impression.
    features: Mapping[str, Column]
    # (rows,) int64.
    starts: np.ndarray
    # (rows,) int64.
    ends: np.ndarray


@dataclass(frozen=True)
class PackedHistories:
    """The histories of one row group: history r owns items[starts[r]:ends[r]].

    Its cuts are relative to starts[r], or in a dataset for ranking to impressions.starts[r].
    """

    # (n,) int32 ids.
    items: np.ndarray
    # (rows,) int64.
    starts: np.ndarray
    # (rows,) int64.
    ends: np.ndarray
    # (rows,) int64.
    train_end: np.ndarray
    # (rows,) int64.
    validation_end: np.ndarray
    # (rows,) Arrow array as in the logs, if it was requested.
    users: pa.Array | None
    # (n,) int64, if they were requested.
    times: np.ndarray | None = None
    # By name: an entry per event, if they were requested.
    features: Mapping[str, Column] = field(default_factory=dict)
    # By name: an entry per row, if they were requested.
    user_features: Mapping[str, Column] = field(default_factory=dict)
    # Impressions, if they were requested.
    impressions: PackedImpressions | None = None

    @cached_property
    def num_bytes(self) -> int:
        """Size of all arrays in bytes."""
        return _num_bytes(self)


def _num_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, PackedHistories | PackedImpressions | Lists):
        return sum(_num_bytes(getattr(value, entry.name)) for entry in fields(value))
    return 0


def joined(pieces: list[PackedHistories]) -> PackedHistories:
    """Join several row groups into one."""
    if len(pieces) == 1:
        return pieces[0]
    users = None if pieces[0].users is None else pa.concat_arrays([piece.users for piece in pieces])
    impressions = [piece.impressions for piece in pieces if piece.impressions is not None]
    return PackedHistories(
        items=np.concatenate([piece.items for piece in pieces]),
        **_stretches(pieces, [piece.items.size for piece in pieces]),
        train_end=np.concatenate([piece.train_end for piece in pieces]),
        validation_end=np.concatenate([piece.validation_end for piece in pieces]),
        users=users,
        times=None if pieces[0].times is None else np.concatenate([piece.times for piece in pieces]),  # type: ignore[misc]
        features=concatenate_all([piece.features for piece in pieces]),
        user_features=concatenate_all([piece.user_features for piece in pieces]),
        impressions=_joined_impressions(impressions) if impressions else None,
    )


def _joined_impressions(pieces: list[PackedImpressions]) -> PackedImpressions:
    return PackedImpressions(
        items=np.concatenate([piece.items for piece in pieces]),
        times=np.concatenate([piece.times for piece in pieces]),
        history_end=np.concatenate([piece.history_end for piece in pieces]),
        labels=concatenate_all([piece.labels for piece in pieces]),  # type: ignore[arg-type]
        features=concatenate_all([piece.features for piece in pieces]),
        **_stretches(pieces, [piece.items.size for piece in pieces]),
    )


def _stretches(pieces: list[Any], sizes: list[int]) -> dict[str, np.ndarray]:
    bases = np.concatenate(([0], np.cumsum(sizes)))
    return {
        name: np.concatenate([getattr(piece, name) + base for piece, base in zip(pieces, bases, strict=False)])
        for name in ("starts", "ends")
    }
