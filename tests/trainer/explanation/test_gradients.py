"""Gradient x input and integrated gradients, for every encoder and every ranker."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.explained_models import FORMS, Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation import gradients, integrated
from trainer.explanation.baselines import Baselines, mean_baseline, pool_vectors, sampled_baselines, zero_baseline
from trainer.explanation.questions import Questions

# Scores that are a function of each event's vector without a norm around zero, and such with one; every path of attention.
SOME = [
    "encoder: sasrec",
    "encoder: bert4rec",
    "encoder: hstu",
    "encoder: two_tower",
    "encoder: rotary, in a window with global events",
    "ranker: din",
    "ranker: hstu",
    "ranker: SIM by category",
]


def baselines_of(kind: str, case: Case) -> Baselines:
    match kind:
        case "zero":
            return zero_baseline(case.model)
        case "mean":
            return mean_baseline(case.model, case.asked)
    return sampled_baselines(case.model, case.asked, num_samples=2, seed=5)


@pytest.mark.parametrize("form", FORMS)
def test_integrated_gradients_sum_to_the_difference_of_scores(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    some = case.asked.take(np.arange(0, case.asked.size, 12))
    kinds = ("zero", "mean", "sampled") if form in SOME else ("mean",)
    for kind in kinds:
        attribution = integrated.attribute(case.model, some, baselines_of(kind, case), n_steps=25)
        assert attribution.delta is not None
        assert attribution.baseline_scores is not None
        difference = attribution.scores - attribution.baseline_scores
        # Of a difference that almost cancels, single precision leaves fewer digits.
        allowed = 0.01 * np.abs(difference) + 1e-5 * np.abs(attribution.scores).max()
        assert (np.abs(attribution.delta) <= allowed).all(), (kind, attribution.delta, difference)


@pytest.mark.parametrize("form", SOME)
def test_gradients_are_those_of_finite_differences(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    some = case.asked.take(np.arange(0, case.asked.size, 6))
    prepared = case.model.prepare(some)
    # The scores of this ranker are so large that rounding hides what a shorter step changes.
    step = 1e-1 if form == "ranker: hstu" else 1e-2
    with torch.no_grad():
        vectors = case.model.vectors(prepared)
        random = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        ahead, behind = (case.model.scores(prepared, vectors + sign * step * random) for sign in (1, -1))
    _, gradient = gradients.score_and_gradient(case.model, prepared, vectors)
    slope = torch.zeros(some.size).index_add(0, torch.from_numpy(some.owner), (gradient * random).sum(dim=1))
    expected = (ahead - behind) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()) + 1e-4)
    attribution = gradients.attribute(case.model, some, internal_batch_size=20)
    np.testing.assert_allclose(attribution.values, (gradient * vectors).sum(dim=1), rtol=1e-3, atol=1e-4)


def forward_of(case: Case, one: Questions) -> Any:
    """Return the score as Captum wants it: a function of (batch, events, width)."""

    def forward(vectors: Tensor) -> Tensor:
        repeated = one.take(np.zeros(vectors.shape[0], np.int64))
        return case.model.scores(case.model.prepare(repeated), vectors.flatten(0, 1))

    return forward


@pytest.mark.parametrize("form", ["encoder: sasrec", "encoder: hstu", "ranker: din", "ranker: hstu"])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_middle"])
def test_integrated_gradients_equal_captum(form: str, method: Any, explained_datasets: Datasets) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed (requirements/dev.txt)")
    case = case_of(form, *explained_datasets, max_history=7)
    some = case.asked.take(np.asarray([0, 5, 10]))
    for kind in ("zero", "mean"):
        baselines = baselines_of(kind, case)
        actual = integrated.attribute(case.model, some, baselines, n_steps=20, method=method, tolerance=None)
        for number in range(some.size):
            one = some.take(np.asarray([number]))
            with torch.no_grad():
                vectors = case.model.vectors(case.model.prepare(one))[None]
            begin = baselines.vectors.expand(vectors.shape[1], -1)[None]
            theirs, delta = captum.IntegratedGradients(forward_of(case, one)).attribute(
                vectors, begin, n_steps=20, method=method, internal_batch_size=64, return_convergence_delta=True
            )
            scale = float(theirs.sum(dim=-1).abs().max())
            np.testing.assert_allclose(actual.of(number), theirs[0].sum(dim=-1).detach(), rtol=1e-5, atol=1e-5 * scale)
            assert actual.delta is not None
            np.testing.assert_allclose(actual.delta[number], float(delta), rtol=1e-3, atol=1e-3 * scale)


def test_sampled_baselines_are_other_histories_aligned_at_the_newest_event(explained_datasets: Datasets) -> None:
    case = case_of("encoder: sasrec", *explained_datasets, max_history=7)
    asked = case.asked
    baselines = sampled_baselines(case.model, asked, num_samples=4, seed=1)
    pool = asked.take(np.flatnonzero(asked.lengths))
    torch.testing.assert_close(baselines.vectors, pool_vectors(case.model, pool))
    sources = []
    for sample in range(4):
        index = baselines.index(asked, np.full(asked.size, sample))
        owner = np.searchsorted(pool.offsets, index, side="right") - 1
        for question in np.flatnonzero(asked.lengths):
            events = slice(asked.offsets[question], asked.offsets[question + 1])
            (source,) = set(owner[events].tolist())
            assert pool.keys[source] != asked.keys[question]
            length = pool.lengths[source]
            places = index[events] - pool.offsets[source]
            expected = (length - 1 - np.arange(asked.lengths[question])[::-1] % length).tolist()
            assert places.tolist() == expected
            sources.append(source)
    assert len(set(sources)) > 10
    alone = asked.take(np.asarray([4]))
    some = baselines.index(asked, np.full(asked.size, 2))[asked.offsets[4] : asked.offsets[5]]
    assert baselines.index(alone, np.asarray([2])).tolist() == some.tolist()
