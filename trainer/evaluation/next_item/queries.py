"""Evaluation in which each held-out event is a query of its own: figures of users from those of their queries. No torch."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.evaluation.next_item.figures import Figures, columns_of
from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import catalogue_metrics
from trainer.evaluation.next_item.slices import USER_PREFIX
from trainer.evaluation.next_item.user_values import UserValues, intervals, means


def columns_of_queries(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, lists: RankedLists, ks: list[int]
) -> dict[str, UserValues]:
    """Return the metrics that are means over users, where each target is a query: a user's value is the mean over the queries.

    Args:
        targets: (T,) packed ids of the held-out items, each of a query.
        target_ranks: (T,) packed, from 1; 0 where a target cannot be ranked.
        offsets: (U + 1,) bounds of the users' targets.
        lists: the first items of each query's ranking, (T, at least max(ks)).
        ks: the cut-offs.
    """
    of_queries = columns_of(targets, target_ranks, np.arange(targets.size + 1), lists, ks)
    return {name: _of_users(values, offsets) for name, values in of_queries.items()}


def figures_of_queries(columns: dict[str, UserValues], lists: RankedLists, ks: list[int]) -> Figures:
    """Return all metrics of a ranking in which each target is a query.

    Metrics of all lists together have no interval: lists of one user are not independent.

    Args:
        columns: the values of users (columns_of_queries).
        lists: the first items of each query's ranking, (T, at least max(ks)).
        ks: the cut-offs.
    """
    of_catalogue = catalogue_metrics(lists, ks)
    metrics = means(columns) | {name: value.value for name, value in of_catalogue.items()}
    return Figures(columns, metrics, intervals(columns))


def _of_users(values: UserValues, offsets: np.ndarray) -> UserValues:
    """Return the values of users: the weighted mean over their queries, with the mean weight of these."""
    counts = np.diff(offsets)
    if values.weights is None:
        return UserValues(np.add.reduceat(values.values, offsets[:-1]) / counts, values.within)
    weights = np.add.reduceat(values.weights, offsets[:-1])
    above = np.add.reduceat(values.weights * values.values, offsets[:-1])
    mean = np.divide(above, weights, out=np.zeros_like(above), where=weights > 0.0)
    return UserValues(mean, values.within, weights / counts)


def one_row_per_user(queries: pa.Table) -> pa.Table:
    """Return rows of queries, sorted by row_id, as one row per user: lists are joined, other values are those of the first.

    Lists of top items are joined too: a user has as many lists as queries, one after another. Features of users are not.
    """
    rows = queries.column("row_id").to_numpy()
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if rows.size else np.zeros(0, np.int64)
    bounds = np.append(starts, rows.size)
    columns = {}
    for name in queries.column_names:
        column = queries.column(name).combine_chunks()
        is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if not is_list or name.startswith(USER_PREFIX):
            columns[name] = column.take(pa.array(starts))
            continue
        lengths = pc.list_value_length(column).to_numpy()
        offsets = np.append(0, np.cumsum(lengths))[bounds]
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column.flatten())
    return pa.table(columns)
