"""Objectives with negatives: equal to plain references and to brute force, without accidental hits, and consistent."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.objectives import chunked_scores
from models.objectives.sampled import (
    Sample,
    balanced_offset,
    binary_cross_entropy,
    binary_cross_entropy_reference,
    gbce_beta,
    sampled_softmax_cross_entropy,
    sampled_softmax_reference,
)
from models.objectives.softmax import softmax_cross_entropy_reference
from tests.models.objectives.largest_tensor import largest_tensor

NUM_ITEMS, WIDTH = 6, 5
TARGETS, NEGATIVES = [0, 1, 2, 3, 4, 5, 0, 0], [0, 0, 3, 5, 1, 3]  # item 2 is never drawn, others are drawn twice
PAIRS = {
    "sampled_softmax": (sampled_softmax_cross_entropy, sampled_softmax_reference),
    "bce": (
        lambda sample: binary_cross_entropy(sample, 1.0, 1 / 6),
        lambda sample: binary_cross_entropy_reference(sample, 1.0, 1 / 6),
    ),
    "gbce": (
        lambda sample: binary_cross_entropy(sample, 0.3, 1.0, 1.5),
        lambda sample: binary_cross_entropy_reference(sample, 0.3, 1.0, 1.5),
    ),
}


def random_table(seed: int = 3, num_items: int = NUM_ITEMS) -> Tensor:
    return torch.randn(num_items, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_of(
    table: Tensor,
    user_TD: Tensor | None = None,
    temperature: float = 1.0,
    log_q: Tensor | None = None,
    targets: list[int] = TARGETS,
    negatives: list[int] = NEGATIVES,
) -> Sample:
    target_ids, negative_ids = torch.tensor(targets, dtype=torch.int64), torch.tensor(negatives, dtype=torch.int64)
    user_TD = random_table(4, len(targets)) if user_TD is None else user_TD
    corrections = (None, None) if log_q is None else (log_q[target_ids], log_q[negative_ids])
    return Sample(user_TD, table[target_ids], table[negative_ids], target_ids, negative_ids, temperature, *corrections)


LOG_Q = torch.tensor([0.3, 0.1, 0.1, 0.25, 0.05, 0.2], dtype=torch.float64).log()


def value_and_gradients(objective, temperature: float, log_q: Tensor | None, seed: int = 3) -> list[Tensor]:
    user_TD, table = random_table(4, len(TARGETS)).requires_grad_(), random_table(seed).requires_grad_()
    loss = objective(sample_of(table, user_TD, temperature, log_q))
    (0.3 * loss).backward()
    return [loss.detach(), user_TD.grad, table.grad]


@pytest.mark.parametrize("log_q", [None, LOG_Q], ids=["plain", "corrected"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("chunk_elements", [1, 13, 40, 1 << 20])  # targets per chunk: 1, 2, 6, all 8
@pytest.mark.parametrize("objective", PAIRS)
def test_chunks_equal_the_reference(monkeypatch, objective, chunk_elements, temperature, log_q):
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", chunk_elements)
    fast, plain = PAIRS[objective]
    for ours, expected in zip(
        value_and_gradients(fast, temperature, log_q), value_and_gradients(plain, temperature, log_q), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_q", [None, LOG_Q], ids=["plain", "corrected"])
@pytest.mark.parametrize("objective", PAIRS)
def test_gradients_are_those_of_finite_differences(monkeypatch, objective, log_q):
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", 13)
    inputs = random_table(4, len(TARGETS)).requires_grad_(), random_table().requires_grad_()
    for function in PAIRS[objective]:
        assert torch.autograd.gradcheck(lambda u, t, f=function: f(sample_of(t, u, 0.5, log_q)), inputs)


def others(target: int) -> list[int]:
    return [negative for negative in NEGATIVES if negative != target]


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_sampled_softmax_is_a_softmax_over_the_target_and_the_negatives_that_are_other_items(temperature):
    table, user_TD = random_table(), random_table(4, len(TARGETS))
    expected = torch.zeros((), dtype=torch.float64)
    for user, target in zip(user_TD, TARGETS, strict=True):
        scores = table[[target, *others(target)]] @ user / temperature
        expected += F.cross_entropy(scores[None], torch.tensor([0]))
    torch.testing.assert_close(sampled_softmax_cross_entropy(sample_of(table, temperature=temperature)), expected)


def test_binary_cross_entropy_classifies_each_score_as_target_or_not():
    table, user_TD = random_table(), random_table(4, len(TARGETS))
    expected = 0.0
    for user, target in zip(user_TD, TARGETS, strict=True):
        expected -= 0.7 * math.log(1 / (1 + math.exp(-float(user @ table[target]))))
        for negative in others(target):
            expected -= 0.5 * math.log(1 - 1 / (1 + math.exp(-float(user @ table[negative]))))
    assert binary_cross_entropy(sample_of(table), 0.7, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("objective", PAIRS)
def test_negatives_that_are_all_the_target_teach_nothing_about_negatives(objective):
    table, user_TD = random_table().requires_grad_(), random_table(4, 1).requires_grad_()
    PAIRS[objective][0](sample_of(table, user_TD, targets=[2], negatives=[2, 2])).backward()
    alone = random_table().requires_grad_()
    PAIRS[objective][1](sample_of(alone, user_TD.detach(), targets=[2], negatives=[])).backward()
    torch.testing.assert_close(table.grad, alone.grad)
    assert bool(alone.grad.any()) is (objective != "sampled_softmax")


@pytest.mark.parametrize("objective", PAIRS)
@pytest.mark.parametrize(("targets", "negatives"), [([], [1, 2]), ([], []), ([1, 2], [])])
def test_without_targets_or_negatives_there_is_a_gradient_and_it_is_finite(objective, targets, negatives):
    table, user_TD = random_table().requires_grad_(), random_table(4, len(targets)).requires_grad_()
    loss = PAIRS[objective][0](sample_of(table, user_TD, log_q=LOG_Q, targets=targets, negatives=negatives))
    loss.backward()
    assert loss.isfinite()
    assert user_TD.grad.isfinite().all()
    assert table.grad.isfinite().all()
    if not targets:
        assert loss.item() == 0.0
        assert not table.grad.any()


@pytest.mark.parametrize("objective", PAIRS)
def test_large_scores_do_not_overflow(objective):
    table, user_TD = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [-1.0]]).requires_grad_()
    loss = PAIRS[objective][0](sample_of(table, user_TD, targets=[0, 0], negatives=[1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert loss.item() >= 300.0
    assert user_TD.grad.isfinite().all()


@pytest.mark.parametrize("objective", PAIRS)
def test_it_is_a_sum_over_targets_in_any_order(objective):
    table, user_TD = random_table(), random_table(4, len(TARGETS))
    function = PAIRS[objective][0]
    whole = function(sample_of(table, user_TD, log_q=LOG_Q))
    pieces = [
        function(sample_of(table, user_TD[list(part)], log_q=LOG_Q, targets=[TARGETS[place] for place in part]))
        for part in ((5, 0), (7, 1, 2, 6), (3, 4))
    ]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)
    shuffled = function(sample_of(table, user_TD, log_q=LOG_Q, negatives=NEGATIVES[::-1]))
    torch.testing.assert_close(shuffled, whole)


@pytest.mark.parametrize("objective", PAIRS)
def test_no_more_scores_are_held_than_a_chunk_has(monkeypatch, objective):
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", 1000)
    fast, plain = PAIRS[objective]
    table, user_TD = random_table(), random_table(4, 900).requires_grad_()
    sample = sample_of(table, user_TD, log_q=LOG_Q, targets=[i % 6 for i in range(900)], negatives=[1, 2, 3] * 20)
    allowed = 900 * WIDTH
    assert largest_tensor(lambda: fast(sample).backward()) <= allowed
    assert largest_tensor(lambda: plain(sample).backward()) >= 900 * 60


# Consistency


def test_sampled_softmax_over_the_rest_of_the_catalogue_is_the_full_softmax():
    table, user_TD = random_table(), random_table(4, len(TARGETS))
    sampled = sampled_softmax_cross_entropy(sample_of(table, temperature=0.7, negatives=list(range(NUM_ITEMS))))
    torch.testing.assert_close(sampled, softmax_cross_entropy_reference(user_TD, table, torch.tensor(TARGETS), 0.7))


def test_corrected_negatives_estimate_the_full_softmax_without_bias():
    """Over every draw of two negatives, by its probability, the corrected sum has the sum over the other items as its mean."""
    table, user_TD = random_table(), random_table(4, 1)
    scores = (user_TD @ table.T)[0]
    expected = scores.exp().sum() - scores[4].exp()
    mean = torch.zeros((), dtype=torch.float64)
    for draw in itertools.product(range(NUM_ITEMS), repeat=2):
        loss = sampled_softmax_cross_entropy(sample_of(table, user_TD, log_q=LOG_Q, targets=[4], negatives=list(draw)))
        mean += LOG_Q[list(draw)].sum().exp() * (loss + scores[4]).exp()
    torch.testing.assert_close(mean - scores[4].exp(), expected)


def test_many_corrected_negatives_of_any_distribution_give_the_full_softmax():
    table, user_TD = random_table(), random_table(4, len(TARGETS))
    draws = torch.multinomial(LOG_Q.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    sample = replace(sample_of(table), negatives=table[draws], negative_ids=draws, negative_log_q=LOG_Q[draws])
    full = softmax_cross_entropy_reference(user_TD, table, torch.tensor(TARGETS), 1.0)
    torch.testing.assert_close(sampled_softmax_cross_entropy(sample), full, rtol=5e-3, atol=0.0)
    plain = sampled_softmax_cross_entropy(replace(sample, negative_log_q=None))
    assert abs(plain.item() - full.item()) > 1.0


def test_corrected_binary_cross_entropy_is_least_at_the_logarithms_of_probabilities():
    """Noise-contrastive estimation: one user, targets by p, negatives by q; scores that are log p have no gradient."""
    share = torch.tensor([0.4, 0.1, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)
    table = share.log()[:, None].clone().requires_grad_()
    targets = [item for item, p in enumerate(share.tolist()) for _ in range(round(p * 20))]
    drawn = [item for item, q in enumerate(LOG_Q.exp().tolist()) for _ in range(round(q * 20))]
    user_TD = torch.ones(len(targets), 1, dtype=torch.float64)
    sample = sample_of(table, user_TD, log_q=LOG_Q, targets=targets, negatives=drawn)
    # In expectation over draws that know nothing of the target, so accidental hits are not left out.
    sample = replace(sample, target_ids=torch.full_like(sample.target_ids, -1))
    (gradient,) = torch.autograd.grad(
        binary_cross_entropy(sample, 1.0, 1.0, math.log(len(drawn))), table, retain_graph=True
    )
    assert gradient.abs().max() < 1e-9
    (gradient,) = torch.autograd.grad(
        binary_cross_entropy(replace(sample, negative_log_q=None), 1.0, 1.0, math.log(len(drawn))), table
    )
    assert gradient.abs().max() > 1.0


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5)])
def test_balanced_scores_of_zero_weigh_a_target_as_much_as_its_negatives(corrected, weights):
    uniform = torch.full((NUM_ITEMS,), -math.log(NUM_ITEMS), dtype=torch.float64)
    user_TD, table = torch.zeros(1, WIDTH, dtype=torch.float64).requires_grad_(), random_table()
    sample = sample_of(table, user_TD, log_q=uniform if corrected else None, targets=[2])
    offset = balanced_offset(sample, *weights, NUM_ITEMS, balanced=True)
    binary_cross_entropy(sample, *weights, offset).backward()
    pull, push = -table[2], table[NEGATIVES].mean(dim=0)
    a, b = weights
    odds = a / (b * len(NEGATIVES))
    expected = a / (1 + odds) * pull + b * len(NEGATIVES) * odds / (1 + odds) * push
    torch.testing.assert_close(user_TD.grad[0], expected)  # both have the factor a / (1 + odds)
    assert balanced_offset(sample, 1.0, 1 / 6, NUM_ITEMS, balanced=False) == pytest.approx(0.0)


@pytest.mark.parametrize("num_negatives", [1, 256, 3415])
def test_the_power_of_gbce(num_negatives):
    """As the paper writes it, with a = negatives / (items - 1)."""
    rate = num_negatives / 3415
    for calibration in (0.0, 0.25, 0.75, 1.0):
        paper = rate * (calibration * (1 - 1 / rate) + 1 / rate)
        assert gbce_beta(num_negatives, 3416, calibration) == pytest.approx(paper)
    assert gbce_beta(num_negatives, 3416, 0.0) == 1.0
    assert gbce_beta(num_negatives, 3416, 1.0) == pytest.approx(rate)


def test_the_power_of_gbce_is_never_above_one():
    assert gbce_beta(100, 10, 1.0) == 1.0
    assert gbce_beta(5, 1, 1.0) == 1.0


@pytest.mark.parametrize("objective", PAIRS)
def test_under_autocast_products_are_rounded_and_sums_are_not(objective):
    """Many targets: their sum in bfloat16 would be off by much more than each of them."""
    targets, negatives = [i % 6 for i in range(3000)], [0, 1, 2, 3, 5] * 8
    actual = []
    for rounded in (True, False):
        table, user_TD = (t.float().requires_grad_() for t in (random_table(), random_table(4, len(targets))))
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = PAIRS[objective][not rounded](sample_of(table, user_TD, targets=targets, negatives=negatives))
        assert loss.dtype == torch.float32
        loss.backward()
        actual.append((loss.detach(), user_TD.grad, table.grad))
    for ours, exact in zip(*actual, strict=True):
        assert (ours - exact).norm() < 0.01 * exact.norm()
