"""The pass of the last events alone: every encoder and form of attention gives what the pass of all events gives for them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from tests.models.attention.forms import FORMS, LENGTHS, ODD_LENGTHS, config_of, context_of, parts_of, random_inputs
from tests.models.encoders.test_encoder import CASES, WIDTH, make_encoder

HISTORIES = [7, 0, 1, 20, 3, 3]
MORE = {
    "no block": {"num_blocks": 0, "final_norm": True},
    "pooling of no block": {"kind": "two_tower", "num_blocks": 0},
    "three blocks in a window": {"num_blocks": 3, "attention": {"window": 2, "num_global": 1}},
    "post-norm, gate": {"norm_place": "post", "residual_gate": True, "attention": {"gate": True}},
}
ENCODERS = {**CASES, **MORE}


def asked_later(lengths: list[int]) -> AttentionContext:
    """Return histories with requests that come after their events, so that a wrong request time changes the result."""
    given = context_of(lengths)
    assert given.times is not None
    return replace(given, request_times=given.times + torch.arange(given.times.numel()) * 1000)


def events(num_events: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_events, WIDTH, generator=torch.Generator().manual_seed(2), dtype=dtype)


def last_of(lengths: list[int]) -> list[int]:
    return [sum(lengths[: number + 1]) - 1 for number, length in enumerate(lengths) if length]


@pytest.mark.parametrize("case", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_last_events_are_encoded_as_among_all(case: str, dtype: torch.dtype) -> None:
    encoder = make_encoder(ENCODERS[case]).to(dtype).eval()
    x, context = events(sum(HISTORIES), dtype), asked_later(HISTORIES)
    expected = encoder(x, context)[0][last_of(HISTORIES)]
    actual = encoder(x, context, only_last=True)[0]
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    assert (actual - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("case", ["sasrec", "hstu", "bert4rec", "ligr, differential, window", "two_tower"])
def test_gradients_are_those_of_the_last_events_among_all(case: str) -> None:
    encoder = make_encoder(ENCODERS[case]).double().train()
    results = []
    for only_last in (False, True):
        x, context = events(sum(HISTORIES), torch.float64).requires_grad_(), asked_later(HISTORIES)
        encoder.zero_grad()
        output = encoder(x, context, only_last)[0]
        (output if only_last else output[last_of(HISTORIES)]).pow(3).sum().backward()
        weights = [p.grad.clone() for name, p in encoder.named_parameters() if not name.startswith("item_tower")]
        results.append([x.grad, *weights])
    for all_events, last_events in zip(*results, strict=True):
        torch.testing.assert_close(last_events, all_events, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [*LENGTHS, *ODD_LENGTHS], ids=str)
def test_the_last_events_attend_as_among_all(form: str, lengths: list[int]) -> None:
    """Every mask, window, bias and normalisation, with the penalty of the last events."""
    config, width, dtype = config_of(form), 6, torch.float64
    context, last = asked_later(lengths), last_of(lengths)
    counted = torch.zeros(sum(lengths), dtype=torch.bool)
    counted[last] = True
    query, key, value = random_inputs(config, sum(lengths), width, 1, dtype)
    parts = parts_of(config, width, dtype)
    expected = attend(query, key, value, replace(context, counted=counted), parts)
    actual = attend(query[last], key, value, context.narrowed_to_last(), parts)
    torch.testing.assert_close(actual.output, expected.output[last], rtol=1e-12, atol=1e-12)
    if parts.with_penalty:
        assert actual.penalty is not None
        torch.testing.assert_close(actual.penalty, expected.penalty, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["sasrec", "hstu", "two_tower", "no block"])
def test_a_batch_without_events_has_no_last_event(case: str) -> None:
    encoder, context = make_encoder(ENCODERS[case]).eval(), context_of([0, 0])
    assert encoder(events(0, torch.float32), context, only_last=True)[0].shape == (0, WIDTH)
