"""Paths for GPUs: FlexAttention means what the reference does (on a CPU, by its plain form), and all are equal on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import varlen

from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.gpu import flash_attention, flash_fits, flex_fits, flexible_attention
from models.attention.reference import attend_reference
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
    assert not flash_fits(parts_of(config_of("softmax, bias of both"), 8, torch.float32), torch.bfloat16)
    assert not flash_fits(parts_of(config_of("softmax"), 8, torch.float32), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("form", "reach"), [*((form, None) for form in FORMS), *((form, 60) for form in LOCAL)])
def test_on_a_gpu_every_form_equals_the_reference_in_values_and_gradients(form, reach, dtype):
    """Within 1e-3 of the largest number in float32, whose products may be of reduced precision there, and 3 % in bfloat16."""
    lengths = [3, 0, 200, 17, 1, 129]
    config, host = config_of(form), replace(context_of(lengths), reach=reach)
    results = []
    for device, precision in (("cpu", torch.float32), ("cuda", dtype)):
        context = AttentionContext(
            host.layout.to(torch.device(device)), host.times.to(device), host.request_times.to(device), reach=reach
        )
        parts = parts_of(config, 16, torch.float32)
        for bias in (parts.position, parts.time):
            if bias is not None:
                bias.to(device)
        inputs = random_inputs(config, sum(lengths), 16, 1, torch.float32)
        leaves = [tensor.to(device, precision).requires_grad_() for tensor in inputs]
        attention = attend_reference if device == "cpu" else attend
        output = attention(*leaves, context, parts).output
        output.float().square().sum().backward()
        results.append([t.detach().float().cpu() for t in (output, *(x.grad for x in (*leaves, *parts.parameters)))])
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for plain, ours in zip(*results, strict=True):
        assert (plain - ours).abs().max() <= tolerance * plain.abs().max().clamp(min=1e-6)
