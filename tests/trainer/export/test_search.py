"""Exact search orders items as an evaluation does, in any blocks."""

import numpy as np
import pytest
import torch

from sharding.world import World
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items
from trainer.export.search import FloatVectors, Int8Vectors, Seen, best_items
from trainer.export.tables import quantise


def test_exact_search_orders_equal_scores_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.export.search.BLOCK_ITEMS", 7)
    vectors = torch.randint(0, 2, (20, 3), generator=torch.Generator().manual_seed(1)).float()  # many are equal
    users = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    seen = Seen(np.asarray([1, 4, 9]), np.asarray([0, 2, 3]))
    candidates = np.arange(1, 21, 2)
    for form in (FloatVectors(vectors.numpy()), Int8Vectors(quantise(vectors)[0].numpy(), _steps(vectors))):
        for of_candidates in (None, candidates):
            ids, scores = best_items(users, form, 12, seen, of_candidates)
            allowed = candidates if of_candidates is not None else np.arange(1, 21)
            for row in range(2):
                left = [i for i in allowed if i not in seen.items[seen.offsets[row] : seen.offsets[row + 1]]]
                product = (vectors @ users[row]).numpy()
                expected = sorted(left, key=lambda i: (-product[i - 1], i))[:12]
                assert ids[row, : len(expected)].tolist() == expected
                assert not ids[row, len(expected) :].any()
                np.testing.assert_allclose(scores[row, : len(expected)], product[np.asarray(expected) - 1], atol=1e-6)


@pytest.mark.parametrize("num_users", [1, 300])
def test_the_best_items_are_those_of_an_evaluation(num_users: int) -> None:
    random = np.random.default_rng(1)
    users = torch.from_numpy(random.integers(-2, 3, (num_users, 4)).astype(np.float32))
    items = torch.from_numpy(random.integers(-2, 3, (5000, 4)).astype(np.float32))
    seen = Seen(random.integers(1, 5001, 20 * num_users), np.arange(num_users + 1) * 20)
    ids, scores = best_items(users, FloatVectors(items.numpy()), 30, seen)
    query = Query(users, seen.items, seen.offsets, np.zeros(0, np.int64), np.zeros(num_users + 1, np.int64))
    ranked = rank_items(query, ItemShard(items, 1), 30, True, 1000, World(0, 1, torch.device("cpu")))
    assert (ids == ranked.top_items).all()
    assert (scores == ranked.top_scores).all()


def test_scores_that_are_not_numbers_and_no_candidates_give_no_items() -> None:
    vectors = FloatVectors(np.full((4, 2), np.nan, np.float32))
    ids, scores = best_items(torch.ones(2, 2), vectors, 3)
    assert not ids.any()
    assert np.isneginf(scores).all()
    ids, scores = best_items(
        torch.ones(2, 2), FloatVectors(np.ones((4, 2), np.float32)), 3, None, np.zeros(0, np.int64)
    )
    assert ids.shape == (2, 3)
    assert not ids.any()


def _steps(vectors: torch.Tensor) -> np.ndarray:
    return torch.cat(quantise(vectors)[1:], dim=1).numpy()
