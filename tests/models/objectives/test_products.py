"""Products under autocast: scores that are not rounded, gradients of rounded factors; and the cross-entropy made of them."""

import pytest
import torch

from models.objectives import chunked_scores, products
from models.objectives.chunked_scores import chunk_elements
from models.objectives.products import add_product, product, score_product
from models.objectives.softmax import softmax_cross_entropy, softmax_cross_entropy_reference


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_without_autocast_a_product_is_exact():
    left, right, start = normal(5, 7, seed=1), normal(7, 3, seed=2), normal(5, 3, seed=3)
    assert torch.equal(product(left, right, torch.empty(5, 3)), left @ right)
    assert torch.equal(score_product(left, right, torch.empty(5, 3)), left @ right)
    assert torch.equal(add_product(start.clone(), left, right), torch.addmm(start, left, right))


def test_under_autocast_factors_are_rounded_and_outputs_are_not():
    left, right, start = normal(5, 7, seed=1), normal(7, 3, seed=2), 1e3 * normal(5, 3, seed=3)
    expected = left.bfloat16().double() @ right.bfloat16().double()
    with torch.autocast("cpu", torch.bfloat16):
        written, added = product(left, right, torch.empty(5, 3)), add_product(start.clone(), left, right)
    assert written.dtype == added.dtype == torch.float32
    torch.testing.assert_close(written.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(added.double() - start, expected, rtol=2**-8, atol=1e-3)


def test_under_autocast_a_cpu_computes_scores_as_without_it():
    left, right = normal(50, 16, seed=1), normal(16, 30, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            score_product(left, right, torch.empty(50, 30)), torch.mm(left, right, out=torch.empty(50, 30))
        )


def test_under_autocast_a_gpu_rounds_factors_and_writes_float32(monkeypatch):
    """By the shapes and dtypes of tensors without memory, since no CPU multiplies bfloat16 into float32."""
    monkeypatch.setattr(products, "_low_dtype", lambda out: torch.bfloat16)
    called, multiply = [], torch.mm

    def spy(left, right, **settings):
        called.append((left.dtype, right.dtype, settings["out_dtype"]))
        return multiply(left, right, **settings)

    monkeypatch.setattr(torch, "mm", spy)
    left, right, out = (torch.empty(shape, device="meta") for shape in ((5, 7), (7, 3), (5, 3)))
    for multiplied in (score_product, product, lambda left, right, out: add_product(out, left, right)):
        result = multiplied(left, right, out)
        assert (result.dtype, result.shape) == (torch.float32, (5, 3))
        assert result is out
    assert called == 3 * [(torch.bfloat16, torch.bfloat16, torch.float32)]


def test_operations_outside_autocast_are_not_rounded():
    out = torch.empty(5, 3, dtype=torch.float64)
    left, right = normal(5, 7, seed=1).double(), normal(7, 3, seed=2).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(left, right, out), torch.mm(left, right))


def test_a_gpu_is_given_more_scores_at_a_time_than_the_cache_of_a_cpu_holds():
    assert chunk_elements(torch.device("cpu")) * 4 == 4 << 20
    assert chunk_elements(torch.device("cuda")) >= 1 << 25


@pytest.mark.parametrize("chunk", [7 * 40, 1 << 20])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_under_autocast_cross_entropy_is_that_of_float32_and_its_gradient_nearly(monkeypatch, chunk, temperature):
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", chunk)
    num_targets = 3000  # a sum of so many numbers in bfloat16 would be off by much more than each of them
    target = torch.randint(40, (num_targets,), generator=torch.Generator().manual_seed(4))
    user, item = normal(num_targets, 16, seed=1), normal(40, 16, seed=2)
    inputs = [t.requires_grad_() for t in (user, item)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(*inputs, target, temperature)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, inputs)
    logits = (user / temperature).double() @ item.double().T
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    exact = torch.autograd.grad(softmax_cross_entropy_reference(*inputs, target, temperature), inputs)
    for value, wanted in zip(gradients, exact, strict=True):
        assert value.dtype == torch.float32
        assert (value - wanted).norm() < 0.01 * wanted.norm()
