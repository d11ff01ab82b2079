"""The compiled binary cross-entropy equals the plain objective in value and gradients, in float32 and in bfloat16."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.compiled.softmax import SoftmaxKernels
from models.objectives.config import BceConfig, GbceConfig
from models.objectives.sampled import SampledTargets, binary_cross_entropy, binary_cross_entropy_reference
from tests.models.compiled.compiler import kernels_or_skip
from tests.models.compiled.test_softmax import SIZES, assert_close, sample_of, value_and_gradients
from tests.models.next_item.test_model import SAMPLED, make_model, training_batch


def sample_with_log_q(users: Tensor, positives: Tensor, negatives: Tensor, corrected: bool) -> SampledTargets:
    """Return targets with negatives that often are the target, and with corrections of both sides if asked for."""
    generator = torch.Generator().manual_seed(2)
    target_log_q, negative_log_q = (
        -8.0 * torch.rand(vectors.shape[0], generator=generator).to(users.dtype) for vectors in (users, negatives)
    )
    sample = sample_of(users, positives, negatives, 0.7, negative_log_q if corrected else None)
    return replace(sample, target_log_q=target_log_q if corrected else None)


# The weights of targets and negatives, and the number that is subtracted from every score.
WEIGHTS = ((1.0, 1.0, 0.0), (1.0, 1 / 128, 4.8), (0.2, 1.0, -3.0))


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_equals_the_reference(kernels, tolerance, threads, size, weights, corrected):
    num_targets, num_negatives, width = size
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(num_targets, width, generator=generator)
    positives, negatives = (0.3 * torch.randn(n, width, generator=generator) for n in (num_targets, num_negatives))

    def compiled(*vectors: Tensor) -> Tensor:
        return binary_cross_entropy(sample_with_log_q(*vectors, corrected), *weights, kernels)

    def plain(*vectors: Tensor) -> Tensor:
        return binary_cross_entropy_reference(sample_with_log_q(*vectors, corrected), *weights)

    inputs = users, positives, negatives
    expected = value_and_gradients(plain, *(vectors.double() for vectors in inputs))
    # Weights near 1 are not divided by their sum, so that the vectors of many negatives of both signs are added.
    assert_close(value_and_gradients(compiled, *inputs), expected, tolerance, 3.0)


def test_scores_of_any_size_have_exact_terms(kernels):
    """Scores from -1,000 to 1,000: of far negatives e^score is left, and of large scores the score."""
    scores = torch.tensor([-1000.0, -100.0, -87.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 100.0, 1000.0])
    terms = kernels.binary_terms(scores[:, None], torch.ones(1, 1), 1.0)
    expected = torch.nn.functional.softplus(scores.double(), threshold=800.0)
    torch.testing.assert_close(terms.total.double(), expected, rtol=1e-6, atol=1e-38)
    torch.testing.assert_close(terms.user_gradient[:, 0].double(), scores.double().sigmoid(), rtol=1e-6, atol=1e-38)


def test_results_repeat_bit_for_bit(kernels, tolerance, threads):
    generator = torch.Generator().manual_seed(3)
    users, negatives = (torch.randn(n, 20, generator=generator) for n in (500, 9000))
    first, *others = (kernels.binary_terms(users, negatives, 1.0) for _ in range(3))
    for again in others:
        assert torch.equal(again.total, first.total)
        assert torch.equal(again.user_gradient, first.user_gradient)
        assert torch.equal(again.item_gradient, first.item_gradient)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_give_a_loss_that_is_not(kernels, tolerance, bad):
    users, negatives = torch.ones(100, 8), torch.ones(200, 8)
    users[70, 3] = bad
    assert not kernels.binary_terms(users, negatives, 1.0).total.sum().isfinite()


@pytest.mark.parametrize("objective", [BceConfig(num_negatives=4), GbceConfig(num_negatives=4)], ids=str)
def test_a_model_trains_with_the_kernel_as_without(monkeypatch, objective):
    asked = []
    once = SoftmaxKernels.binary_terms
    monkeypatch.setattr(SoftmaxKernels, "binary_terms", lambda self, *given: asked.append(given) or once(self, *given))
    compiled = make_model(objective)
    compiled.kernels = kernels_or_skip()
    batch = training_batch([[1, 2, 3, 4], [5, 6], [7, 8, 9]], SAMPLED)
    results = []
    for model in (make_model(objective), compiled):
        rows = {"item": model.look_up(batch.items)["item"].detach().requires_grad_()}
        loss = model.loss(rows, batch)
        loss.backward()
        results.append((loss.detach(), rows["item"].grad, *(p.grad for p in model.encoder.parameters())))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert len(asked) == 1
