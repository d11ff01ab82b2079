"""Aggregates of attention as Arrow tables."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from trainer.explanation.aggregates.groups import Grouping
from trainer.explanation.aggregates.sums import AttentionSums, group_shares, means


def map_table(sums: AttentionSums) -> pa.Table:
    """Return a row per map: layer, head (from 1), channel, and the means of `MapMeans`."""
    rows = means(sums)
    columns = {
        "layer": pa.array([row.map.layer for row in rows], pa.string()),
        "head": pa.array([row.map.head + 1 for row in rows], pa.int32()),
        "channel": pa.array([row.map.channel for row in rows], pa.string()),
        "num_histories": pa.array([row.num_histories for row in rows], pa.int64()),
    }
    for name in ("length", "entropy", "entropy_deviation", "effective", "effective_deviation", "largest"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.float64())
    return pa.table(columns)


def group_table(sums: AttentionSums, groupings: Sequence[Grouping]) -> pa.Table:
    """Return a row per map and group: layer, head (from 1), channel, grouping, group, attention, events.

    "attention" is the mean share of the weight on the events of the group, "events" the mean share of these events.
    """
    tables = []
    for grouping in groupings:
        attention, uniform = group_shares(sums, grouping.name)
        kept = np.flatnonzero(uniform.sum(0) > 0)
        rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(len(sums.maps)), kept, indexing="ij"))
        names = [sums.maps[row] for row in rows.tolist()]
        tables.append(
            pa.table(
                {
                    "layer": pa.array([name.layer for name in names], pa.string()),
                    "head": pa.array([name.head + 1 for name in names], pa.int32()),
                    "channel": pa.array([name.channel for name in names], pa.string()),
                    "grouping": pa.array([grouping.name] * rows.size, pa.string()),
                    "group": pa.array([grouping.labels[column] for column in columns.tolist()], pa.string()),
                    "attention": attention[rows, columns],
                    "events": uniform[rows, columns],
                }
            )
        )
    return pa.concat_tables(tables)
