"""Ids that occur several times, asked for once. Numpy only."""

import numpy as np


def distinct_ids(*ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ids (none negative) that occur, ascending, each once (U,), and for every array the places of its ids there; int64."""
    wanted = np.concatenate(ids)
    limit = int(wanted.max(initial=-1)) + 1
    if limit <= 16 * wanted.size:
        # Few rows for so many ids: a flag for each of the table's rows, and nothing is sorted.
        found = np.zeros(limit, dtype=np.bool_)
        found[wanted] = True
        values = np.flatnonzero(found)
        places = np.empty(limit, dtype=np.int64)
        places[values] = np.arange(values.size)
        return values, [places.take(part) for part in ids]
    # An id and its place in one number: numpy sorts numbers several times faster than it sorts places by numbers.
    keys = np.sort((wanted.astype(np.int64) << 32) | np.arange(wanted.size))
    ordered, place = keys >> 32, keys & 0xFFFFFFFF
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    index = np.empty(wanted.size, dtype=np.int64)
    index[place] = np.cumsum(is_first) - 1
    return ordered[is_first], np.split(index, np.cumsum([part.size for part in ids])[:-1])


def each_once(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for a single array of any integers, such as the raw ids of a table whose rows are settled later."""
    if values.size and (values.min() < 0 or values.max() >= 2**31):
        distinct, index = np.unique(values, return_inverse=True)
        return distinct, index
    distinct, (index,) = distinct_ids(values)
    return distinct, index


def joined_ids(known: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, index of `values` into them), where ids are `known` (ascending, each once) and behind them what else occurs.

    So whatever points at places of `known` stays right.
    """
    distinct, index = each_once(values)
    if not known.size or not distinct.size:
        return (known, index) if known.size else (distinct.astype(np.int64), index)
    place = np.searchsorted(known, distinct)
    is_new = known[np.minimum(place, known.size - 1)] != distinct
    new = distinct[is_new]
    if not new.size:
        return known, place[index]
    place[is_new] = known.size + np.arange(new.size)
    return np.concatenate((known, new)), place[index]
