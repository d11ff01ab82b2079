"""Evaluation in which each held-out event is a query of its own: metrics of users from those of their queries. No torch."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.evaluation.next_item.metrics import user_metrics


def metrics_of_users(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, ks: list[int], each: bool
) -> dict[str, np.ndarray]:
    """Return the metrics of each user.

    Args:
        targets: (T,) items.
        target_ranks: (T,) their places.
        offsets: (users + 1,) bounds of each user's targets.
        ks: the cut-offs.
        each: whether each target is a query of its own. A user's metric is then the mean over the user's queries.
    """
    if not each:
        return user_metrics(targets, target_ranks, offsets, ks)
    of_queries = user_metrics(targets, target_ranks, np.arange(targets.size + 1), ks)
    counts = np.diff(offsets)
    return {name: np.add.reduceat(values, offsets[:-1]) / counts for name, values in of_queries.items()}


def one_row_per_user(queries: pa.Table) -> pa.Table:
    """Return rows of queries, sorted by row_id, as one row per user: lists are joined, other values are those of the first.

    Lists of top items are joined too: a user has as many lists as queries, one after another.
    """
    rows = queries.column("row_id").to_numpy()
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if rows.size else np.zeros(0, np.int64)
    bounds = np.append(starts, rows.size)
    columns = {}
    for name in queries.column_names:
        column = queries.column(name).combine_chunks()
        if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
            columns[name] = column.take(pa.array(starts))
            continue
        lengths = pc.list_value_length(column).to_numpy()
        offsets = np.append(0, np.cumsum(lengths))[bounds]
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column.flatten())
    return pa.table(columns)
