"""Norms of candidates: a plain split of the rows, in every place of a norm, and the single norms as a special case."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.encoders.encoder import Encoder
from models.layers.norms import GroupNorm, normed
from tests.models.encoders.test_candidates import FORMS, context_of, encoder_of, shown_here, vectors_of


def twins(case: str, **more: Any) -> tuple[Encoder, Encoder]:
    """Return an encoder with one norm for all, and one with norms of candidates that have the same weights."""
    plain, grouped = (encoder_of(case, candidate_norms=given, **more).double() for given in (False, True))
    weights = plain.state_dict()
    for name in grouped.state_dict():
        if name not in weights:
            weights[name] = plain.state_dict()[name.replace(".events.", ".").replace(".candidates.", ".")]
    grouped.load_state_dict({name: weights[name] for name in grouped.state_dict()})
    return plain, grouped


@pytest.mark.parametrize("case", FORMS)
def test_equal_norms_are_one_norm(case: str) -> None:
    """In values, and in gradients, which the single norm has as the sum of both."""
    given = shown_here()
    results = []
    plain, grouped = twins(case)
    for encoder in (plain, grouped):
        x = vectors_of(given, torch.float64).requires_grad_()
        output = encoder(x, context_of(given))[0]
        output.pow(3).sum().backward()
        results.append((output.detach(), x.grad))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    gradients = dict(grouped.named_parameters())
    for name, weight in plain.named_parameters():
        if name.rsplit(".", 1)[0] + ".events.weight" in gradients and weight.grad is not None:
            stem, kind = name.rsplit(".", 1)
            parts = [gradients[f"{stem}.{group}.{kind}"].grad for group in ("events", "candidates")]
            total = sum(part for part in parts if part is not None)
            torch.testing.assert_close(total, weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["hstu", "sasrec, sparsemax and post-norm", "ligr, gate, rms"])
def test_each_group_has_weights_of_its_own(case: str) -> None:
    """The norms of candidates change what candidates are, and nothing that events are."""
    given = shown_here()
    _, encoder = twins(case)
    blocks, context = encoder.blocks, context_of(given)
    x = vectors_of(given, torch.float64)
    before = blocks[0](x, context)[0].detach()
    norms = [module for module in blocks[0].modules() if isinstance(module, GroupNorm)]
    assert len(norms) == 2 + (encoder.config.attention.output_norm != "none") - (encoder.config.feed_forward == "none")
    for norm in norms:
        with torch.no_grad():
            norm.candidates.weight.mul_(1.7)
        after = blocks[0](x, context)[0].detach()
        events = sum(given.lengths)
        assert torch.equal(after[:events], before[:events])
        assert (after[events:] - before[events:]).abs().max() > 1e-3
        before = after


@pytest.mark.parametrize("num_events", [0, 2, 5])
def test_a_group_norm_is_two_norms_of_two_parts(num_events: int) -> None:
    norm = GroupNorm(nn.LayerNorm(4), nn.RMSNorm(4))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected: Tensor = torch.cat((norm.events(x[:num_events]), norm.candidates(x[num_events:])))
    torch.testing.assert_close(normed(norm, x, num_events), expected)
    assert torch.equal(normed(norm.events, x, num_events), norm.events(x))
