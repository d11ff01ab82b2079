"""The smallest set of events equals that of an exhaustive search over all sets."""

from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.explained_models import Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation.catalogue import Seen
from trainer.explanation.questions import Questions
from trainer.explanation.removal import remove
from trainer.explanation.smallest_set import smallest_sets
from trainer.explanation.top_items import CandidatesTop, TopItems, TopTwo, catalogue_top
from trainer.inference.next_item import item_vectors, recommend
from trainer.inference.requests import with_requests


@dataclass(frozen=True)
class Prepared:
    asked: Questions
    top: TopItems


def prepared(case: Case) -> Prepared:
    """Return some questions, and their candidates: all items not in the history, or ten items of a ranker."""
    asked = case.asked.take(np.arange(0, case.asked.size, 2))
    if case.model.trained.manifest.task == "next_item":
        return Prepared(asked, catalogue_top(case.model, Seen(asked.items.astype(np.int64), asked.offsets)))
    ids = np.unique(asked.targets)[:10]
    places = np.searchsorted(np.sort(asked.targets), ids)
    features = asked.take(np.argsort(asked.targets, kind="stable")[places]).target_features
    return Prepared(asked, CandidatesTop(case.model, ids, features))


def changes(given: Prepared, question: int, places: tuple[int, ...]) -> bool:
    """Return whether the top item changes without the events at some places of a question."""
    one = given.asked.take(np.asarray([question, question]))
    removed = np.zeros(one.items.size, np.bool_)
    removed[list(places)] = True
    best = given.top.best_two(remove(one, removed), np.asarray([question, question]))
    return bool(best.items[0, 0] != best.items[1, 0])


@pytest.mark.parametrize("exact_size", [1, 2])
@pytest.mark.parametrize("form", ["encoder: hstu", "encoder: bert4rec", "ranker: sim"])
def test_the_set_is_smallest_or_irreducible(form: str, exact_size: int, explained_datasets: Datasets) -> None:
    given = prepared(case_of(form, *explained_datasets, max_history=7))
    asked = given.asked
    sets = smallest_sets(given.top, asked, max_size=4, exact_size=exact_size, internal_batch_size=300)
    sizes = sets.sizes(asked)
    assert (sets.found == (sizes > 0)).all()
    assert sets.found.sum() >= 3
    for question in range(0, asked.size, 2):
        length = int(asked.lengths[question])
        if length > 8:
            continue
        places = tuple(np.flatnonzero(sets.removed[asked.offsets[question] : asked.offsets[question + 1]]).tolist())
        smaller = sizes[question] if sets.found[question] else exact_size + 1
        if sets.is_smallest[question] or not sets.found[question]:
            tried = [some for size in range(1, min(smaller, length)) for some in combinations(range(length), size)]
            assert not any(changes(given, question, some) for some in tried)
        if not sets.found[question]:
            continue
        assert changes(given, question, places)
        assert length > len(places)
        if not sets.is_smallest[question]:
            assert not any(changes(given, question, tuple(p for p in places if p != left)) for left in places)


def test_the_top_items_are_those_that_shoal_recommends(explained_datasets: Datasets) -> None:
    case = case_of("encoder: sasrec", *explained_datasets, max_history=7)
    given = prepared(case)
    asked = given.asked
    best = given.top.best_two(asked, np.arange(asked.size))
    histories = with_requests(
        asked.users, asked.offsets, asked.items, asked.times, asked.features, asked.user_features, asked.requested_at
    )
    vectors = item_vectors(case.model.trained)
    filled = asked.lengths > 0
    expected = recommend(case.model.trained, histories.part(0, int(filled.sum())), vectors, 2, True)
    assert filled[: int(filled.sum())].all()
    assert best.items[filled].tolist() == expected.items.tolist()


class _AlongAPath:
    """A model of one history of the items 1 to 5. Its top item changes without 4 and 5, or without 1, 2 and 3.

    Without 1, and then without 2, the lead is smaller. So a greedy search finds the larger of the two sets.
    """

    model = SimpleNamespace(most=lambda number: number)

    def best_two(self, asked: Questions, history: np.ndarray, internal_batch_size: int | None = None) -> TopTwo:
        items, scores = [], []
        for question in range(asked.size):
            gone = {1, 2, 3, 4, 5} - set(asked.items[asked.offsets[question] : asked.offsets[question + 1]].tolist())
            items.append([7, 6] if gone >= {4, 5} or gone >= {1, 2, 3} else [6, 7])
            scores.append([1.0 - 0.1 * len(gone & {1, 2, 3}), 0.0])
        return TopTwo(np.asarray(items, np.int64), np.asarray(scores, np.float32))


@pytest.mark.parametrize(("exact_size", "expected", "is_smallest"), [(1, [1, 2, 3], False), (2, [4, 5], True)])
def test_a_set_of_a_greedy_search_is_not_said_to_be_smallest(
    exact_size: int, expected: list[int], is_smallest: bool
) -> None:
    items = np.arange(1, 6, dtype=np.int32)
    asked = Questions(np.zeros(1, np.int64), pa.array(["u"]), np.asarray([0, 5]), items, np.asarray([6]))
    top: Any = _AlongAPath()
    sets = smallest_sets(top, asked, max_size=4, exact_size=exact_size)
    assert items[sets.removed].tolist() == expected
    assert sets.found.tolist() == [True]
    assert sets.is_smallest.tolist() == [is_smallest]
