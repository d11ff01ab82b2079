"""Unique ids of arrays with repeated ids. Numpy only."""

import numpy as np


def unique_ids(*ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the unique ids of all arrays, ascending (U,), and for every array the index of its ids among them, int64.

    Ids are not negative.
    """
    together = np.concatenate(ids)
    limit = int(together.max(initial=-1)) + 1
    if limit <= 16 * together.size:
        # The ids are dense: a flag for each of the table's rows replaces a sort.
        occurs = np.zeros(limit, dtype=np.bool_)
        occurs[together] = True
        values = np.flatnonzero(occurs)
        places = np.empty(limit, dtype=np.int64)
        places[values] = np.arange(values.size)
        return values, [places.take(part) for part in ids]
    # An id and its place in one number: numpy sorts numbers several times faster than it argsorts them.
    keys = np.sort((together.astype(np.int64) << 32) | np.arange(together.size))
    ordered = keys >> 32
    place = keys & 0xFFFFFFFF
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    index = np.empty(together.size, dtype=np.int64)
    index[place] = np.cumsum(is_first) - 1
    return ordered[is_first], np.split(index, np.cumsum([part.size for part in ids])[:-1])


def unique_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique integers of an array, and the index of its entries among them. Any integers, such as raw ids."""
    if values.size and (values.min() < 0 or values.max() >= 2**31):
        distinct, index = np.unique(values, return_inverse=True)
        return distinct, index
    distinct, (index,) = unique_ids(values)
    return distinct, index


def merge_ids(known: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, index of `values` into them). The ids are `known` (ascending and unique), followed by the other values.

    Every index into `known` stays valid.
    """
    distinct, index = unique_values(values)
    if not known.size or not distinct.size:
        return (known, index) if known.size else (distinct.astype(np.int64), index)
    place = np.searchsorted(known, distinct)
    is_new = known[np.minimum(place, known.size - 1)] != distinct
    new = distinct[is_new]
    if not new.size:
        return known, place[index]
    place[is_new] = known.size + np.arange(new.size)
    return np.concatenate((known, new)), place[index]
