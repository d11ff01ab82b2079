"""Products under autocast: rounded factors, sums in float32; and the chunked cross-entropy that is made of them."""

import pytest
import torch

from models.objectives import chunked_scores
from models.objectives.products import add_product, product
from models.objectives.softmax import softmax_cross_entropy, softmax_cross_entropy_reference


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_without_autocast_a_product_is_exact():
    left, right, start = normal(5, 7, seed=1), normal(7, 3, seed=2), normal(5, 3, seed=3)
    assert torch.equal(product(left, right, torch.empty(5, 3)), left @ right)
    assert torch.equal(add_product(start.clone(), left, right), torch.addmm(start, left, right))


def test_under_autocast_factors_are_rounded_and_what_is_written_to_is_not():
    left, right, start = normal(5, 7, seed=1), normal(7, 3, seed=2), 1e3 * normal(5, 3, seed=3)
    expected = left.bfloat16().double() @ right.bfloat16().double()
    with torch.autocast("cpu", torch.bfloat16):
        written, added = product(left, right, torch.empty(5, 3)), add_product(start.clone(), left, right)
    assert written.dtype == added.dtype == torch.float32
    torch.testing.assert_close(written.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(added.double() - start, expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("chunk", [7 * 40, 1 << 20])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_under_autocast_cross_entropy_is_a_softmax_in_float32_of_rounded_logits(monkeypatch, chunk, temperature):
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", chunk)
    num_targets = 3000  # a sum of so many numbers in bfloat16 would be off by much more than each of them
    target = torch.randint(40, (num_targets,), generator=torch.Generator().manual_seed(4))
    user, item = normal(num_targets, 16, seed=1), normal(40, 16, seed=2)
    inputs = [t.requires_grad_() for t in (user, item)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(*inputs, target, temperature)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, inputs)
    rounded = ((user / temperature).bfloat16() @ item.bfloat16().T).double()
    expected = torch.nn.functional.cross_entropy(rounded, target, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    exact = torch.autograd.grad(softmax_cross_entropy_reference(*inputs, target, temperature), inputs)
    for found, wanted in zip(gradients, exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.01 * wanted.norm()
