"""Under autocast to bfloat16 every encoder and ranker computes nearly what it does in float32, and gradients stay float32."""

import pytest
import torch
from torch import Tensor

from tests.models.encoders.test_encoder import CASES, LENGTHS, context_of, events, make_encoder
from tests.models.ranking.test_model import batch_of, random_users
from tests.models.ranking.test_ranking_micro_batches import COUNTS, RANKERS, ranker


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


@pytest.mark.parametrize("kind", RANKERS)
def test_a_ranker_under_autocast_is_nearly_that_of_float32(kind):
    batch, flat, losses = batch_of(random_users(4, COUNTS)), [], []
    for low in (False, True):
        model = ranker(kind).float()
        rows = {table: found.detach().requires_grad_() for table, found in model.look_up(batch.items).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model.loss(rows, batch)
            assert model.logits(rows, batch).dtype == torch.float32
        loss.backward()
        weights = [p for name, p in model.named_parameters() if not name.startswith("tables")]
        gradients = [leaf.grad for leaf in (*rows.values(), *weights) if leaf.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        flat.append(torch.cat([gradient.flatten() for gradient in gradients]))
        losses.append(loss)
    assert losses[1].dtype == torch.float32
    assert losses[1] != losses[0]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    assert torch.cosine_similarity(*flat, dim=0) > 0.98
