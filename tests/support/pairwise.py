"""Pairwise sampling: a few of many combinations in which every pair of values that occurs together still occurs together.

Most faults that depend on settings depend on one or two of them (Kuhn, Wallace and Gallo, "Software Fault Interactions and
Implications for Software Testing", IEEE Transactions on Software Engineering 30(6), 2004). A sample that covers all pairs
finds these, at a fraction of the cost of all combinations.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

Case = Mapping[str, Hashable]
Pair = frozenset[tuple[str, Hashable]]


def pairs_of(case: Case) -> set[Pair]:
    """Return all pairs of two parameters' values in a case; of a single parameter, its value alone."""
    values = sorted(case.items(), key=lambda item: item[0])
    return {frozenset(pair) for pair in combinations(values, min(2, len(values)))}


def covering(cases: Sequence[Case]) -> list[int]:
    """Return the positions, ascending, of cases that together have every pair of values which any case has.

    Greedy: the next case is the one with the most uncovered pairs, the first of several. Impossible combinations need no
    description, because only given cases are chosen. Equal cases give equal answers.
    """
    pairs = [pairs_of(case) for case in cases]
    uncovered = set[Pair]().union(*pairs)
    chosen = []
    while uncovered:
        best = max(range(len(cases)), key=lambda number: len(pairs[number] & uncovered))
        chosen.append(best)
        uncovered -= pairs[best]
    return sorted(chosen)
