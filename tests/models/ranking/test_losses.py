"""Losses against plain loops over impressions, pairs and users, and with masks against leaving impressions out."""

import math

import pytest
import torch
from torch import Tensor

from models.ranking import losses
from models.ranking.losses import listwise, pairwise, pointwise

# Users with several, one, none, only positive, only negative and undefined impressions.
COUNTS = [5, 1, 0, 4, 3, 6, 2]
USER = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
POSITIVE = torch.tensor([1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0]).bool()
DEFINED = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0]).bool()
ALL = torch.ones_like(DEFINED)


def scores(seed: int = 0) -> Tensor:
    return 2.0 * torch.randn(USER.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_user(user: int, logits: Tensor, defined: Tensor) -> tuple[list[float], list[float]]:
    """Return scores of positives and of negatives."""
    own = (user == USER) & defined
    return logits[own & POSITIVE].tolist(), logits[own & ~POSITIVE].tolist()


def plain_pairwise(logits: Tensor, defined: Tensor) -> float:
    total = 0.0
    for user in range(len(COUNTS)):
        high, low = of_user(user, logits, defined)
        pairs = [math.log1p(math.exp(j - i)) for i in high for j in low]
        total += (len(high) + len(low)) * sum(pairs) / len(pairs) if pairs else 0.0
    return total


def plain_listwise(logits: Tensor, defined: Tensor) -> float:
    total = 0.0
    for user in range(len(COUNTS)):
        high, low = of_user(user, logits, defined)
        if high and low:
            sum_of_exp = sum(map(math.exp, [*high, *low]))
            total += (len(high) + len(low)) * -sum(math.log(math.exp(i) / sum_of_exp) for i in high) / len(high)
    return total


def test_pointwise_losses_are_their_formulas():
    logits = scores()
    for kind, focusing in (("bce", 0.0), ("focal", 2.0), ("focal", 0.5)):
        actual = pointwise(kind, logits, POSITIVE, focusing)
        for loss, score, positive in zip(actual.tolist(), logits.tolist(), POSITIVE.tolist(), strict=True):
            p = 1 / (1 + math.exp(-score))
            of_truth = p if positive else 1 - p
            assert loss == pytest.approx(-((1 - of_truth) ** focusing) * math.log(of_truth))
    torch.testing.assert_close(pointwise("focal", logits, POSITIVE, 0.0), pointwise("bce", logits, POSITIVE))


def test_pointwise_losses_of_far_scores_are_finite():
    far = torch.tensor([-200.0, 200.0], requires_grad=True)
    for kind in ("bce", "focal"):
        for positive in (torch.tensor([True, False]), torch.tensor([False, True])):
            loss = pointwise(kind, far, positive, 2.0).sum()
            (gradient,) = torch.autograd.grad(loss, far)
            assert loss.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
@pytest.mark.parametrize("defined", [ALL, DEFINED], ids=["all", "some"])
def test_pairwise_is_the_loop_over_pairs(monkeypatch, defined, chunk):
    monkeypatch.setattr(losses, "CHUNK_PAIRS", chunk)
    actual = pairwise(scores(), POSITIVE, defined, USER, len(COUNTS))
    assert actual.item() == pytest.approx(plain_pairwise(scores(), defined))


def test_a_gpu_is_given_more_pairs_at_a_time_than_a_cpu():
    assert losses.chunk_pairs(torch.device("cuda")) > 16 * losses.chunk_pairs(torch.device("cpu"))


@pytest.mark.parametrize("defined", [ALL, DEFINED], ids=["all", "some"])
def test_listwise_is_the_loop_over_users(defined):
    actual = listwise(scores(), POSITIVE, defined, USER, len(COUNTS))
    assert actual.item() == pytest.approx(plain_listwise(scores(), defined))
    shifted = listwise(scores() + 500.0, POSITIVE, defined, USER, len(COUNTS))
    assert shifted.item() == pytest.approx(actual.item())


@pytest.mark.parametrize("loss", [pairwise, listwise])
@pytest.mark.parametrize("defined", [ALL, DEFINED, ~ALL], ids=["all", "some", "none"])
def test_gradients(loss, defined):
    logits = scores().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, POSITIVE, defined, USER, len(COUNTS)), (logits,))
    (gradient,) = torch.autograd.grad(loss(logits, POSITIVE, defined, USER, len(COUNTS)), logits)
    assert not gradient[~defined].any()
    assert not gradient[torch.isin(USER, torch.tensor([1, 3, 4]))].any()  # nothing to rank there


@pytest.mark.parametrize("loss", [pairwise, listwise])
def test_users_order_of_impressions_and_other_users_change_nothing(loss):
    whole = loss(scores(), POSITIVE, DEFINED, USER, len(COUNTS))
    alone = sum(
        loss(scores()[own], POSITIVE[own], DEFINED[own], USER[own] * 0, 1)
        for own in (user == USER for user in range(len(COUNTS)))
    )
    torch.testing.assert_close(whole, alone)
    order = torch.randperm(USER.numel(), generator=torch.Generator().manual_seed(1))
    order = order[USER[order].argsort(stable=True)]
    mixed = loss(scores()[order], POSITIVE[order], DEFINED[order], USER[order], len(COUNTS))
    torch.testing.assert_close(mixed, whole)
    left_out = loss(scores()[DEFINED], POSITIVE[DEFINED], ALL[DEFINED], USER[DEFINED], len(COUNTS))
    torch.testing.assert_close(left_out, whole)


@pytest.mark.parametrize("loss", [pairwise, listwise])
def test_without_impressions_the_loss_is_zero_and_can_be_differentiated(loss):
    nothing = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.bool)
    actual = loss(nothing, empty, empty, torch.zeros(0, dtype=torch.int64), 2)
    actual.backward()
    assert actual.item() == 0.0


def test_ranking_losses_fall_as_positives_rise():
    right = torch.where(POSITIVE, 5.0, -5.0)
    for loss in (pairwise, listwise):
        values = [loss(s, POSITIVE, ALL, USER, len(COUNTS)).item() for s in (right, 0 * right, -right)]
        assert values == sorted(values)
        assert values[0] < values[1] < values[2]
