"""Ids asked for once, against Python's sets."""

import numpy as np
import pytest

from models.features.unique import distinct_ids, each_once, joined_ids

NOTHING = np.zeros(0, np.int64)
WIDE = [2**31 - 1, 2**31, 2**40, -1, -(2**63), 2**63 - 1]


@pytest.mark.parametrize("limit", [1, 10, 10**6])  # flags for every row, and sorting
@pytest.mark.parametrize("seed", range(3))
def test_every_id_is_there_once_and_can_be_found(seed: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    parts = [
        random.integers(0, limit, size=n).astype(kind) for n, kind in ((20, np.int64), (0, np.int32), (7, np.int32))
    ]
    values, places = distinct_ids(*parts)
    assert values.tolist() == sorted({value for part in parts for value in part.tolist()})
    assert [values[place].tolist() for place in places] == [part.tolist() for part in parts]


@pytest.mark.parametrize("values", [[], [3, 1, 3], [0], WIDE * 2, [5, *WIDE]], ids=str)
def test_any_integers_will_do(values: list[int]) -> None:
    distinct, place = each_once(np.asarray(values, np.int64))
    assert distinct.tolist() == sorted(set(values))
    assert distinct[place].tolist() == values


@pytest.mark.parametrize("known", [[], [4], [0, 2, 7, 9], list(range(30)), sorted(WIDE)], ids=str)
@pytest.mark.parametrize("values", [[], [4], [31, 2, 2, 0, 31, 8], [9, 7], [*WIDE, 1, 1]], ids=str)
def test_known_values_keep_their_position(known: list[int], values: list[int]) -> None:
    ids, place = joined_ids(np.asarray(known, np.int64), np.asarray(values, np.int64))
    assert ids[: len(known)].tolist() == known
    assert sorted(ids.tolist()) == sorted({*known, *values})
    assert ids[place].tolist() == values


def test_without_new_values_nothing_is_copied() -> None:
    known = np.arange(10)
    assert joined_ids(known, np.asarray([3, 3, 9]))[0] is known
    assert joined_ids(known, NOTHING)[0] is known
