"""Objectives: chunked cross-entropy equals the plain one in value and gradients; sampled softmax equals brute force."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.objectives import softmax
from models.objectives.softmax import (
    sampled_softmax_cross_entropy,
    scale_vectors,
    softmax_cross_entropy,
    softmax_cross_entropy_reference,
)


def random_problem(num_targets: int, num_candidates: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    user_TD = torch.randn(num_targets, 5, generator=generator, dtype=torch.float64)
    item_CD = torch.randn(num_candidates, 5, generator=generator, dtype=torch.float64)
    return user_TD, item_CD, torch.randint(0, num_candidates, (num_targets,), generator=generator)


def value_and_gradients(function, user_TD, item_CD, target_T, temperature, factor=1.0):
    user_TD, item_CD = user_TD.clone().requires_grad_(), item_CD.clone().requires_grad_()
    loss = function(user_TD, item_CD, target_T, temperature)
    (loss * factor).backward()
    return loss.detach(), user_TD.grad, item_CD.grad


@pytest.mark.parametrize("temperature", [1.0, 0.07, 3.0])
@pytest.mark.parametrize("chunk_elements", [1, 11, 25, 60, 1 << 20])  # rows per chunk: 1, 1, 2, 5, all 13
def test_chunked_cross_entropy_equals_the_reference(monkeypatch, chunk_elements, temperature):
    monkeypatch.setattr(softmax, "CHUNK_ELEMENTS", chunk_elements)
    problem = random_problem(13, 11)
    actual = value_and_gradients(softmax_cross_entropy, *problem, temperature, factor=0.3)
    expected = value_and_gradients(softmax_cross_entropy_reference, *problem, temperature, factor=0.3)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_the_reference_by_hand():
    user_TD, item_CD = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0]])
    loss = softmax_cross_entropy_reference(user_TD, item_CD, torch.tensor([1]), 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_gradients_of_the_chunked_cross_entropy_are_right(monkeypatch):
    monkeypatch.setattr(softmax, "CHUNK_ELEMENTS", 12)
    user_TD, item_CD, target_T = random_problem(5, 6)
    inputs = (user_TD.requires_grad_(), item_CD.requires_grad_())
    assert torch.autograd.gradcheck(lambda u, i: softmax_cross_entropy(u, i, target_T, 0.5), inputs)


def test_no_targets_cost_nothing_and_have_zero_gradients():
    loss, user, item = value_and_gradients(softmax_cross_entropy, *random_problem(0, 4), 1.0)
    assert loss.item() == 0.0
    assert user.shape == (0, 5)
    assert torch.equal(item, torch.zeros(4, 5, dtype=torch.float64))


def test_large_scores_do_not_overflow():
    user_TD, item_CD = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [-1.0], [0.5]])
    loss, *gradients = value_and_gradients(softmax_cross_entropy, user_TD, item_CD, torch.tensor([0, 0]), 1.0)
    assert loss.item() == pytest.approx(2000.0)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_inputs_are_left_as_they_were():
    user_TD, item_CD, target_T = random_problem(7, 5)
    copies = user_TD.clone(), item_CD.clone()
    softmax_cross_entropy(user_TD, item_CD, target_T, 0.5)
    assert torch.equal(user_TD, copies[0])
    assert torch.equal(item_CD, copies[1])


def sampled_brute_force(user_TD, positive_TD, negative_CD, target_ids, negative_ids, temperature) -> Tensor:
    """Target by target: a softmax over its own vector and the negatives that are other items."""
    losses = []
    for user, positive, target in zip(user_TD, positive_TD, target_ids.tolist(), strict=True):
        others = [v for v, negative in zip(negative_CD, negative_ids.tolist(), strict=True) if negative != target]
        scores = torch.stack([user @ vector for vector in (positive, *others)]) / temperature
        losses.append(F.cross_entropy(scores[None], torch.tensor([0])))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_sampled_softmax_equals_brute_force_without_accidental_hits(temperature):
    table = torch.randn(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    user_TD = random_problem(8, 1, seed=4)[0]
    target_ids = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
    negative_ids = torch.tensor([0, 0, 3, 5, 1, 3])  # item 2 is never drawn, others are drawn twice
    hit_TC = target_ids[:, None] == negative_ids[None, :]
    results = []
    for sampled in (True, False):
        leaves = user_TD.clone().requires_grad_(), table.clone().requires_grad_()
        vectors = leaves[0], leaves[1][target_ids], leaves[1][negative_ids]
        loss = (
            sampled_softmax_cross_entropy(*vectors, hit_TC, temperature)
            if sampled
            else sampled_brute_force(*vectors, target_ids, negative_ids, temperature)
        )
        loss.backward()
        results.append((loss.detach(), leaves[0].grad, leaves[1].grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_a_target_whose_every_negative_is_itself_costs_nothing():
    user_TD = torch.randn(1, 5)
    loss = sampled_softmax_cross_entropy(user_TD, torch.randn(1, 5), torch.randn(3, 5), torch.ones(1, 3).bool(), 1.0)
    assert loss.item() == 0.0


def test_sampled_softmax_over_the_rest_of_the_catalogue_is_the_full_softmax():
    user_TD, item_CD, target_T = random_problem(6, 9)
    every = torch.arange(9)
    sampled = sampled_softmax_cross_entropy(user_TD, item_CD[target_T], item_CD, target_T[:, None] == every, 0.7)
    torch.testing.assert_close(sampled, softmax_cross_entropy_reference(user_TD, item_CD, target_T, 0.7))


def test_normalised_vectors_have_length_one_and_zeros_stay_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.1, 0.0]])
    torch.testing.assert_close(scale_vectors(vectors, True), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert scale_vectors(vectors, False) is vectors
