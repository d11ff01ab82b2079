"""Pairwise sampling keeps every pair of values, invents no combination, and keeps few of the combinations."""

from itertools import combinations, product
from random import Random
from typing import Any

import pytest

from tests.support.pairwise import covering

SIZES = [(2, 2, 2), (3, 3, 3, 3), (7, 4, 3, 2, 2), (5, 1, 5), (4,), (10, 10)]


def cases_of(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    names = [f"parameter {number}" for number in range(len(sizes))]
    return [dict(zip(names, values, strict=True)) for values in product(*map(range, sizes))]


def plain_pairs(cases: list[dict[str, Any]]) -> set[Any]:
    """Return the pairs of values of all cases, two parameters at a time."""
    names = list(cases[0])
    return {(a, case[a], b, case[b]) for case in cases for a, b in combinations(names, 2)}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kept", [1.0, 0.6, 0.2])
def test_every_pair_that_occurs_is_covered(sizes: tuple[int, ...], kept: float) -> None:
    random = Random(4)
    cases = [case for case in cases_of(sizes) if random.random() < kept] or cases_of(sizes)[:1]
    chosen = [cases[number] for number in covering(cases)]
    assert plain_pairs(chosen) == plain_pairs(cases)
    assert {name: {case[name] for case in chosen} for name in cases[0]} == {
        name: {case[name] for case in cases} for name in cases[0]
    }


@pytest.mark.parametrize(("sizes", "at_most"), [((2, 2, 2), 4), ((3, 3, 3, 3), 11), ((7, 4, 3, 2, 2), 32), ((4,), 4)])
def test_few_cases_are_chosen(sizes: tuple[int, ...], at_most: int) -> None:
    """The fewest there are is the product of the two largest sizes; (3, 3, 3, 3) has an array of 9."""
    least = sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    assert least <= len(covering(cases_of(sizes))) <= at_most


def test_the_choice_is_repeatable_and_ascending() -> None:
    cases = cases_of((5, 4, 3, 2))
    assert covering(cases) == covering(list(cases)) == sorted(set(covering(cases)))


def test_no_case_gives_none() -> None:
    assert covering([]) == []
