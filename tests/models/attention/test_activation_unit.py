"""DIN's activation unit: the decomposed, piecewise scores equal the network written out, in values and gradients."""

import pytest
import torch

from models.attention import tiled
from models.attention.activation_unit import ActivationUnit
from models.attention.attend import attend_to_events
from models.attention.config import AttentionConfig
from models.attention.reference import attend_to_events_reference, unit_reference
from models.attention.terms import AttentionTerms
from models.layers.running_statistics import sums_of, update
from tests.models.attention.shown import shown, vectors

HEADS, WIDTH = 2, 3
HIDDEN = {"one layer": (5,), "three layers": (5, 4, 2)}


def unit_of(hidden: tuple[int, ...], activation: str, seed: int = 4) -> ActivationUnit:
    """Return the unit with biases and statistics that are not trivial."""
    unit = ActivationUnit(HEADS, WIDTH, hidden, activation).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for module in unit.activations:
            if activation == "dice":
                module.statistics.mean.normal_(generator=generator)
                module.statistics.variance.uniform_(0.5, 2.0, generator=generator)
    return unit


@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_decomposed_scores_equal_the_network_written_out(hidden, activation):
    unit = unit_of(HIDDEN[hidden], activation).eval()
    candidate, event = vectors(7, HEADS, WIDTH, 1), vectors(9, HEADS, WIDTH, 2)
    query, key = (terms.transpose(0, 1)[None] for terms in (unit.candidate_terms(candidate), unit.event_terms(event)))
    scores = unit(query, key, torch.ones(1, 1, 7, 9, dtype=torch.bool))
    torch.testing.assert_close(scores[0], unit_reference(query[0], key[0], unit), rtol=1e-12, atol=1e-12)
    assert scores.std() > 0.1


def results(attention, unit: ActivationUnit, normalisation: str) -> list[torch.Tensor]:
    given = shown()
    candidate = vectors(sum(given.counts), HEADS, WIDTH, 1).requires_grad_()
    event, value = (vectors(sum(given.lengths), HEADS, WIDTH, seed).requires_grad_() for seed in (2, 3))
    unit.zero_grad()
    parts = AttentionTerms(AttentionConfig(num_heads=HEADS, normalisation=normalisation), 1.0, 9, unit=unit)
    output = attention(unit.candidate_terms(candidate), unit.event_terms(event), value, given.context(), parts).output
    (
        output * torch.randn(output.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    ).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in (candidate, event, value, *unit.parameters()))]


# One piece or several, of one history or a few, also of part of its candidates; computed once or again in backward.
PIECES = [(size, kept) for size in (tiled.PIECE_SCORES, 900, 300) for kept in (0, tiled.UNIT_KEPT)]


@pytest.mark.pairwise
@pytest.mark.parametrize("normalisation", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
@pytest.mark.parametrize(("piece_scores", "kept"), PIECES)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_attention_with_it_equals_the_reference(monkeypatch, hidden, piece_scores, kept, activation, normalisation):
    monkeypatch.setattr(tiled, "PIECE_SCORES", piece_scores)
    monkeypatch.setattr(tiled, "UNIT_KEPT", kept)
    unit = unit_of(HIDDEN[hidden], activation).eval()
    fast, plain = (
        results(attention, unit, normalisation) for attention in (attend_to_events, attend_to_events_reference)
    )
    for actual, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert actual.abs().sum() > 0 or normalisation == "softmax"  # which does not see a bias of all scores


def test_gradients_of_the_reference_are_right():
    unit = unit_of((4, 3), "prelu")
    candidate, event = (vectors(rows, HEADS, WIDTH, rows).transpose(0, 1).requires_grad_() for rows in (3, 4))
    assert torch.autograd.gradcheck(lambda c, h, *_: unit_reference(c, h, unit), [candidate, event, *unit.parameters()])


@pytest.mark.parametrize(("piece_scores", "kept"), PIECES)
def test_dice_counts_each_visible_pair_once(monkeypatch, piece_scores, kept):
    """Neither padding nor the pieces that backward recomputes are counted."""
    monkeypatch.setattr(tiled, "PIECE_SCORES", piece_scores)
    monkeypatch.setattr(tiled, "UNIT_KEPT", kept)
    unit = unit_of((5,), "dice").train()
    results(attend_to_events, unit, "none")
    statistics, layout = unit.activations[0].statistics, shown().candidate_layout
    hidden = []
    for candidate, event in pairs_of(layout):
        c, h = vectors(sum(shown().counts), HEADS, WIDTH, 1)[candidate], vectors(67, HEADS, WIDTH, 2)[event]
        both = torch.stack((h, c, h - c, h * c), dim=1)
        hidden.append(torch.einsum("hpk,hpfk->hf", both, unit.weight) + unit.bias)
    every = torch.cat(hidden).detach()
    counted = sums_of(unit)
    assert counted[0] == HEADS * len(pairs_of(layout)) == every.shape[0]
    mean, variance = statistics.mean.clone(), statistics.variance.clone()
    torch.testing.assert_close(counted[1:6], (every - mean).sum(dim=0))
    update(unit, counted)
    assert not torch.equal(statistics.mean, mean)
    assert not torch.equal(statistics.variance, variance)
    torch.testing.assert_close(statistics.mean, every.mean(dim=0))


def pairs_of(layout) -> list[tuple[int, int]]:
    """Return every candidate with every event that it sees."""
    return [
        (number, first + place)
        for number, (first, end) in enumerate(
            zip(layout.first_event.tolist(), layout.history_end.tolist(), strict=True)
        )
        for place in range(max(0, end - layout.reach), end)
    ]


def test_initial_scores_are_of_the_size_of_one_and_a_function_of_the_seed():
    def draw(seed: int) -> ActivationUnit:
        unit = ActivationUnit(1, 64, (36,), "dice")
        unit.initialize(torch.Generator().manual_seed(seed))
        return unit

    unit = draw(3)
    candidate, event = (torch.randn(1, 1, 200, 64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    scores = unit_reference(candidate[0], event[0], unit)
    assert 0.1 < scores.std() < 3.0
    assert torch.equal(unit.weight, draw(3).weight)
    assert not torch.equal(unit.weight, draw(4).weight)
