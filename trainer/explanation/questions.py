"""Questions that are explained: histories of which a model scores one target each, as packed arrays.

A question holds the events on which the score depends: the most recent ones, as the model cuts histories. Everything is
vectorised, so that one call can score many variants of many questions.

Shapes: B questions, N events of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from models.features.time import Earlier
from trainer.data.stream.columns import Column, stretches, take_all
from trainer.data.stream.packed import PackedHistories


@dataclass(frozen=True)
class Questions:
    """B questions: question b owns the events offsets[b] to offsets[b + 1], the oldest first."""

    keys: np.ndarray
    """(B,) int64, number of each question. Random draws depend on it alone, so they do not depend on batches or ranks."""
    users: pa.Array
    """(B,) users, as in the logs."""
    offsets: np.ndarray
    """(B + 1,) int64 from 0."""
    items: np.ndarray
    """(N,) int32 ids of the events."""
    targets: np.ndarray
    """(B,) int64 ids of the items that are scored."""
    times: np.ndarray | None = None
    """(N,) int64 in the unit of the logs; None if the histories have no times."""
    requested_at: np.ndarray | None = None
    """(B,) int64, times of the requests or impressions; None for a next-item model without times."""
    features: Mapping[str, Column] = field(default_factory=dict)
    """Columns of the events by name."""
    user_features: Mapping[str, Column] = field(default_factory=dict)
    """Columns of the users by name, an entry per question."""
    target_features: Mapping[str, Column] = field(default_factory=dict)
    """For rankers, features of the impressions by name, an entry per question."""
    earlier: Earlier | None = None
    """The event before the first one of each question, of histories that were cut; None without times."""
    zeroed: np.ndarray | None = None
    """(N,) bool, events with a vector of zeros (trainer.explanation.removal); None: none of them."""

    @property
    def size(self) -> int:
        """Number of questions."""
        return int(self.targets.size)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of events of each question, (B,) int64."""
        lengths: np.ndarray = np.diff(self.offsets)
        return lengths

    @cached_property
    def owner(self) -> np.ndarray:
        """Question of each event, (N,) int64."""
        owner: np.ndarray = np.repeat(np.arange(self.size), self.lengths)
        return owner

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each event in its question, from 0 for the oldest, (N,) int64."""
        places: np.ndarray = np.arange(self.items.size) - self.offsets[:-1][self.owner]
        return places

    def take(self, rows: np.ndarray) -> "Questions":
        """Return the questions with these numbers, in this order. A question can be taken several times."""
        events, offsets = stretches(self.offsets[rows], self.offsets[rows + 1])
        taken = self._with_events(events, offsets)
        earlier = self.earlier
        return replace(
            taken,
            keys=self.keys[rows],
            users=self.users.take(pa.array(rows)),
            targets=self.targets[rows],
            requested_at=None if self.requested_at is None else self.requested_at[rows],
            user_features=take_all(self.user_features, rows),
            target_features=take_all(self.target_features, rows),
            earlier=None if earlier is None else Earlier(earlier.exists[rows], earlier.times[rows]),
        )

    def part(self, start: int, stop: int) -> "Questions":
        """Return the questions start .. stop - 1."""
        return self.take(np.arange(start, min(stop, self.size)))

    def only(self, kept: np.ndarray) -> "Questions":
        """Return the questions with some of their events.

        kept: (N,) bool.
        """
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept)))[self.offsets]
        return self._with_events(np.flatnonzero(kept), offsets)

    def with_targets(self, targets: np.ndarray, features: Mapping[str, Column] | None = None) -> "Questions":
        """Return the same questions about other items.

        Args:
            targets: (B,) item ids.
            features: for rankers, the features of their impressions; None: the same as before.
        """
        return replace(
            self,
            targets=targets.astype(np.int64),
            target_features=self.target_features if features is None else features,
        )

    def _with_events(self, events: np.ndarray, offsets: np.ndarray) -> "Questions":
        return replace(
            self,
            offsets=offsets,
            items=self.items[events],
            times=None if self.times is None else self.times[events],
            features=take_all(self.features, events),
            zeroed=None if self.zeroed is None else self.zeroed[events],
        )


def ask(
    packed: PackedHistories,
    rows: np.ndarray,
    low: np.ndarray,
    targets: np.ndarray,
    at: np.ndarray | None,
    max_events: int,
    target_features: Mapping[str, Column] | None = None,
    keys: np.ndarray | None = None,
) -> Questions:
    """Return questions about the first events of packed rows.

    Args:
        packed: packed histories. Events from `low` on are not used.
        rows: (B,) rows among them. A row can be used several times.
        low: (B,) number of events before the request.
        targets: (B,) ids of the items that are scored.
        at: (B,) times of the requests or impressions; None for a next-item model without times.
        max_events: number of events, the most recent ones, that a score depends on (`Explained.max_events`).
        target_features: for rankers, features of the impressions, an entry per question.
        keys: (B,) int64 numbers of the questions; None: `rows`.
    """
    starts = packed.starts[rows]
    begin = np.maximum(0, low - max_events)
    events, offsets = stretches(starts + begin, starts + low)
    earlier = None
    if packed.times is not None and packed.times.size:
        exists = begin > 0
        earlier = Earlier(exists, np.where(exists, packed.times[np.maximum(0, starts + begin - 1)], 0))
    users = pa.nulls(rows.size) if packed.users is None else packed.users.take(pa.array(rows))
    return Questions(
        keys=(rows if keys is None else keys).astype(np.int64),
        users=users,
        offsets=offsets,
        items=packed.items[events],
        targets=targets.astype(np.int64),
        times=None if packed.times is None else packed.times[events],
        requested_at=at,
        features=take_all(packed.features, events),
        user_features=take_all(packed.user_features, rows),
        target_features=dict(target_features or {}),
        earlier=earlier,
    )
