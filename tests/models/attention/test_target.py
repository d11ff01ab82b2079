"""Target attention: every composition of its parts equals the formula, sees nothing it must not, and learns."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.config import TargetAttentionConfig
from models.attention.reference import attend_to_events_reference
from models.attention.target import MeanOfEvents, TargetAttention
from tests.models.attention.shown import Shown, shown, vectors

WIDTH, MAX_HISTORY = 8, 24
FORMS = {
    "dot product": {},
    "dot product, heads, both biases, gate": {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "bias": "both",
        "gate": True,
        "output_norm": "layer_norm",
    },
    "HSTU's": {"normalisation": "silu", "projection_activation": "silu", "gate": True, "output_norm": "rms_norm"},
    "channels, learned temperature": {"bias": "both", "bias_as": "channel", "temperature": "learned"},
    "DIN": {"score": "activation_unit", "projection": False, "normalisation": "none"},
    "DIN, softmax, times": {
        "score": "activation_unit",
        "projection": False,
        "bias": "time",
        "unit_activation": "prelu",
    },
    "unit with projections and heads": {"score": "activation_unit", "num_heads": 2, "unit_hidden": [6, 4]},
    "no projection, heads, channels": {"projection": False, "num_heads": 2, "bias": "position", "bias_as": "channel"},
}


def attention_of(form: str, **more) -> TargetAttention:
    attention = TargetAttention(WIDTH, MAX_HISTORY, TargetAttentionConfig.model_validate({**FORMS[form], **more}))
    attention.initialize(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # biases and temperatures that matter
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return attention


def inputs_of(given: Shown, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    sizes = (sum(given.lengths), sum(given.counts))
    event, candidate = (vectors(rows, 1, WIDTH, seed, dtype)[:, 0] for seed, rows in enumerate(sizes))
    return event, candidate


def written_out(attention: TargetAttention, event: Tensor, candidate: Tensor, given: Shown) -> Tensor:
    """Return the formula of the module's docstring around the reference of attention."""
    config, heads, shared = attention.config, attention.config.num_heads, attention.config.key_value_heads
    activate = F.silu if config.projection_activation == "silu" else (lambda x: x)
    query, key, value, gate = candidate, event, event, None
    if config.projection:
        query = activate(candidate @ attention.query.weight[:WIDTH].T)
        rows = attention.key_value.weight.chunk(2)
        key, value = (activate(event @ weight.T) for weight in rows)
        gate = activate(candidate @ attention.query.weight[WIDTH:].T) if config.gate else None
    query, key, value = (x.reshape(x.shape[0], h, -1) for x, h in ((query, heads), (key, shared), (value, shared)))
    if attention.log_temperature is not None:
        query = query / attention.log_temperature.exp()[:, None]
    seen = attend_to_events_reference(query, key, value, given.context(), attention.terms()).output.flatten(1)
    if attention.output_norm is not None:
        seen = attention.output_norm(seen)
    if gate is not None:
        seen = seen * gate
    return attention.attention_output(seen) if config.projection else seen


@pytest.mark.parametrize("form", FORMS)
def test_it_equals_its_formula(form):
    """In values, and in gradients of inputs and of every weight."""
    attention, given = attention_of(form).double().eval(), shown()
    results = []
    for forward in (
        lambda event, candidate: attention(event, candidate, given.context())[0],
        lambda event, candidate: written_out(attention, event, candidate, given),
    ):
        leaves = [x.requires_grad_() for x in inputs_of(given)]
        attention.zero_grad()
        output = forward(*leaves)
        output.pow(3).sum().backward()
        results.append([output.detach(), *(x.grad for x in (*leaves, *attention.parameters()))])
    assert results[0][0].shape == (sum(given.counts), attention.width_out)
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_without_events_before_it_a_candidate_sees_nothing(form):
    attention, given = attention_of(form).eval(), shown([0, 3], [2, 1])
    event, candidate = inputs_of(given, torch.float32)
    output, _ = attention(event, candidate, given.context())
    again, _ = attention(event + 1.0, candidate, given.context())
    assert torch.equal(output[:2], again[:2])
    if not attention.config.projection:
        assert not output[:2].any()


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_a_function_of_the_seed(form):
    def weights(seed: int) -> list[Tensor]:
        attention = TargetAttention(WIDTH, MAX_HISTORY, TargetAttentionConfig.model_validate(FORMS[form]))
        attention.initialize(torch.Generator().manual_seed(seed))
        return [p.detach().clone() for p in attention.parameters()]

    torch.manual_seed(5)
    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = FORMS[form].get("projection", True) or "score" in FORMS[form]  # biases start at zero
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) == (not drawn)


def test_the_penalty_is_scaled_and_only_there_in_training():
    attention, given = attention_of("dot product", num_heads=2, penalty=0.5), shown()
    inputs = inputs_of(given, torch.float32)
    training = attention.train()(*inputs, given.context())[1]
    parts = attention.terms()
    query, key, value, _ = attention._projected(*inputs)
    plain = attend_to_events_reference(query, key, value, given.context(), parts).penalty
    torch.testing.assert_close(training, plain * 0.5 / 2)
    assert attention.eval()(*inputs, given.context())[1] is None


def test_the_mean_is_that_of_the_events_that_are_seen():
    given = shown()
    event, candidate = inputs_of(given)
    leaf = event.clone().requires_grad_()
    mean = MeanOfEvents()(leaf, candidate, given.context())
    layout, expected = given.candidate_layout, []
    plain = event.clone().requires_grad_()
    for first, end in zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True):
        own = plain[first + max(0, end - given.reach) : first + end]
        expected.append(own.sum(dim=0) / max(1, own.shape[0]))
    torch.testing.assert_close(mean, torch.stack(expected), rtol=1e-12, atol=1e-12)
    mean.pow(2).sum().backward()
    torch.stack(expected).pow(2).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "bidirectional"}, "earlier events only"),
        ({"differential": True}, "not supported for candidates"),
        ({"unit_hidden": [0]}, "at least 1"),
        ({"score": "activation_unit", "temperature": "learned"}, "its own scale"),
        ({"score": "activation_unit", "temperature_factor": 0.5}, "its own scale"),
        ({"score": "activation_unit", "num_heads": 2, "num_key_value_heads": 1}, "keys for each head"),
        ({"projection": False, "gate": True}, "projection = true"),
        ({"projection": False, "num_heads": 2, "num_key_value_heads": 1}, "projection = true"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TargetAttentionConfig.model_validate(settings)


def test_din_learns_to_attend_to_events_like_the_candidate():
    """Whether the candidate's kind is among the events, which no average of events alone tells."""
    generator = torch.Generator().manual_seed(1)
    kinds, given = torch.eye(WIDTH), shown([6] * 64, [4] * 64)
    attention = TargetAttention(WIDTH, MAX_HISTORY, TargetAttentionConfig.model_validate(FORMS["DIN"]))
    attention.initialize(generator)
    head = torch.nn.Linear(WIDTH, 1)
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], lr=0.02)
    layout = given.candidate_layout
    losses = []
    for _ in range(60):
        event = torch.randint(WIDTH, (384,), generator=generator)
        candidate = torch.randint(WIDTH, (256,), generator=generator)
        label = torch.stack(
            [
                (event[first : first + end] == kind).any()
                for first, end, kind in zip(
                    layout.first_event.tolist(), layout.history_end.tolist(), candidate, strict=True
                )
            ]
        ).float()
        seen, _ = attention(kinds[event], kinds[candidate], given.context())
        loss = F.binary_cross_entropy_with_logits(head(seen)[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 < losses[0]
