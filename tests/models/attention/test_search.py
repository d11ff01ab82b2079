"""Two-stage search equals brute force: only events before a candidate, the nearest first, and attention to what was found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention import search
from models.attention.attend import attend_to_events
from models.attention.candidates import NO_KEY
from models.attention.reference import attend_to_events_reference
from models.attention.search import search_by_category, search_by_similarity
from tests.models.attention.forms import config_of, parts_of
from tests.models.attention.shown import Shown, shown, vectors


def categories(given: Shown, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return few values, so that histories have many of each; some are missing, and no event has one of them."""
    random = np.random.default_rng(seed)
    events, candidates = random.integers(-1, 4, sum(given.lengths)), random.integers(-1, 5, sum(given.counts))
    return torch.from_numpy(events * 10**12), torch.from_numpy(candidates * 10**12)


def by_category(given: Shown, events: Tensor, candidates: Tensor, num_found: int) -> list[list[int]]:
    layout, found = given.candidate_layout, []
    for number, (first, end) in enumerate(zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)):
        wanted = int(candidates[number])
        places = [
            place
            for place in range(max(0, end - given.reach), end)
            if wanted >= 0 and int(events[first + place]) == wanted
        ]
        found.append(places[::-1][:num_found])
    return found


def by_similarity(given: Shown, events: Tensor, candidates: Tensor, num_found: int) -> list[list[int]]:
    layout, found = given.candidate_layout, []
    for number, (first, end) in enumerate(zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)):
        places = range(max(0, end - given.reach), end)
        score = {place: float(events[first + place] @ candidates[number]) for place in places}
        found.append(sorted(places, key=lambda place: (-score[place], -place))[:num_found])
    return found


def as_lists(found: Tensor) -> list[list[int]]:
    return [[place for place in row if place < NO_KEY] for row in found.tolist()]


@pytest.mark.parametrize("num_found", [1, 3, 50])
@pytest.mark.parametrize("seed", [1, 2])
def test_by_category_equals_brute_force(num_found, seed):
    given = shown(seed=seed)
    events, candidates = categories(given, seed)
    found = search_by_category(events, candidates, given.layout.offsets, given.candidate_layout, num_found)
    assert found.shape == (sum(given.counts), num_found)
    expected = by_category(given, events, candidates, num_found)
    assert as_lists(found) == expected
    assert sum(map(len, expected)) > 20


@pytest.mark.parametrize("num_found", [1, 3, 50])
@pytest.mark.parametrize("piece_scores", [search.PIECE_SCORES, 100])
def test_by_similarity_equals_brute_force(monkeypatch, num_found, piece_scores):
    monkeypatch.setattr(search, "PIECE_SCORES", piece_scores)
    given = shown()
    # Small whole numbers: many equal dot products, of either sign, all exact.
    events, candidates = (
        vectors(rows, 1, 2, seed)[:, 0].round() for rows, seed in ((sum(given.lengths), 1), (sum(given.counts), 2))
    )
    found = search_by_similarity(events, candidates, given.candidate_layout, num_found)
    assert as_lists(found) == by_similarity(given, events, candidates, num_found)


@pytest.mark.parametrize("lengths", [[0, 0], [3, 0]])
def test_without_events_nothing_is_found(lengths):
    given = shown(lengths, [0, 2])
    events, candidates = vectors(sum(lengths), 1, 2, 1)[:, 0], vectors(2, 1, 2, 2)[:, 0]
    assert search_by_similarity(events, candidates, given.candidate_layout, 2).eq(NO_KEY).all()
    found = search_by_category(*categories(given), given.layout.offsets, given.candidate_layout, 2)
    assert found.eq(NO_KEY).all()


@pytest.mark.parametrize("form", ["softmax", "softmax, bias of both", "entmax15", "none, bias of both, penalty"])
def test_attention_to_the_retrieved_events_equals_the_reference(form):
    config, given = config_of(form), shown()
    parts = parts_of(config, 4, torch.float64)
    events, candidates = categories(given)
    found = search_by_category(events, candidates, given.layout.offsets, given.candidate_layout, 4)
    results = []
    for narrowed in (True, False):
        leaves = [
            vectors(rows, heads, 4, seed).requires_grad_()
            for seed, (rows, heads) in enumerate(
                [(sum(given.counts), config.num_heads), *(2 * [(sum(given.lengths), config.key_value_heads)])]
            )
        ]
        context = given.context()
        attended = (
            attend_to_events(*leaves, context.narrowed(found), parts)
            if narrowed
            else attend_to_events_reference(*leaves, context, parts, found=found)
        )
        attended.output.pow(3).sum().backward()
        results.append([attended.output, *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["category", "similarity"])
def test_nothing_later_or_elsewhere_is_found_or_changes_what_is(kind):
    given = shown()
    layout = given.candidate_layout
    events, candidates = categories(given)
    vectors_of = [vectors(rows, 1, 4, seed)[:, 0] for rows, seed in ((sum(given.lengths), 1), (sum(given.counts), 2))]

    def found(events: Tensor, candidates: Tensor, event_ND: Tensor, candidate_MD: Tensor) -> Tensor:
        if kind == "category":
            return search_by_category(events, candidates, given.layout.offsets, layout, 3)
        return search_by_similarity(event_ND, candidate_MD, layout, 3)

    before = found(events, candidates, *vectors_of)
    for candidate in (0, 5, 30, 84):
        first, end = int(layout.first_event[candidate]), int(layout.history_end[candidate])
        own = torch.zeros(sum(given.lengths), dtype=torch.bool)
        own[first + max(0, end - given.reach) : first + end] = True
        other = torch.arange(sum(given.counts)) != candidate
        after = found(
            torch.where(own, events, 3 * 10**12),
            torch.where(other, 0, candidates),
            torch.where(own[:, None], vectors_of[0], 9.0),
            torch.where(other[:, None], -1.0, vectors_of[1]),
        )
        assert torch.equal(after[candidate], before[candidate])
        assert not torch.equal(after, before)


def test_a_candidate_finds_the_same_events_alone_and_among_others():
    given = shown()
    events, candidates = categories(given)
    together = search_by_category(events, candidates, given.layout.offsets, given.candidate_layout, 3)
    for candidate in range(0, sum(given.counts), 5):
        alone, mine, own = given.alone(candidate)
        found = search_by_category(events[mine], candidates[own], alone.layout.offsets, alone.candidate_layout, 3)
        assert torch.equal(found, together[own])


def test_padding_of_a_history_beyond_reach_is_never_found():
    given = replace(shown([10], [1], reach=4), history_end=np.asarray([9]))
    same = torch.ones(10, dtype=torch.int64)
    found = search_by_category(same, same[:1], given.layout.offsets, given.candidate_layout, 8)
    assert as_lists(found) == [[8, 7, 6, 5]]
