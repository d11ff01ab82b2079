"""The Triton kernels, run by Triton's interpreter on a CPU, equal the reference in values and gradients."""

import copy
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention import triton_attention as on_gpu
from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.reference import attend_reference, attend_to_events_reference
from models.attention.terms import AttentionTerms
from tests.models.attention.forms import FORMS, ODD_LENGTHS, config_of, context_of, layout_from, parts_of, random_inputs
from tests.models.attention.shown import shown, vectors

pytestmark = pytest.mark.skipif(not on_gpu.has_triton(), reason="needs triton, of requirements/interpreter.txt")
FITTING = [form for form in FORMS if on_gpu.triton_fits(parts_of(config_of(form), 8, torch.float32))]
SEVERAL_TILES = [3, 0, 1, 33]
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that histories have several. tests/conftest.py asks for the interpreter."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr(on_gpu, "TILE", 16)


def results(run, inputs: list[Tensor], parts) -> list[Tensor]:
    """Return output and all gradients of a weighted sum."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    for parameter in parts.parameters:
        parameter.grad = None
    output = run(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if output.numel():  # the reference of no events depends on nothing
        (output * weights.to(output.dtype)).sum().backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in (*leaves, *parts.parameters)]
    return [output.detach(), *gradients]


def single(exact: AttentionTerms) -> AttentionTerms:
    """Return the same parts in single precision."""
    return replace(
        exact,
        position=None if exact.position is None else copy.deepcopy(exact.position).float(),
        time=None if exact.time is None else copy.deepcopy(exact.time).float(),
    )


def check_events(form: str, lengths: list[int], reach: int | None = None, width: int = 8) -> None:
    config, context = config_of(form), replace(context_of(lengths), reach=reach)
    inputs = random_inputs(config, sum(lengths), width, 1, torch.float64)
    exact = parts_of(config, width, torch.float64)
    parts = single(exact)
    plain = results(lambda q, k, v: attend_reference(q, k, v, context, exact).output[:, 0], inputs, exact)
    ranges = on_gpu.ranges_of_events(context, parts)
    narrow = [tensor.float() for tensor in inputs]
    fast = results(lambda q, k, v: on_gpu.triton_attention(q, k, v, ranges, parts), narrow, parts)
    check_close(fast, plain)


def check_close(fast: list[Tensor], plain: list[Tensor]) -> None:
    for actual, expected in zip(fast, plain, strict=True):
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(actual.double() / scale, expected / scale, **TOLERANCE)


def test_the_forms_that_fit():
    assert {"softmax", "softmax, window and global", "silu", "silu, window", "softmax, functional"} <= set(FITTING)
    assert not {"sparsemax", "entmax15", "softmax, penalty", "softmax, channels"} & set(FITTING)


@pytest.mark.parametrize("form", FITTING)
def test_events_equal_the_reference(form):
    check_events(form, SEVERAL_TILES)


@pytest.mark.pairwise
@pytest.mark.parametrize("lengths", ODD_LENGTHS, ids=str)
@pytest.mark.parametrize("form", ["softmax, window and global", "silu, window"])
def test_odd_batches_equal_the_reference(form, lengths):
    check_events(form, lengths)


@pytest.mark.parametrize("form", ["softmax, bias of both", "silu", "softmax, bidirectional"])
def test_a_reach_is_a_window(form):
    check_events(form, SEVERAL_TILES, reach=3)


@pytest.mark.parametrize("width", [5, 16, 24])
def test_heads_of_any_width(width):
    check_events("softmax, window", [3, 20], width=width)


CAUSAL = ["softmax", "softmax, functional", "softmax, window and global", "silu, window", "none, window and global"]


@pytest.mark.parametrize("itself", [False, True], ids=["events only", "itself too"])
@pytest.mark.parametrize("form", CAUSAL)
def test_candidates_equal_the_reference(form, itself):
    """Also one before all events, one without a history, and more of them than a tile holds."""
    config, given = config_of(form), shown([4, 0, 1, 20], [3, 2, 0, 18])
    context, shared = given.context(itself), config.key_value_heads
    sizes = [(23, config.num_heads), (25, shared), (25, shared), *(2 * [(23, shared)] if itself else [])]
    inputs = [vectors(rows, heads, 8, seed, torch.float64) for seed, (rows, heads) in enumerate(sizes)]
    exact = parts_of(config, 8, torch.float64)
    parts = single(exact)
    ranges = on_gpu.ranges_of_candidates(context, given.layout.offsets, 20, parts)

    def plainly(q, k, v, *own):
        return attend_to_events_reference(q, k, v, context, exact, own).output[:, 0]

    def by_kernel(q, k, v, *own):
        if own:
            return on_gpu.triton_attention_with_itself(q, k, v, own, ranges, parts)
        return on_gpu.triton_attention(q, k, v, ranges, parts)

    check_close(results(by_kernel, [x.float() for x in inputs], parts), results(plainly, inputs, exact))


def test_gradients_of_biases_do_not_depend_on_the_order_of_programs():
    """They are sums of integers: histories in another order give the same bits."""
    config = config_of("softmax, bias of both")
    parts = parts_of(config, 8, torch.float32)
    gradients = []
    for lengths, order in (([5, 20], slice(None)), ([20, 5], None)):
        context = context_of([5, 20])
        events = torch.arange(25) if order is not None else torch.arange(25).roll(-5)
        context = AttentionContext(layout_from(lengths), context.times[events], context.request_times[events])
        inputs = [tensor[events] for tensor in random_inputs(config, 25, 8, 1, torch.float32)]
        weights = torch.randn(25, 4, 8, generator=torch.Generator().manual_seed(4))[events]
        for parameter in parts.parameters:
            parameter.grad = None
        output = on_gpu.triton_attention(*inputs, on_gpu.ranges_of_events(context, parts), parts)
        (output * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in parts.parameters])
    for one, other in zip(*gradients, strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_finite_is_not_hidden_in_integers():
    config, context = config_of("softmax, bias of both"), context_of([5])
    parts = parts_of(config, 8, torch.float32)
    inputs = random_inputs(config, 5, 8, 1, torch.float32)
    output = on_gpu.triton_attention(*inputs, on_gpu.ranges_of_events(context, parts), parts)
    (output * float("inf")).sum().backward()
    assert not any(parameter.grad.isfinite().all() for parameter in parts.parameters)


@pytest.mark.parametrize("lengths", [[3, 0, 33, 16, 1], [0, 0, 5], [40], [0, 0]], ids=str)
def test_tiles_cover_every_row_once(lengths):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    history, start = on_gpu.tiles_of(offsets, sum(lengths), 16)
    rows = [
        row
        for h, s in zip(history.tolist(), start.tolist(), strict=True)
        for row in range(s, min(s + 16, int(offsets[h + 1])))
    ]
    assert sorted(rows) == list(range(sum(lengths)))


def test_candidates_and_events_of_a_gpu_take_the_kernels(monkeypatch):
    """The encoder's call on a GPU, with the interpreter in place of one."""
    given = shown([4, 0, 1, 20], [3, 2, 0, 18])
    config = config_of("silu")
    parts = parts_of(config, 8, torch.float32)
    context = AttentionContext(given.layout, candidates=given.context(itself=True))
    inputs = random_inputs(config, 25 + 23, 8, 1, torch.float32)
    plain = attend(*inputs, context, parts).output
    asked = []
    monkeypatch.setattr("models.attention.attend.path_of", lambda *_: "triton")
    monkeypatch.setattr("models.attention.attend.candidates_fit_triton", lambda *_: asked.append(1) or True)
    torch.testing.assert_close(attend(*inputs, context, parts).output, plain, rtol=1e-5, atol=1e-5)
    assert asked
