"""Causal attention over jagged histories: the fast path equals the reference, and no event sees what it must not."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.attend import causal_attention, causal_attention_reference
from models.jagged import JaggedLayout, layout_of


def layout_from(lengths: list[int]) -> JaggedLayout:
    return layout_of(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def random_inputs(num_events: int, heads: int, width: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_events, heads, width, generator=generator, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    "lengths", [[4], [1], [0, 1, 5, 0, 2], [3, 0, 0, 7, 1, 1, 12, 2, 40], [0, 0], [1] * 9], ids=str
)
def test_the_fast_path_equals_the_reference(lengths, heads):
    layout = layout_from(lengths)
    inputs = random_inputs(sum(lengths), heads, 4, 1, torch.float64)
    weights = torch.randn(sum(lengths), heads, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs, gradients = [], []
    for attention in (causal_attention, causal_attention_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = attention(*leaves, layout)
        outputs.append(output)
        if output.requires_grad:  # an empty batch has nothing to differentiate
            (output * weights).sum().backward()
        gradients.append([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


def test_the_reference_by_hand():
    """Two events with equal keys: the second averages both values, the first sees only its own."""
    key = torch.ones(2, 1, 2)
    value = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
    output = causal_attention_reference(torch.randn(2, 1, 2), key, value, layout_from([2]))
    torch.testing.assert_close(output, torch.tensor([[[1.0, 0.0]], [[2.0, 2.0]]]))


def test_scores_are_divided_by_the_root_of_the_head_width():
    query, key = torch.full((2, 1, 4), 1.0), torch.tensor([[[0.0] * 4], [[1.0] * 4]])
    value = torch.tensor([[[0.0] * 4], [[1.0] * 4]])
    output = causal_attention_reference(query, key, value, layout_from([2]))
    expected = torch.sigmoid(torch.tensor(4.0 / 2.0))
    torch.testing.assert_close(output[1, 0], expected.expand(4))


def test_gradients_of_the_reference_are_right():
    layout = layout_from([3, 0, 1, 2])
    inputs = [tensor.requires_grad_() for tensor in random_inputs(6, 2, 2, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention_reference(q, k, v, layout), inputs)


# Lengths beyond the blocks of torch's kernels, and histories that share a bucket with longer ones.
LENGTHS = [5, 0, 130, 1, 131, 64, 2]


@pytest.mark.parametrize("attention", [causal_attention, causal_attention_reference])
@pytest.mark.parametrize("history", [0, 2, 5])
def test_a_later_event_leaves_earlier_outputs_bit_identical(attention, history):
    layout = layout_from(LENGTHS)
    start, end = layout.offsets[history : history + 2].tolist()
    inputs = random_inputs(sum(LENGTHS), 2, 8, 4, torch.float32)
    before = attention(*inputs, layout)
    for changed in (end - 1, start + (end - start) // 2):
        perturbed = [tensor.clone() for tensor in inputs]
        for tensor in perturbed:
            tensor[changed:end] = 10.0 * torch.randn(end - changed, 2, 8)
        after = attention(*perturbed, layout)
        assert torch.equal(after[start:changed], before[start:changed])
        assert not torch.equal(after[changed:end], before[changed:end])


@pytest.mark.parametrize("history", [0, 2, 3])
def test_histories_do_not_see_each_other(history):
    """History 0 holds the event that stands in for padding."""
    layout = layout_from(LENGTHS)
    start, end = layout.offsets[history : history + 2].tolist()
    inputs = random_inputs(sum(LENGTHS), 2, 8, 5, torch.float32)
    perturbed = [tensor.clone() for tensor in inputs]
    for tensor in perturbed:
        tensor[start:end] += 100.0
    before, after = causal_attention(*inputs, layout), causal_attention(*perturbed, layout)
    outside = torch.ones(sum(LENGTHS), dtype=torch.bool)
    outside[start:end] = False
    assert torch.equal(after[outside], before[outside])
    assert not torch.equal(after[~outside], before[~outside])


def test_an_output_has_no_gradient_from_later_events_or_other_histories():
    layout = layout_from([4, 6])
    leaves = [tensor.requires_grad_() for tensor in random_inputs(10, 2, 4, 6, torch.float64)]
    causal_attention(*leaves, layout)[6].sum().backward()  # the third event of the second history
    for leaf, reaching in zip(leaves, ([6], [4, 5, 6], [4, 5, 6]), strict=True):
        touched = leaf.grad.abs().sum(dim=(1, 2)).nonzero().flatten().tolist()
        assert touched == reaching
