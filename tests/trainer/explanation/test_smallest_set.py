"""The smallest set of events equals that of an exhaustive search over all sets."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from tests.support.explained_models import Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation.catalogue import Seen
from trainer.explanation.questions import Questions
from trainer.explanation.removal import remove
from trainer.explanation.smallest_set import smallest_sets
from trainer.explanation.top_items import CandidatesTop, TopItems, catalogue_top
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
