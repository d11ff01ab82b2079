"""Paths for GPUs: FlexAttention means what the reference does (on a CPU, by its plain form), and all are equal on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import varlen

from models.attention import gpu
from models.attention.attend import attend, path_of
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.gpu import flash_attention, flash_fits, flex_fits, flexible_attention
from models.attention.reference import attend_reference
from models.batches.transfer import to_device
from tests.models.attention.forms import FORMS, LENGTHS, config_of, context_of, parts_of, random_inputs

LOCAL = [form for form in FORMS if not config_of(form).num_global]
FLEXIBLE = [form for form in FORMS if flex_fits(parts_of(config_of(form), 8, torch.float32))]


@pytest.mark.parametrize("form", FLEXIBLE)
def test_flex_attention_is_asked_for_the_same_function(form):
    config, context = config_of(form), context_of(LENGTHS[1])
    parts = parts_of(config, 8, torch.float64)
    inputs = random_inputs(config, sum(LENGTHS[1]), 8, 1, torch.float64)
    with torch.no_grad():
        plain = attend_reference(*inputs, context, parts).output
        flexible = flexible_attention(*inputs, context, parts, compiled=False)
    torch.testing.assert_close(flexible[:, None], plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [form for form in FLEXIBLE if form in LOCAL])
def test_flex_attention_keeps_within_a_reach(form):
    config, context = config_of(form), replace(context_of(LENGTHS[1]), reach=3)
    parts = parts_of(config, 8, torch.float64)
    inputs = random_inputs(config, sum(LENGTHS[1]), 8, 1, torch.float64)
    with torch.no_grad():
        plain = attend_reference(*inputs, context, parts).output
        flexible = flexible_attention(*inputs, context, parts, compiled=False)
    torch.testing.assert_close(flexible[:, None], plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("form", "reach", "expected"),
    [
        ("softmax", None, (-1, 0)),
        ("softmax", 3, (2, 0)),
        ("softmax", 40, (-1, 0)),
        ("softmax, window of one", 3, (0, 0)),
        ("softmax, bidirectional", 3, (2, 2)),
    ],
)
def test_flash_attention_is_asked_for_the_smaller_of_window_and_reach(monkeypatch, form, reach, expected):
    asked = []

    def varlen_attn(query, key, value, *_, **settings):
        asked.append(settings["window_size"])
        return query

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    config, context = config_of(form), replace(context_of(LENGTHS[1]), reach=reach)
    inputs = random_inputs(config, sum(LENGTHS[1]), 8, 1, torch.float32)
    flash_attention(*inputs, context, parts_of(config, 8, torch.float32))
    assert asked == [expected]


def test_flex_attention_serves_softmax_with_any_mask_and_bias_and_nothing_else():
    others = {form for form in FORMS if form not in FLEXIBLE}
    assert "softmax, window and global" in FLEXIBLE
    assert "softmax, bias of both" in FLEXIBLE
    assert {"silu", "sparsemax", "entmax15", "softmax, channels", "softmax, penalty"} <= others


AMPERE, TURING = (8, 0), (7, 5)


def path(
    form: str, heads: tuple[int, int], dtype: torch.dtype, capability: tuple[int, int] | None, num: int = 9
) -> str:
    """Return how a GPU computes a form with heads of these widths, of keys and of values; tensors have no memory."""
    query, value = (torch.empty(num, 4, width, dtype=dtype, device="meta") for width in heads)
    return path_of(parts_of(config_of(form), heads[0], torch.float32), query, value, capability)


def test_flash_attention_is_used_only_for_what_its_kernels_support(monkeypatch):
    """Half precision, widths that are multiples of 8, values as wide as keys, and a device of capability 8.0."""
    monkeypatch.setattr(gpu, "_flash_has_windows", lambda: True)
    monkeypatch.setattr("models.attention.attend.has_triton", lambda: False)
    half = torch.bfloat16
    assert path("softmax", (32, 32), half, AMPERE) == "flash"
    assert path("softmax, window", (32, 32), half, AMPERE) == "flex"  # it has a bias
    assert path("softmax, window of one", (32, 32), half, AMPERE) == "flash"
    assert path("softmax, bidirectional", (256, 256), torch.float16, (9, 0)) == "flash"
    for form, heads, dtype, capability, expected in (
        ("softmax", (32, 32), torch.float32, AMPERE, "plain"),
        ("softmax", (32, 32), half, TURING, "plain"),
        ("softmax", (32, 32), half, None, "plain"),
        ("softmax", (20, 20), half, AMPERE, "plain"),
        ("softmax", (264, 264), half, AMPERE, "plain"),
        ("softmax", (16, 32), half, AMPERE, "plain"),  # differential: two maps of half the width over the same values
        ("softmax, window of one", (16, 32), half, AMPERE, "flex"),
        ("softmax, window of one", (20, 20), half, AMPERE, "flex"),
        ("softmax, bidirectional", (32, 32), half, TURING, "flex"),
        ("softmax, bias of both", (32, 32), half, AMPERE, "flex"),
        ("softmax, bias of both", (32, 32), half, None, "pieces"),
        ("silu", (32, 32), half, AMPERE, "pieces"),
    ):
        assert path(form, heads, dtype, capability) == expected, (form, heads, dtype, capability)


def test_triton_kernels_compute_biases_and_pointwise_weights(monkeypatch):
    monkeypatch.setattr(gpu, "_flash_has_windows", lambda: True)
    monkeypatch.setattr("models.attention.attend.has_triton", lambda: True)
    for form, dtype, capability, expected in (
        ("softmax", torch.bfloat16, AMPERE, "flash"),
        ("softmax, bidirectional", torch.float32, AMPERE, "flex"),
        ("softmax, bias of both", torch.bfloat16, AMPERE, "triton"),
        ("silu, bias of both, penalty", torch.bfloat16, AMPERE, "pieces"),
        ("silu", torch.float32, AMPERE, "triton"),
        ("silu", torch.float64, AMPERE, "pieces"),
        ("silu", torch.float32, None, "pieces"),
        ("entmax15", torch.float32, AMPERE, "pieces"),
    ):
        assert path(form, (32, 32), dtype, capability) == expected, form


def test_a_rank_without_events_asks_no_gpu_kernel_for_nothing():
    assert path("softmax", (32, 32), torch.bfloat16, AMPERE, num=0) == "plain"
    assert path("softmax, bias of both", (32, 32), torch.bfloat16, AMPERE, num=0) == "pieces"


def test_flash_attention_needs_a_torch_that_has_it(monkeypatch):
    monkeypatch.setattr(gpu, "_flash_has_windows", lambda: False)
    assert not flash_fits(parts_of(config_of("softmax"), 8, torch.float32), torch.bfloat16, 32, 32, AMPERE)


@pytest.mark.parametrize("widths", [(8, 8), (4, 8), (24, 48), (8, 32)], ids=str)
def test_heads_narrower_than_the_kernel_takes_are_padded(monkeypatch, widths):
    seen, original = [], gpu.flex_attention

    def spy(query, key, value, **settings):
        seen.append((query.shape[-1], key.shape[-1], value.shape[-1]))
        return original(query, key, value, **settings)

    monkeypatch.setattr(gpu, "flex_attention", spy)
    config, context = AttentionConfig(num_heads=2, window=3), context_of([3, 0, 5])
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(8, 2, width, generator=generator, dtype=torch.float64) for width in (widths[0], *widths)
    )
    parts = parts_of(config, widths[0], torch.float64)
    with torch.no_grad():
        plain = attend_reference(query, key, value, context, parts).output
        flexible = flexible_attention(query, key, value, context, parts, compiled=False)
    assert min(seen[0]) >= 16
    torch.testing.assert_close(flexible[:, None], plain, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 8, 20])
@pytest.mark.parametrize(("form", "reach"), [*((form, None) for form in FORMS), *((form, 60) for form in LOCAL)])
def test_on_a_gpu_every_form_equals_the_reference_in_values_and_gradients(form, reach, width, dtype):
    """Within 1e-3 of the largest number in float32 (products may have reduced precision there), and 3 % in bfloat16."""
    lengths = [3, 0, 200, 17, 1, 129]
    config, host = config_of(form), replace(context_of(lengths), reach=reach)
    results = []
    for device, precision in (("cpu", torch.float32), ("cuda", dtype)):
        context = AttentionContext(
            to_device(host.layout, torch.device(device)),
            host.times.to(device),
            host.request_times.to(device),
            reach=reach,
        )
        parts = parts_of(config, width, torch.float32)
        for bias in (parts.position, parts.time):
            if bias is not None:
                bias.to(device)
        inputs = random_inputs(config, sum(lengths), width, 1, torch.float32)
        leaves = [tensor.to(device, precision).requires_grad_() for tensor in inputs]
        attention = attend_reference if device == "cpu" else attend
        output = attention(*leaves, context, parts).output
        output.float().square().sum().backward()
        results.append([t.detach().float().cpu() for t in (output, *(x.grad for x in (*leaves, *parts.parameters)))])
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for plain, ours in zip(*results, strict=True):
        assert (plain - ours).abs().max() <= tolerance * plain.abs().max().clamp(min=1e-6)
