"""Gradient x input and integrated gradients, for every encoder and every ranker."""

import numpy as np
import pytest

from tests.support.explained_models import FORMS, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.explanation import integrated
from trainer.explanation.baselines import Baselines, mean_baseline, sampled_baselines, zero_baseline
from trainer.explanation.explained import Explained
from trainer.explanation.questions import Questions


def baselines_of(kind: str, model: Explained, pool: Questions) -> Baselines:
    match kind:
        case "zero":
            return zero_baseline(model)
        case "mean":
            return mean_baseline(model, pool)
    return sampled_baselines(model, pool, num_samples=3, seed=5)


@pytest.mark.parametrize("form", FORMS)
def test_integrated_gradients_sum_to_the_difference_of_scores(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    some = case.asked.take(np.arange(0, case.asked.size, 3))
    for kind in ("zero", "mean", "sampled"):
        attribution = integrated.attribute(case.model, some, baselines_of(kind, case.model, case.asked))
        assert attribution.delta is not None
        assert attribution.baseline_scores is not None
        difference = attribution.scores - attribution.baseline_scores
        print(kind, np.abs(attribution.delta) / np.maximum(np.abs(difference), 1e-9))
        assert (np.abs(attribution.delta) <= 0.01 * np.abs(difference) + 1e-5).all()
