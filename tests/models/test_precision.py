"""Under autocast to bfloat16 all models compute nearly what they do in float32, no score is rounded, gradients stay float32."""

import functools

import pytest
import torch
from torch import Tensor

from models.attention import tiled
from models.attention.attend import attend
from models.attention.search import search_by_similarity
from models.objectives import chunked_scores, softmax
from models.objectives.chunked_scores import sum_over_scores
from models.objectives.sampled import Sample, binary_cross_entropy, sampled_softmax_cross_entropy
from models.objectives.softmax import softmax_cross_entropy
from models.ranking.config import ExpertsConfig
from models.ranking.experts import Experts
from tests.models.attention import forms
from tests.models.attention.shown import shown, vectors
from tests.models.encoders.test_encoder import CASES, LENGTHS, context_of, events, make_encoder
from tests.models.ranking.test_micro_batches import COUNTS, RANKERS, ranker
from tests.models.ranking.test_model import batch_of, random_users


def outcome(case: str, low: bool, recompute: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return (what is encoded, gradients of its first half's sum of squares by input and weights)."""
    encoder = make_encoder(CASES[case], recompute=recompute)
    x_ND = events(sum(LENGTHS)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        encoded_ND = encoder(x_ND, context_of(LENGTHS))[0].float()
    (encoded_ND.square() * torch.linspace(0.0, 1.0, encoded_ND.shape[1])).sum().backward()
    weights = [p for p in encoder.parameters() if p.grad is not None]
    return encoded_ND.detach(), [x_ND.grad, *(p.grad for p in weights)]


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_under_autocast_is_nearly_that_of_float32(case):
    full, full_gradients = outcome(case, low=False)
    low, gradients = outcome(case, low=True)
    assert not torch.equal(low, full)
    assert (low - full).norm() < 0.03 * full.norm()
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    flat, expected = (torch.cat([g.flatten() for g in value]) for value in (gradients, full_gradients))
    assert torch.cosine_similarity(flat, expected, dim=0) > 0.995
    recomputed, again = outcome(case, low=True, recompute=True)
    assert torch.equal(recomputed, low)
    torch.testing.assert_close(torch.cat([g.flatten() for g in again]), flat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", RANKERS)
def test_a_ranker_under_autocast_is_nearly_that_of_float32(kind):
    batch, flat, losses = batch_of(random_users(4, COUNTS)), [], []
    for low in (False, True):
        model = ranker(kind).float()
        rows = {table: value.detach().requires_grad_() for table, value in model.look_up(batch.items).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model.loss(rows, batch)
            assert model.logits(rows, batch).dtype == torch.float32
        loss.backward()
        weights = [p for name, p in model.named_parameters() if not name.startswith("tables")]
        gradients = [leaf.grad for leaf in (*rows.values(), *weights) if leaf.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        flat.append(torch.cat([gradient.flatten() for gradient in gradients]))
        losses.append(loss)
    assert losses[1].dtype == torch.float32
    assert losses[1] != losses[0]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    assert torch.cosine_similarity(*flat, dim=0) > 0.98


def share_on_grid(scores: Tensor) -> float:
    """Return the share of scores that are numbers of bfloat16; of float32 numbers fewer than one in a thousand are, by chance."""
    some = scores[scores.isfinite()]
    return (some == some.bfloat16().float()).double().mean().item()


NUM_TARGETS, NUM_ITEMS, NUM_NEGATIVES, VECTOR_WIDTH = 400, 900, 300, 32


def scored(large: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return users (T, D), items (C, D) and targets (T,) with scores of tens, as those of a trained model are."""
    generator = torch.Generator().manual_seed(6)
    items = 0.8 * torch.randn(NUM_ITEMS, VECTOR_WIDTH, generator=generator)
    target = torch.randint(NUM_ITEMS, (NUM_TARGETS,), generator=generator)
    users = large * torch.randn(NUM_TARGETS, VECTOR_WIDTH, generator=generator) + 2.0 * items[target]
    return users.requires_grad_(), items.requires_grad_(), target


def sampled(loss, users: Tensor, items: Tensor, target: Tensor) -> Tensor:
    drawn = torch.arange(NUM_NEGATIVES) * 3
    return loss(Sample(users, items[target], items[drawn], target, drawn))


def binary(sample: Sample) -> Tensor:
    return binary_cross_entropy(sample, 0.6, 1.0, offset=5.0)


OBJECTIVES = {
    "full softmax": lambda *given: softmax_cross_entropy(*given, 1.0),
    "full softmax, smoothed": lambda *given: softmax_cross_entropy(*given, 0.5, label_smoothing=0.1),
    "full softmax, tiled": lambda *given: softmax_cross_entropy(*given, 1.0),
    "sampled softmax": functools.partial(sampled, sampled_softmax_cross_entropy),
    "binary": functools.partial(sampled, binary),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_of_an_objective_under_autocast_is_within_one_per_cent(monkeypatch, name):
    if name.endswith("tiled"):
        monkeypatch.setattr(softmax, "MIN_ROWS", 1 << 20)
    flat = []
    for low in (False, True):
        users, items, target = scored()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = OBJECTIVES[name](users, items, target)
        flat.append([loss.detach(), *torch.autograd.grad(loss, (users, items))])
    for exact, value in zip(*flat, strict=True):
        assert value.dtype == torch.float32
        assert (value - exact).norm() < 0.01 * exact.norm()


def test_no_score_of_an_objective_is_rounded_under_autocast(monkeypatch):
    users, items, _ = scored()
    seen = []

    def row_loss(scores: Tensor, rows: slice) -> tuple[Tensor, None]:
        seen.append(scores.clone())
        return scores.sum(), None

    make_tile = softmax._logits

    def tile_of(*given: Tensor) -> Tensor:
        logits = make_tile(*given)
        seen.append(logits.clone())
        return logits

    monkeypatch.setattr(softmax, "_logits", tile_of)
    monkeypatch.setattr(softmax, "MIN_ROWS", 1 << 20)
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", 1 << 17)
    with torch.autocast("cpu", torch.bfloat16):
        sum_over_scores(users, items, None, row_loss, 1.0)
        softmax_cross_entropy(*scored(), 1.0)
    assert len(seen) > 4
    for scores in seen:
        assert scores.abs().max() > 16.0
        assert share_on_grid(scores) < 0.01


@pytest.mark.parametrize("tower", [[], [5]], ids=str)
@pytest.mark.parametrize("kind", ["shared_bottom", "mmoe", "ple"])
def test_no_logit_of_a_label_is_rounded_under_autocast(kind, tower):
    config = ExpertsConfig.model_validate({"kind": kind, "hidden": [8], "tower": tower})
    experts = Experts(12, 2, config)
    experts.initialize(torch.Generator().manual_seed(1))
    fields = torch.randn(500, 12, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = experts(fields)
    assert logits.dtype == torch.float32
    # A ReLU network may say exactly nothing.
    assert share_on_grid(logits[logits != 0]) < 0.05


@pytest.mark.parametrize("form", ["softmax, window", "entmax15", "silu"])
def test_no_score_of_attention_is_rounded_before_its_weight_is_computed(monkeypatch, form):
    seen, normalise = [], tiled.normalise

    def spy(scores: Tensor, *others) -> Tensor:
        seen.append(scores.detach())
        return normalise(scores, *others)

    monkeypatch.setattr(tiled, "normalise", spy)
    config, lengths = forms.config_of(form), [3, 40, 1, 25]
    query, key, value = forms.random_inputs(config, sum(lengths), 16, 1, torch.bfloat16)
    parts = forms.parts_of(config, 16, torch.float32)
    attend(query, key, value, forms.context_of(lengths), parts)
    assert seen
    assert all(share_on_grid(scores[scores != 0]) < 0.05 for scores in seen)


def test_a_search_under_autocast_finds_the_same_events_as_evaluation():
    given = shown([60, 40], [30, 30])
    events, candidates = vectors(100, 1, 8, 1, torch.float32)[:, 0], vectors(60, 1, 8, 2, torch.float32)[:, 0]
    exact = search_by_similarity(events, candidates, given.candidate_layout, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search_by_similarity(events, candidates, given.candidate_layout, 5), exact)
