"""The compiled layers between matrix products equal those of torch in value and gradients; sums with dropout bit by bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.compiled.layers import ROWS_OF_SUM, LayerKernels
from models.encoders.block import ACTIVATIONS, FeedForward
from models.layers.dropout import drop
from models.layers.norms import GroupNorm, normed, normed_for_product
from tests.models.compiled.compiler import kernels_or_skip
from tests.models.encoders.test_encoder import context_of, events, make_encoder

# Narrower than a vector, no multiple of it, many rows of sums; and of which a thread takes several parts.
SHAPES = ((3, 5), (9, 50), (2 * ROWS_OF_SUM + 7, 16), (700, 64))
THRESHOLDS = (0, 51)
DTYPES = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def layers() -> LayerKernels:
    return kernels_or_skip().layers


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def results_of(compute: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of a weighted sum of it, always with the same random numbers."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    torch.manual_seed(7)
    output = compute(*leaves)
    (output * numbers(*output.shape, seed=9)).sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    return [output.detach(), *gradients]


def assert_near(compiled: list[Tensor], expected: list[Tensor], rounding: float) -> None:
    for ours, theirs in zip(compiled, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= rounding * theirs.double().norm()


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_and_its_residual_sum_equal_torch_bit_by_bit(layers, shape, threshold):
    x, said = numbers(*shape), numbers(*shape, seed=2)
    compiled = results_of(lambda x, said: layers.add_dropped(x, said, threshold), (x, said))
    for ours, theirs in zip(compiled, results_of(lambda x, said: x + drop(said, threshold), (x, said)), strict=True):
        assert torch.equal(ours, theirs)
    compiled = results_of(lambda said: layers.drop(said, threshold), (said,))
    for ours, theirs in zip(compiled, results_of(lambda said: drop(said, threshold), (said,)), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_not_a_number_stays_none_where_it_is_dropped(layers):
    said = torch.full((4, 16), float("inf"))
    torch.manual_seed(3)
    dropped = layers.add_dropped(torch.zeros(4, 16), said, 128)
    assert dropped.isnan().any()
    assert (dropped.isnan() | (dropped == float("inf"))).all()
    assert layers.activate(torch.tensor([[float("nan")]]), "relu").isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sum_with_bias_and_gate_equals_torch(layers, shape, threshold, gated, dtype):
    inputs = [numbers(*shape), numbers(*shape, seed=2, dtype=dtype), numbers(shape[1], seed=3)]
    inputs += [numbers(*shape, seed=4, dtype=dtype)] if gated else []

    def expected(x: Tensor, said: Tensor, bias: Tensor, gate: Tensor | None = None) -> Tensor:
        dropped = drop(said.float() + bias, threshold)
        return x + (dropped if gate is None else torch.sigmoid(gate.float()) * dropped)

    compiled = results_of(lambda x, said, *others: layers.add_dropped(x, said, threshold, *others), inputs)
    assert compiled[0].dtype == torch.float32
    assert compiled[2].dtype == dtype
    assert_near(compiled, results_of(expected, inputs), ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_activation_with_bias_equals_torch(layers, shape, activation, threshold, gated, dtype):
    width = shape[1] * (2 if gated else 1)
    hidden, bias = numbers(shape[0], width, dtype=dtype), numbers(width, seed=2)

    def expected(hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = hidden.float() + bias
        if gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            return drop(ACTIVATIONS[activation](gate) * hidden, threshold)
        return drop(ACTIVATIONS[activation](hidden), threshold)

    compiled = results_of(
        lambda hidden, bias: layers.activate(hidden, activation, gated, threshold, bias), (hidden, bias)
    )
    assert compiled[0].dtype == dtype
    assert_near(compiled, results_of(expected, (hidden, bias)), ROUNDING[dtype])
    plain = results_of(lambda hidden: layers.activate(hidden, activation, gated, threshold), (hidden,))
    assert_near(plain, results_of(lambda hidden: expected(hidden, torch.zeros(width)), (hidden,)), ROUNDING[dtype])


def test_gelu_is_exact_where_numbers_are_large_or_small(layers):
    values = torch.cat((torch.linspace(-12.0, 12.0, 4001), torch.tensor([-1e30, -1e-30, 0.0, 1e-30, 1e30])))[None]
    output, slope = results_of(lambda x: layers.activate(x, "gelu"), (values,))
    exact = values.double().requires_grad_()
    expected = F.gelu(exact)
    (expected * numbers(*values.shape, seed=9)).sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(output.double(), expected.detach(), atol=1e-6, rtol=3e-7)
    torch.testing.assert_close(slope.double(), exact.grad, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm_equals_torch_and_adds_the_gradient_of_the_rows(layers, shape, kind):
    norm = kind(shape[1], eps=1e-5)
    names = [name for name, _ in norm.named_parameters()]
    for number, parameter in enumerate(norm.parameters()):
        parameter.data = numbers(shape[1], seed=20 + number)
    x = 3.0 + numbers(*shape)

    def both(normed: Tensor, kept: Tensor) -> Tensor:
        return torch.cat((normed, kept.sin()))

    def compiled(x: Tensor, *weights: Tensor) -> Tensor:
        copy = kind(shape[1], eps=1e-5)
        for name, weight in zip(names, weights, strict=True):
            delattr(copy, name)
            setattr(copy, name, weight)
        return both(*layers.normalise(copy, x))

    def expected(x: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        return both(torch.func.functional_call(norm, given, (x,)), x)

    inputs = [x, *(parameter.detach() for parameter in norm.parameters())]
    exact = results_of(lambda *given: expected(*given), [value.double() for value in inputs])
    assert_near(results_of(compiled, inputs), exact, 5e-6)


def test_a_norm_in_bfloat16_is_that_in_float32_rounded(layers):
    norm, x = nn.LayerNorm(48), numbers(100, 48)
    whole, low = (layers.normalise(norm, x, dtype)[0] for dtype in DTYPES)
    assert torch.equal(low, whole.to(torch.bfloat16))
    compiled = results_of(lambda x: layers.normalise(norm, x, torch.bfloat16)[0], (x,))
    assert_near(compiled[1:], results_of(norm, (x,))[1:], 2**-7)


def test_rows_alone_have_their_gradient(layers):
    """The gradient of a norm that nothing reads is none, not zeros."""
    x = numbers(4, 8).requires_grad_()
    _, kept = layers.normalise(nn.LayerNorm(8), x)
    kept.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 8))


def test_norms_of_events_and_candidates_use_them(layers):
    norm, x = GroupNorm(nn.LayerNorm(8), nn.LayerNorm(8)), numbers(10, 8)
    norm.candidates.weight.data += 1.0
    torch.testing.assert_close(normed(norm, x, 6, layers), norm(x, 6))
    product, kept = normed_for_product(norm, x, 6, layers)
    torch.testing.assert_close(product, norm(x, 6))
    assert kept is x


def zeroed(*modules: nn.Module) -> None:
    for number, parameter in enumerate(parameter for module in modules for parameter in module.parameters()):
        parameter.grad = None
        parameter.data = 0.3 * numbers(*parameter.shape, seed=40 + number)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, None])
@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "size"), [(1, 4, 12), (7, 50, 150), (97, 16, 7), (205, 64, 192), (1000, 52, 80)]
)
def test_a_norm_with_its_projection_equals_torch(layers, rows, width, size, is_alone, norm):
    """In value and all gradients; more rows than are in the cache at a time, and no multiple of a tile.

    The rows have another gradient, or none.
    """
    own_norm = None if norm is None else norm(width, eps=1e-5)
    linear = nn.Linear(width, size, bias=False)
    modules = [linear, *([] if own_norm is None else [own_norm])]

    def compiled(x: Tensor) -> Tensor:
        projected, kept = layers.projections.project(x, own_norm, linear.weight)
        return projected if is_alone else torch.cat((projected, kept.square()), dim=1)

    def by_torch(x: Tensor) -> Tensor:
        projected = linear(x if own_norm is None else own_norm(x))
        return projected if is_alone else torch.cat((projected, x.square()), dim=1)

    results = []
    for compute in (compiled, by_torch):
        zeroed(*modules)
        result = results_of(compute, (numbers(rows, width),))
        results.append([*result, *(p.grad.clone() for module in modules for p in module.parameters())])
    assert_near(results[0], results[1], 1e-5)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "size"), [(1, 4, 4), (7, 50, 50), (97, 16, 7), (205, 64, 128), (1000, 52, 52)]
)
def test_an_output_with_its_residual_sum_equals_torch(layers, rows, width, size, bias, threshold):
    linear = nn.Linear(size, width, bias=bias)
    results = []
    for compute in (
        lambda x, seen: layers.projections.add(x, seen, linear, threshold),
        lambda x, seen: x + drop(linear(seen), threshold),
    ):
        zeroed(linear)
        result = results_of(compute, (numbers(rows, width), numbers(rows, size, seed=2)))
        results.append([*result, *(p.grad.clone() for p in linear.parameters())])
    assert_near(results[0], results[1], 1e-5)


def test_the_rows_of_a_projection_alone_have_their_gradient(layers):
    x = numbers(4, 8).requires_grad_()
    _, kept = layers.projections.project(x, None, numbers(3, 8))
    kept.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 8))


@torch.no_grad()
def test_a_row_has_one_result_wherever_it_is(layers):
    """To the last bit, so that a score depends on its own history alone."""
    x, norm, into, out = numbers(301, 52), nn.LayerNorm(52), nn.Linear(52, 156, bias=False), nn.Linear(156, 52)
    feed_forward = FeedForward(52, 104, "gelu", 0.0)

    def results(rows: Tensor) -> Tensor:
        projected, _ = layers.projections.project(rows, norm, into.weight)
        added = layers.projections.add(rows, projected, out, 0)
        return torch.cat((projected, added, feed_forward.added_to(rows, norm, 0, layers)), dim=1)

    whole = results(x)
    for first, stop in ((0, 1), (5, 12), (47, 49), (100, 301)):
        assert torch.equal(results(x[first:stop]), whole[first:stop])


def test_a_sub_layer_of_attention_that_the_kernels_do_not_take_is_left_to_others(layers):
    block = make_encoder({"num_blocks": 1}).blocks[0]
    lengths = [3, 2]
    context = replace(context_of(lengths), layer_kernels=layers)
    x = events(5)
    norm, added_to = block.attention_norm, block.attention.added_to
    assert added_to(x, norm, 0, context) is not None
    assert added_to(x.double(), norm, 0, context) is None
    assert added_to(x, GroupNorm(norm, norm), 0, context) is None
    assert added_to(x, norm, 0, context.narrowed_outputs(context.layout.newest(1))) is None
    assert added_to(x, norm, 0, context.narrowed_to_candidates()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert added_to(x, norm, 0, context) is None


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, None])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("thresholds", [(0, 0), (51, 0), (51, 77)], ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "multiple"), [(1, 4, 1), (7, 50, 1), (97, 16, 3), (205, 64, 2), (1000, 52, 1)]
)
def test_a_whole_feed_forward_sub_layer_equals_torch(layers, rows, width, multiple, thresholds, activation, norm):
    """In value and all gradients; more rows than are in the cache at a time, and no multiple of a tile."""
    feed_forward = FeedForward(width, multiple * width, activation, thresholds[0] / 256)
    own_norm = None if norm is None else norm(width, eps=1e-5)
    modules = [feed_forward, *([] if own_norm is None else [own_norm])]
    results = []
    for kernel in (layers.feed_forward, None):
        zeroed(*modules)
        if kernel is not None:
            compiled = results_of(
                lambda x: feed_forward.added_to(x, own_norm, thresholds[1], layers), (numbers(rows, width),)
            )
        else:
            compiled = results_of(
                lambda x: x + drop(feed_forward(x if own_norm is None else own_norm(x)), thresholds[1]),
                (numbers(rows, width),),
            )
        results.append([*compiled, *(p.grad.clone() for module in modules for p in module.parameters())])
    assert len(results[0]) == 2 + sum(1 for module in modules for _ in module.parameters())
    assert_near(results[0], results[1], 1e-5)


def test_a_feed_forward_sub_layer_that_the_kernel_does_not_take_is_left_to_others(layers):
    x = numbers(5, 8)
    small = FeedForward(8, 8, "relu", 0.0)
    assert small.added_to(x, None, 0, layers) is not None
    assert small.added_to(x.double(), None, 0, layers) is None
    assert small.added_to(x[:0], None, 0, layers) is None
    assert small.added_to(x, GroupNorm(nn.LayerNorm(8), nn.LayerNorm(8)), 0, layers) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert small.added_to(x, None, 0, layers) is None
    assert FeedForward(256, 256, "relu", 0.0).added_to(numbers(5, 256), None, 0, layers) is None
    small.compile()
    assert small.added_to(x, None, 0, layers) is None


SETTINGS = (
    *({"feed_forward": name} for name in ("relu", "gelu", "swiglu", "none")),
    {"norm": "rms_norm", "norm_place": "post", "residual_gate": True},
    {"residual_gate": True, "feed_forward": "swiglu", "feed_forward_multiple": 3, "input_norm": True},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("lengths", [[5, 0, 3], [1]], ids=str)
def test_an_encoder_computes_the_same_with_them(layers, settings, lengths):
    """In training, with dropout: the random numbers are the same."""
    inner = 0.0 if settings.get("feed_forward") == "none" else 0.2
    encoder = make_encoder({"dropout": 0.3, "feed_forward_dropout": inner, **settings})
    x = events(sum(lengths))
    results = []
    for kernels in (None, layers):
        context = context_of(lengths)
        context.layer_kernels = kernels
        encoder.zero_grad()
        output = results_of(lambda x, context=context: encoder.train()(x, context)[0], (x,))
        results.append([*output, *(parameter.grad for parameter in encoder.parameters())])
    assert len(results[0]) == 2 + len(list(encoder.parameters()))
    assert_near(results[1], results[0], 1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_they_do_not_compute_is_left_to_torch_with_its_biases(layers, settings):
    """In float64, and without any event."""
    encoder = make_encoder(settings).double()
    for lengths in ([5, 0, 3], [0]):
        context = context_of(lengths)
        context.layer_kernels = layers
        x = events(sum(lengths), torch.float64)
        assert torch.equal(encoder(x, context)[0], encoder(x, context_of(lengths))[0])
