"""The compiled attention equals the plain formula in value and gradients, with every form of weights and bias that it computes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention.attend import attend
from models.attention.bias import time_bounds, time_buckets
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.reference import attend_reference
from models.attention.terms import AttentionTerms
from models.compiled.attention import NORMALISATIONS, AttentionKernel
from tests.models.attention.forms import context_of, parts_of
from tests.models.compiled.compiler import kernels_or_skip

# Shorter than a step of rows, empty, as long as a block and a panel, one more and less, longer than several panels.
LENGTHS = ([1], [5, 0, 3], [48, 49, 47], [64, 63, 65, 130, 1, 0], [300, 2])
BIASES = {
    "none": {},
    "position": {"bias": "position"},
    "bucketed position": {"bias": "position", "position_bias": "bucketed"},
    "time": {"bias": "time"},
    "both, functional position": {"bias": "both", "position_bias": "functional"},
}
# Heads of queries, of keys and values, width of a head.
SHAPES = ((1, 1, 1), (2, 2, 16), (4, 2, 7), (2, 1, 52))


@pytest.fixture
def kernel() -> AttentionKernel:
    return kernels_or_skip().attention


def terms_of(normalisation: str, bias: str, num_heads: int, width: int) -> AttentionTerms:
    config = AttentionConfig.model_validate({"num_heads": num_heads, "normalisation": normalisation, **BIASES[bias]})
    return parts_of(config, width, torch.float32)


def in_float64(parts: AttentionTerms) -> AttentionTerms:
    """Return the parts with the same weights. Random numbers of two dtypes differ."""
    position, time = (None if bias is None else copy.deepcopy(bias).double() for bias in (parts.position, parts.time))
    return replace(parts, position=position, time=time)


def gradients_of(attention, inputs: list[Tensor], context: AttentionContext, parts: AttentionTerms) -> list[Tensor]:
    """Return output and the gradients of queries, keys, values and biases, of a weighted sum of the output."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attention(*leaves, context, parts).output
    # Numbers of bfloat16, so that all dtypes have the same gradient of the output.
    factor = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    (output * factor.to(output.dtype)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves), *(weight.grad for weight in parts.parameters)]


def random_heads(lengths: list[int], shape: tuple[int, int, int]) -> list[Tensor]:
    num_heads, num_key_heads, width = shape
    generator = torch.Generator().manual_seed(1)
    sizes = (num_heads, num_key_heads, num_key_heads)
    return [torch.randn(sum(lengths), heads, width, generator=generator) for heads in sizes]


