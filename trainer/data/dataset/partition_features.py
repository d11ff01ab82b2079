"""Features of a partition's events and users: encoded for storage, and fitted on the training part.

Only kept events are encoded, so nothing is counted for rejected ones.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.features import Losses, NumericFit, encode
from trainer.data.dataset.grouping import Bools, Ints
from trainer.data.dataset.hashing import Hashes, hash_ids, mix, whole
from trainer.data.dataset.partition_events import GroupPlan, PartitionEvents
from trainer.data.logs.columns import SourceName
from trainer.data.logs.config import NumericFeatureConfig

REPEATED_USER = "duplicate user"


@dataclass(frozen=True)
class EventFeatures:
    """Encoded features of the new events."""

    # By key: stored values of the new events, in order.
    columns: dict[str, pa.Array]
    # By key: statistics of numbers on the training part.
    fits: dict[str, NumericFit]
    # By key: lost values.
    losses: dict[str, Losses]

    @classmethod
    def of(
        cls,
        table: pa.Table,
        kind: PartitionEvents,
        plan: GroupPlan,
        split: npt.NDArray[np.int8] | None,
        users: pa.Array,
    ) -> "EventFeatures":
        """Encode the features of the kept new events.

        Args:
            table: new events, in the order of the log.
            kind: the sorted events.
            plan: settings and vocabularies.
            split: split of each event; None if numbers are not fitted.
            users: users of the partition by row.
        """
        columns = {}
        fits = {}
        losses = {}
        keys: Hashes | None = None
        for spec in plan.of("event"):
            # Only kept events are encoded, so that nothing is counted for rejected ones.
            encoded = encode(spec, whole(table.column(spec.key)).take(kind.new_order), plan.ids)
            columns[spec.key] = encoded.column
            losses[spec.key] = encoded.losses
            if isinstance(spec.config, NumericFeatureConfig) and plan.fit and split is not None:
                keys = _event_keys(kind, users) if keys is None else keys
                trains = split[kind.is_new] == 0
                numbers = columns[spec.key].to_numpy(zero_copy_only=False)
                fits[spec.key] = NumericFit.of(spec.config, numbers[trains], keys[kind.is_new][trains])
        return cls(columns, fits, losses)


def _event_keys(kind: PartitionEvents, users: pa.Array) -> Hashes:
    """Return a hash of (user, position in the history) for each event."""
    place = np.arange(kind.codes.size) - kind.sorted.offsets[kind.codes]
    return mix(hash_ids(users)[kind.codes] ^ mix(place.astype(np.uint64)))


@dataclass(frozen=True)
class UserFeatures:
    """Encoded features of users."""

    # By key: a stored value for every row; null for rows that existed before and keep their values.
    columns: dict[str, pa.Array]
    # By key: statistics of numbers on the training part.
    fits: dict[str, NumericFit]
    # By key: lost values.
    losses: dict[str, Losses]
    # Positions of rejected rows in the users' table, by source and reason.
    rejected: dict[tuple[SourceName, str], Ints]

    @classmethod
    def of(
        cls, table: pa.Table | None, users: pa.Array, num_old: int, plan: GroupPlan, trains: Bools
    ) -> "UserFeatures":
        """Encode the features of new users.

        Args:
            table: rows of the users' source; None without one.
            users: users of the partition by row.
            num_old: rows that existed before.
            plan: settings and vocabularies.
            trains: mask of the users with training events.
        """
        specs = plan.of("user")
        if table is None:
            return cls({}, {}, {}, {})
        kept, repeated = first_of_each(table.column("user"))
        place = pc.index_in(users.slice(num_old), value_set=whole(table.column("user")).take(kept))
        columns = {}
        fits = {}
        losses = {}
        for spec in specs:
            # Only joined rows are encoded, so that the counts are those of the dataset's users.
            encoded = encode(spec, whole(table.column(spec.key)).take(kept).take(place), plan.ids)
            columns[spec.key] = pa.concat_arrays([pa.nulls(num_old, encoded.column.type), encoded.column])
            losses[spec.key] = encoded.losses
            if isinstance(spec.config, NumericFeatureConfig) and plan.fit:
                numbers = encoded.column.to_numpy(zero_copy_only=False)
                fits[spec.key] = NumericFit.of(spec.config, numbers[trains], hash_ids(users)[trains])
        rejected: dict[tuple[SourceName, str], Ints] = {}
        if repeated.size:
            rejected[("users", REPEATED_USER)] = repeated
        return cls(columns, fits, losses, rejected)


def first_of_each(values: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """Return positions of the first row of every distinct value, and of all other rows, both ascending."""
    codes = whole(values).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    first.sort()
    repeated = np.ones(codes.size, np.bool_)
    repeated[first] = False
    return pa.array(first), np.flatnonzero(repeated)
