"""Sparse weights by Newton's method, as on a CPU, are those by sorting, as on a GPU and in the papers."""

import pytest
import torch
from torch import Tensor

from models.attention.normalise import (
    entmax15,
    entmax15_threshold_by_sorting,
    sparsemax,
    sparsemax_threshold_by_sorting,
)

LENGTHS = (1, 2, 7, 50, 200, 2000, 8192)
SPREADS = (0.0, 1e-3, 0.1, 1.0, 4.0, 50.0, 1e4)


def by_sorting(scores: Tensor, form: str) -> Tensor:
    shifted = scores - scores.amax(dim=-1, keepdim=True)
    if form == "sparsemax":
        return (shifted - sparsemax_threshold_by_sorting(shifted)).clamp(min=0)
    return (shifted / 2 - entmax15_threshold_by_sorting(shifted / 2)).clamp(min=0).square()


def some_scores(length: int, spread: float, dtype: torch.dtype) -> Tensor:
    """Return (32, length), a fifth of them hidden."""
    generator = torch.Generator().manual_seed(length)
    scores = spread * torch.randn(32, length, generator=generator, dtype=dtype)
    return scores.masked_fill(torch.rand(32, length, generator=generator) < 0.2, torch.finfo(dtype).min)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("form", [sparsemax, entmax15])
def test_newton_equals_sorting(form, dtype, tolerance):
    for length in LENGTHS:
        for spread in SPREADS:
            scores = some_scores(length, spread, dtype)
            weights = form(scores)
            torch.testing.assert_close(weights, by_sorting(scores, form.__name__), rtol=0, atol=tolerance)
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(32, dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", [sparsemax, entmax15])
def test_a_row_does_not_depend_on_the_others(form):
    """Other rows of the batch that need more rounds change no bit of it."""
    rows = [some_scores(200, spread, torch.float32) for spread in SPREADS]
    together = form(torch.cat(rows))
    assert torch.equal(together, torch.cat([form(row[None]) for of_spread in rows for row in of_spread]))


@pytest.mark.parametrize("form", [sparsemax, entmax15])
def test_half_precision_numbers_that_are_none_and_empty_rows(form):
    scores = some_scores(50, 1.0, torch.float32).bfloat16()
    weights = form(scores)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights.float(), form(scores.float()), rtol=0.01, atol=1e-3)
    assert form(torch.tensor([[float("nan"), 1.0]])).isnan().all()
    assert form(torch.zeros(0, 5)).shape == (0, 5)
