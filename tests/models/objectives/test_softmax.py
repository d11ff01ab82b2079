"""Full softmax: in chunks and in tiles it equals the plain one in value and gradients, and never holds all logits."""

import math

import pytest
import torch
from torch import Tensor

from models.objectives import chunked_scores, softmax
from models.objectives.softmax import scale_vectors, softmax_cross_entropy, softmax_cross_entropy_reference
from tests.models.objectives.largest_tensor import largest_tensor


def random_problem(num_targets: int, num_candidates: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    user_TD = torch.randn(num_targets, 5, generator=generator, dtype=torch.float64)
    item_CD = torch.randn(num_candidates, 5, generator=generator, dtype=torch.float64)
    return user_TD, item_CD, torch.randint(0, num_candidates, (num_targets,), generator=generator)


def value_and_gradients(function, user_TD, item_CD, target_T, temperature, smoothing=0.0, factor=1.0):
    user_TD, item_CD = user_TD.clone().requires_grad_(), item_CD.clone().requires_grad_()
    loss = function(user_TD, item_CD, target_T, temperature, smoothing)
    (loss * factor).backward()
    return loss.detach(), user_TD.grad, item_CD.grad


def in_chunks(monkeypatch, elements: int) -> None:
    """Let whole rows of logits be computed at a time: as many as fit into a number of elements, and at least one."""
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(softmax, "MIN_ROWS", 0)


def in_tiles(monkeypatch, rows: int, items: int) -> None:
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", rows * items)
    monkeypatch.setattr(softmax, "TILE_ROWS", rows)
    monkeypatch.setattr(softmax, "MIN_ROWS", 10**9)


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.07, 0.1), (3.0, 0.9)])
@pytest.mark.parametrize("chunk_elements", [1, 11, 25, 60, 1 << 20])  # rows per chunk: 1, 1, 2, 5, all 13
def test_chunks_equal_the_reference(monkeypatch, chunk_elements, temperature, smoothing):
    in_chunks(monkeypatch, chunk_elements)
    problem = random_problem(13, 11)
    actual = value_and_gradients(softmax_cross_entropy, *problem, temperature, smoothing, factor=0.3)
    expected = value_and_gradients(softmax_cross_entropy_reference, *problem, temperature, smoothing, factor=0.3)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.07, 0.1), (3.0, 0.9)])
@pytest.mark.parametrize("tile", [(1, 1), (3, 4), (13, 2), (5, 11), (100, 100)])
def test_tiles_equal_the_reference(monkeypatch, tile, temperature, smoothing):
    in_tiles(monkeypatch, *tile)
    problem = random_problem(13, 11)
    actual = value_and_gradients(softmax_cross_entropy, *problem, temperature, smoothing, factor=0.3)
    expected = value_and_gradients(softmax_cross_entropy_reference, *problem, temperature, smoothing, factor=0.3)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_the_reference_by_hand():
    user_TD, item_CD = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0]])
    loss = softmax_cross_entropy_reference(user_TD, item_CD, torch.tensor([1]), 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)))
    smoothed = softmax_cross_entropy_reference(user_TD, item_CD, torch.tensor([1]), 2.0, 0.2)
    # nine tenths of the target's cross-entropy, and a tenth of the other item's, which is larger by the difference of scores
    assert smoothed.item() == pytest.approx(loss.item() + 0.1 * 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("tiles", [False, True])
def test_gradients_are_those_of_finite_differences(monkeypatch, tiles, smoothing):
    in_tiles(monkeypatch, 2, 4) if tiles else in_chunks(monkeypatch, 12)
    user_TD, item_CD, target_T = random_problem(5, 6)
    inputs = (user_TD.requires_grad_(), item_CD.requires_grad_())
    assert torch.autograd.gradcheck(lambda u, i: softmax_cross_entropy(u, i, target_T, 0.5, smoothing), inputs)


@pytest.mark.parametrize("tiles", [False, True])
def test_no_targets_cost_nothing_and_have_zero_gradients(monkeypatch, tiles):
    if tiles:
        in_tiles(monkeypatch, 2, 4)
    loss, user, item = value_and_gradients(softmax_cross_entropy, *random_problem(0, 4), 1.0, 0.1)
    assert loss.item() == 0.0
    assert user.shape == (0, 5)
    assert torch.equal(item, torch.zeros(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("tiles", [False, True])
def test_large_scores_do_not_overflow(monkeypatch, tiles):
    if tiles:
        in_tiles(monkeypatch, 1, 1)
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


@pytest.mark.parametrize(("num_targets", "num_candidates"), [(500, 100), (40, 4000)])
def test_no_more_logits_are_held_than_a_chunk_has(monkeypatch, num_targets, num_candidates):
    """Of many targets by rows, of many candidates by tiles; vectors, of which all are held anyway, have five numbers each."""
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", 64 * 100)
    monkeypatch.setattr(softmax, "TILE_ROWS", 32)
    problem = random_problem(num_targets, num_candidates)
    allowed = max(64 * 100, 5 * num_targets, 5 * num_candidates)
    assert num_targets * num_candidates > 2 * allowed
    assert largest_tensor(lambda: value_and_gradients(softmax_cross_entropy, *problem, 1.0, 0.1)) <= allowed
    plain = largest_tensor(lambda: value_and_gradients(softmax_cross_entropy_reference, *problem, 1.0, 0.1))
    assert plain >= num_targets * num_candidates


def test_it_is_a_sum_over_targets_in_any_order():
    user_TD, item_CD, target_T = random_problem(9, 7)
    whole = softmax_cross_entropy(user_TD, item_CD, target_T, 0.7, 0.2)
    order = torch.tensor([3, 8, 0, 2, 7, 1, 6, 5, 4])
    pieces = [softmax_cross_entropy(user_TD[p], item_CD, target_T[p], 0.7, 0.2) for p in order.split([4, 1, 4])]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)


def test_normalised_vectors_have_length_one_and_zeros_stay_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.1, 0.0]])
    torch.testing.assert_close(scale_vectors(vectors, True), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert scale_vectors(vectors, False) is vectors
