"""Under autocast to bfloat16 every encoder computes nearly what it computes in float32, and gradients stay float32."""

import pytest
import torch
from torch import Tensor

from tests.models.encoders.test_encoder import CASES, LENGTHS, context_of, events, make_encoder


def outcome(case: str, low: bool, recompute: bool = False) -> tuple[Tensor, list[Tensor]]:
    """(what is encoded, gradients of its first half's sum of squares by input and weights)."""
    encoder = make_encoder(CASES[case], recompute=recompute)
    x_ND = events(sum(LENGTHS)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        encoded_ND = encoder(x_ND, context_of(LENGTHS))[0].float()
    (encoded_ND.square() * torch.linspace(0.0, 1.0, encoded_ND.shape[1])).sum().backward()
    weights = [p for p in encoder.parameters() if p.grad is not None]
    return encoded_ND.detach(), [x_ND.grad, *(p.grad for p in weights)]


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_under_autocast_is_nearly_that_of_float32(case):
    full, full_gradients = outcome(case, low=False)
    low, gradients = outcome(case, low=True)
    assert not torch.equal(low, full)
    assert (low - full).norm() < 0.03 * full.norm()
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    flat, expected = (torch.cat([g.flatten() for g in found]) for found in (gradients, full_gradients))
    assert torch.cosine_similarity(flat, expected, dim=0) > 0.995
    recomputed, again = outcome(case, low=True, recompute=True)
    assert torch.equal(recomputed, low)
    torch.testing.assert_close(torch.cat([g.flatten() for g in again]), flat, rtol=1e-5, atol=1e-6)