@pytest.mark.pairwise
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_it_equals_the_reference(kernel, normalisation, lengths, shape, bias, dtype, threads):
    inputs = [tensor.to(dtype) for tensor in random_heads(lengths, shape)]
    context = context_of(lengths)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    parts = terms_of(normalisation, bias, shape[0], shape[2])
    compiled = gradients_of(attend, inputs, replace(context, kernel=kernel), parts)
    torch.set_num_threads(before)
    exact = [tensor.double() for tensor in inputs]
    plain = gradients_of(attend_reference, exact, context, in_float64(parts))
    # Gradients of weights that sum to one are differences of terms of up to 10, which cancel for a single key.
    least, of_bias = (1e-7, 2e-5) if normalisation == "silu" else (2e-6, 4e-5)
    for place, (actual, expected) in enumerate(zip(compiled, plain, strict=True)):
        # The output and the gradients of heads have the precision of the input. Those of biases are sums of terms of both signs.
        rounding = 2**-8 if dtype == torch.bfloat16 else 2e-6 if place < 4 else of_bias
        assert (actual.double() - expected).norm() <= rounding * expected.norm() + least


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_results_do_not_depend_on_the_number_of_threads(kernel, normalisation):
    lengths = [70, 3, 130, 64, 0, 9]
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        context = replace(context_of(lengths), kernel=kernel)
        inputs = random_heads(lengths, (2, 2, 8))
        results.append(gradients_of(attend, inputs, context, terms_of(normalisation, "time", 2, 8)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_heads_may_be_columns_of_a_wider_tensor(kernel, normalisation):
    """As in HSTU, where the gate stands next to them: they are read in place, and the rest of a row has no gradient."""
    wide = torch.randn(12, 3 * 8 + 5, generator=torch.Generator().manual_seed(4))
    columns = [part.unflatten(1, (2, 4)) for part in wide[:, :24].split(8, dim=1)]
    assert not columns[0].is_contiguous()
    context = replace(context_of([7, 5]), kernel=kernel)
    of_columns = gradients_of(attend, columns, context, terms_of(normalisation, "position", 2, 4))
    copies = [column.contiguous() for column in columns]
    of_copies = gradients_of(attend, copies, context, terms_of(normalisation, "position", 2, 4))
    assert all(torch.equal(a, b) for a, b in zip(of_columns, of_copies, strict=True))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_extreme_scores_have_finite_weights_and_gradients(kernel, normalisation):
    query, key = torch.tensor([1e4, -1e4, 1e4]).view(3, 1, 1), torch.tensor([1e4, 1e4, -1e4]).view(3, 1, 1)
    parts = terms_of(normalisation, "none", 1, 1)
    inputs = [query, key, torch.ones(3, 1, 1)]
    output, *gradients = gradients_of(attend, inputs, replace(context_of([3]), kernel=kernel), parts)
    expected = gradients_of(attend, inputs, context_of([3]), parts)
    torch.testing.assert_close([output, *gradients], expected)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("normalisation", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_weights_below_the_threshold_are_exactly_zero(kernel, normalisation, offset):
    """Values are one-hot, so that the output is the weights. An offset of all scores changes none of them."""
    scores = torch.tensor([0.0, -0.3, 0.2, -5.0, 0.1]) + offset
    query, key = torch.ones(5, 1, 1), scores.view(5, 1, 1)
    context = replace(context_of([5]), kernel=kernel)
    parts = replace(terms_of(normalisation, "none", 1, 1), scale=1.0)
    weights = attend(query, key, torch.eye(5)[:, None], context, parts).output[-1, 0, 0]
    expected = attend_reference(query.double(), key.double(), torch.eye(5).double()[:, None], context, parts).output[-1]
    torch.testing.assert_close(weights.double(), expected[0, 0], rtol=1e-4, atol=1e-7)
    assert weights[3] == 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_number_that_is_none_is_not_hidden(kernel, normalisation):
    """A training stops at such a loss, and must see it."""
    inputs = random_heads([9], (1, 1, 4))
    inputs[1][4] = torch.nan
    output = attend(*inputs, replace(context_of([9]), kernel=kernel), terms_of(normalisation, "none", 1, 4)).output
    assert output[:4].isfinite().all()
    assert output[4:].isnan().all()


@pytest.mark.parametrize("order", ["rising", "equal", "any"])
def test_buckets_are_those_of_the_time_bias_for_times_in_any_order(kernel, order):
    generator = torch.Generator().manual_seed(5)
    lengths = [1, 0, 90, 33]
    steps = torch.rand(sum(lengths), generator=generator, dtype=torch.float64).mul(20).exp().long()
    times = {"rising": steps.cumsum(0), "equal": torch.full_like(steps, 7), "any": steps}[order]
    requests = times + torch.randint(-100, 100_000, times.shape, generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    pairs = kernel.pair_buckets(offsets, times, requests, time_bounds(times.device))
    assert pairs.first_pair.tolist() == [0, 1, 1, 1 + 90**2, 1 + 90**2 + 33**2]
    of_histories = zip(times.split(lengths), requests.split(lengths), pairs.first_pair.tolist(), strict=False)
    for own, asked, first in of_histories:
        expected = time_buckets((asked[:, None] - own[None, :]).clamp(min=0))
        actual = pairs.buckets[first : first + own.numel() ** 2].view(own.numel(), own.numel())
        assert torch.equal(actual.long().tril(), expected.tril())


def test_the_buckets_of_a_batch_are_computed_once(kernel, monkeypatch):
    computed: list[object] = []
    once = AttentionKernel.pair_buckets
    monkeypatch.setattr(
        AttentionKernel, "pair_buckets", lambda self, *tensors: computed.append(tensors) or once(self, *tensors)
    )
    context = replace(context_of([5, 8]), kernel=kernel)
    for _ in range(3):
        gradients_of(attend, random_heads([5, 8], (2, 2, 4)), context, terms_of("silu", "time", 2, 4))
    assert len(computed) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "time", "time_bias": "functional"},
        {"bias": "both", "bias_as": "channel"},
        {"penalty": 0.1},
        {"window": 3},
        {"mask": "bidirectional"},
        {"normalisation": "none"},
    ],
    ids=str,
)
def test_other_forms_take_the_path_of_torch(kernel, monkeypatch, settings):
    monkeypatch.setattr(AttentionKernel, "run", None)
    config = AttentionConfig.model_validate({"num_heads": 2, "normalisation": "silu", **settings})
    context = replace(context_of([4, 6]), kernel=kernel)
    attend(*random_heads([4, 6], (2, 2, 4)), context, parts_of(config, 4, torch.float32))


def test_dropped_weights_take_the_path_of_torch(kernel, monkeypatch):
    monkeypatch.setattr(AttentionKernel, "run", None)
    config = AttentionConfig.model_validate({"num_heads": 2, "normalisation": "silu"})
    parts = parts_of(config, 4, torch.float32, threshold=64)
    attend(*random_heads([4, 6], (2, 2, 4)), replace(context_of([4, 6]), kernel=kernel), parts)
