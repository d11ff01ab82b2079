"""The compiled softmax equals the plain objectives in value and gradients, in float32 and in bfloat16."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.compiled.softmax import SoftmaxKernels
from models.objectives.sampled import SampledTargets, sampled_softmax_cross_entropy, sampled_softmax_reference
from models.objectives.softmax import softmax_cross_entropy, softmax_cross_entropy_reference
from tests.models.compiled.compiler import FLOAT32

# Targets, candidates, width: less than a block, a panel and a register; just as much; one more; several chunks of candidates.
SIZES = ((1, 1, 1), (5, 3, 7), (72, 64, 16), (128, 128, 64), (73, 65, 17), (300, 1000, 52), (40, 20_000, 33))


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [values.clone().requires_grad_() for values in inputs]
    loss = function(*leaves)
    (loss * 0.3).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float, cancellation: float = 1.0) -> None:
    """Compare with the reference in float64: values at 1e-6, and the length of each gradient's difference.

    In bfloat16 a score has an error of 2^-16, and a gradient is the difference of two rounded vectors, which may cancel.

    cancellation: by how much the vectors of a sum, which are rounded, are longer than the sum.
    """
    score_error, cancelled = (1e-5, 1e-6) if tolerance == FLOAT32 else (5e-5, 5e-3)
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=1e-6, abs=score_error)
    for ours, plain in zip(actual[1:], expected[1:], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - plain).norm() <= tolerance * cancellation * plain.norm() + cancelled


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_full_softmax_equals_the_reference(kernels, tolerance, threads, size, temperature, smoothing):
    num_targets, num_candidates, width = size
    generator = torch.Generator().manual_seed(1)
    user_TD = torch.randn(num_targets, width, generator=generator)
    item_CD = 0.3 * torch.randn(num_candidates, width, generator=generator)
    target_T = torch.randint(0, num_candidates, (num_targets,), generator=generator)

    def compiled(user: Tensor, item: Tensor) -> Tensor:
        return softmax_cross_entropy(user, item, target_T, temperature, smoothing, kernels)

    def plain(user: Tensor, item: Tensor) -> Tensor:
        return softmax_cross_entropy_reference(user, item, target_T, temperature, smoothing)

    expected = value_and_gradients(plain, user_TD.double(), item_CD.double())
    assert_close(value_and_gradients(compiled, user_TD, item_CD), expected, tolerance)


def sample_of(users: Tensor, positives: Tensor, negatives: Tensor, temperature: float, log_q: Tensor | None):
    """Return targets with negatives that often are the target. Ids and shifts follow from the sizes."""
    generator = torch.Generator().manual_seed(7)
    num_items = max(2, negatives.shape[0] // 3)
    target_ids, negative_ids = (
        torch.randint(1, num_items + 1, (t.shape[0],), generator=generator) for t in (users, negatives)
    )
    log_q = None if log_q is None else log_q.to(users.dtype)
    return SampledTargets(users, positives, negatives, target_ids, negative_ids, temperature, None, log_q)


@pytest.mark.parametrize(("temperature", "corrected"), [(1.0, False), (0.3, True)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sampled_softmax_equals_the_reference(kernels, tolerance, threads, size, temperature, corrected):
    num_targets, num_negatives, width = size
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(num_targets, width, generator=generator)
    positives = 0.3 * torch.randn(num_targets, width, generator=generator)
    negatives = 0.3 * torch.randn(num_negatives, width, generator=generator)
    log_q = -8.0 * torch.rand(num_negatives, generator=generator) if corrected else None

    def compiled(*vectors: Tensor) -> Tensor:
        return sampled_softmax_cross_entropy(sample_of(*vectors, temperature, log_q), kernels)

    def plain(*vectors: Tensor) -> Tensor:
        return sampled_softmax_reference(sample_of(*vectors, temperature, log_q))

    inputs = users, positives, negatives
    assert_close(
        value_and_gradients(compiled, *inputs), value_and_gradients(plain, *(t.double() for t in inputs)), tolerance
    )


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("num_candidates", [600, 20_000])
def test_scores_far_above_that_of_the_target_equal_the_reference(kernels, tolerance, num_candidates, order):
    """Weights are powers of 2 of differences from a score near the target's, here up to 2^1,400: the reference has to move."""
    user_TD = torch.full((3, 1), 10.0)
    item_CD = torch.linspace(-50.0, 50.0, num_candidates)[:, None]
    if order == "descending":
        item_CD = item_CD.flip(0)
    target_T = torch.tensor([0, num_candidates // 2, num_candidates - 1])
    actual, expected = (
        value_and_gradients(function, user_TD.to(dtype), item_CD.to(dtype))
        for function, dtype in (
            (lambda u, i: softmax_cross_entropy(u, i, target_T, 1.0, 0.0, kernels), torch.float32),
            (lambda u, i: softmax_cross_entropy_reference(u, i, target_T, 1.0), torch.float64),
        )
    )
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for ours, plain in zip(actual[1:], expected[1:], strict=True):
        # Neighbouring scores differ by 0.05 to 1.7 of about 500, so their rounding shows in the weights.
        assert (ours - plain).norm() <= 2e-2 * plain.norm()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["users", "items"])
def test_numbers_that_are_not_finite_give_a_loss_that_is_not(kernels, tolerance, bad, place):
    user_TD, item_CD = torch.ones(100, 8), torch.ones(200, 8)
    (user_TD if place == "users" else item_CD)[70, 3] = bad
    target_T = torch.arange(100)
    loss, *_ = value_and_gradients(
        lambda u, i: softmax_cross_entropy(u, i, target_T, 1.0, 0.0, kernels), user_TD, item_CD
    )
    assert not loss.isfinite()


def test_scores_keep_more_than_bfloat16_of_their_precision(kernels):
    """In bfloat16 a score of 20 would be a multiple of an eighth."""
    if kernels.bfloat16 is None:
        pytest.skip("the processor has no AMX")
    generator = torch.Generator().manual_seed(3)
    user_TD, item_CD = (torch.randn(n, 64, generator=generator) for n in (200, 500))
    target_T = torch.randint(0, 500, (200,), generator=generator)
    exact = softmax_cross_entropy_reference(user_TD.double(), item_CD.double(), target_T, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(user_TD, item_CD, target_T, 0.4, 0.0, kernels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_results_repeat_bit_for_bit(kernels, tolerance, threads):
    generator = torch.Generator().manual_seed(3)
    user_TD, item_CD = (torch.randn(n, 20, generator=generator) for n in (500, 900))
    target_T = torch.randint(0, 900, (500,), generator=generator)
    first, *others = (
        value_and_gradients(lambda u, i: softmax_cross_entropy(u, i, target_T, 1.0, 0.0, kernels), user_TD, item_CD)
        for _ in range(3)
    )
    for again in others:
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("num_targets", "num_candidates"), [(0, 4), (3, 0)])
def test_no_targets_or_candidates_are_left_to_torch(kernels, num_targets, num_candidates):
    vectors = torch.ones(num_targets, 5), torch.ones(num_candidates, 5)
    assert not kernels.takes(*vectors)
    assert not kernels.takes(torch.ones(2, 5, dtype=torch.float64), torch.ones(2, 5))
    assert not kernels.takes(torch.ones(2, 5, device="meta"), torch.ones(2, 5))
    users, others = vectors
    sample = SampledTargets(users, users, others, torch.ones(num_targets), torch.ones(num_candidates))
    assert sampled_softmax_cross_entropy(sample, kernels).item() == 0.0


def test_vectors_may_be_parts_of_others(kernels, tolerance):
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.randn(n, 12, generator=generator) for n in (40, 60))
    target_T = torch.randint(0, 60, (80,), generator=generator)[::2]

    def loss(user: Tensor, item: Tensor, given: SoftmaxKernels | None) -> Tensor:
        return softmax_cross_entropy(user[:, 2:9], item.T[2:9].T, target_T, 1.0, 0.0, given)

    expected = value_and_gradients(lambda u, i: loss(u, i, None), users.double(), items.double())
    assert_close(value_and_gradients(lambda u, i: loss(u, i, kernels), users, items), expected, tolerance)


def test_kernels_can_be_copied_and_sent(kernels):
    """Models hold them, and models are copied."""
    assert copy.deepcopy(kernels) == kernels
    assert pickle.loads(pickle.dumps(kernels)) == kernels


def test_without_amx_autocast_computes_in_float32(kernels):
    user_TD, item_CD, target_T = torch.randn(9, 5), torch.randn(7, 5), torch.randint(0, 7, (9,))
    exact = softmax_cross_entropy(user_TD, item_CD, target_T, 1.0, 0.0, kernels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(user_TD, item_CD, target_T, 1.0, 0.0, replace(kernels, bfloat16=None))
    assert torch.equal(loss, exact)
