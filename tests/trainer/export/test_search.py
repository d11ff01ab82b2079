"""Exact search orders items as an evaluation does, in any blocks."""

import numpy as np
import pytest
import torch

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


def _steps(vectors: torch.Tensor) -> np.ndarray:
    return torch.cat(quantise(vectors)[1:], dim=1).numpy()
