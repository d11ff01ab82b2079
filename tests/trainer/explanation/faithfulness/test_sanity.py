"""Checks of explanations: rank correlations, common events, randomised weights, uniform attention, agreement, planted causes."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from models.attention.layer import Attention
from sharding.config import TableConfig
from tests.support.explained_models import Case, case_of
from tests.trainer.explanation.conftest import Datasets
from trainer.data.stream.columns import gather
from trainer.explanation import occlusion
from trainer.explanation.catalogue import Seen
from trainer.explanation.explained import ExplainedNextItem, explained_model, score
from trainer.explanation.faithfulness.maps import average_ranks, common_share, first_events, rank_correlations
from trainer.explanation.faithfulness.orders import order_of
from trainer.explanation.faithfulness.planted import recoveries
from trainer.explanation.faithfulness.sanity import (
    agreement,
    cascade,
    randomised_weights,
    uniform_attention,
    with_uniform_attention,
)
from trainer.explanation.faithfulness.scoring import whole_catalogue
from trainer.inference.trained_model import TrainedModel

OFFSETS = np.asarray([0, 4, 7])


def job_of(case: Case) -> TrainedModel:
    """Return the model of a case with the settings that the checks read."""
    tables = {name: TableConfig() for name in case.model.trained.tables.weights}
    job: Any = SimpleNamespace(config=SimpleNamespace(tables=tables))
    return replace(case.model.trained, job=cast(Any, job))


def weigh(asked: Any) -> Any:
    return lambda trained: occlusion.attribute(explained_model(trained), asked).values.astype(np.float64)


def test_rank_correlations_are_spearmans() -> None:
    first = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 1.0])
    second = np.asarray([1.0, 3.0, 2.0, 4.0, 2.0, 2.0, 2.0])
    assert average_ranks(first, OFFSETS).tolist() == [0, 1, 2, 3, 1.5, 1.5, 0]
    correlations = rank_correlations(first, second, OFFSETS)
    assert correlations[0] == pytest.approx(1 - 6 * 2 / (4 * 15))  # Spearman's formula without ties
    assert np.isnan(correlations[1])
    assert rank_correlations(first, -first, OFFSETS) == pytest.approx([-1, -1])


def test_common_events_are_those_among_the_first_of_both() -> None:
    first, second = np.asarray([4.0, 3, 2, 1, 1, 2, 3]), np.asarray([4.0, 1, 2, 3, 3, 2, 1])
    assert common_share(first, second, OFFSETS, 2) == pytest.approx([0.5, 0.5])
    assert common_share(first, second, OFFSETS, 9) == pytest.approx([1, 1])
    assert first_events(order_of(first, OFFSETS), OFFSETS, 1).tolist() == [
        True,
        False,
        False,
        False,
        False,
        False,
        True,
    ]


def test_a_cascade_replaces_weights_from_the_output_to_the_input(explained_datasets: Datasets) -> None:
    case = case_of("encoder: sasrec", *explained_datasets, max_history=7)
    trained = job_of(case)
    own = {name: parameter.clone() for name, parameter in trained.model.named_parameters()}
    changed: list[set[str]] = []
    stages = []
    for stage, randomised in cascade(trained, 7):
        stages.append(stage)
        parameters = randomised.model.named_parameters()
        changed.append({name for name, parameter in parameters if not torch.equal(parameter, own[name])})
    assert stages == ["output", "block 2", "block 1", "items and inputs"]
    for before, after in pairwise(changed):
        assert before < after
    assert not any("blocks.0." in name or name.startswith("tables.") for name in changed[1])
    assert any(name.startswith("tables.") for name in changed[3])
    assert all(torch.equal(parameter, own[name]) for name, parameter in trained.model.named_parameters())


def test_occlusion_changes_with_randomised_weights(explained_datasets: Datasets) -> None:
    case = case_of("encoder: sasrec", *explained_datasets, max_history=7)
    asked = case.asked.take(np.flatnonzero(case.asked.lengths > 2))
    result = randomised_weights(job_of(case), asked, weigh(asked), "occlusion", 3)
    assert abs(result.stages[-1].correlation) < 0.4
    assert all(stage.interval[0] <= stage.correlation <= stage.interval[1] for stage in result.stages)


@pytest.mark.parametrize("form", ["encoder: sasrec", "encoder: hstu", "encoder: ligr"])
def test_uniform_attention_averages_the_visible_values(form: str, explained_datasets: Datasets) -> None:
    case = case_of(form, *explained_datasets, max_history=7)
    uniform = with_uniform_attention(case.model.trained)
    for module in case.model.trained.model.modules():
        assert not isinstance(module, Attention) or (module.query_key_value.weight[: module.sizes[0]] != 0).any()
    one = case.asked.take(np.flatnonzero(case.asked.lengths == 7)[:1])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: torch.nn.Module, given: tuple[Any, ...], output: Any) -> None:
        seen.append((given[0], given[1]))

    first = next(module for module in uniform.model.modules() if isinstance(module, Attention))
    first.attention_output.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    first.register_forward_hook(keep)
    score(explained_model(uniform), one)
    (mixed, _), (inputs, _) = seen
    if first.output_norm is None and first.config.num_channels == 1 and not first.config.gate:
        values = first.query_key_value(inputs)[:, first.sizes[0] + first.sizes[1] :][:, : first.sizes[2]]
        expected = values.cumsum(0) / torch.arange(1, 8)[:, None]
        torch.testing.assert_close(mixed, expected[-mixed.shape[0] :], rtol=1e-4, atol=1e-5)


def test_a_model_with_uniform_attention_is_compared_with_itself(explained_datasets: Datasets) -> None:
    case = case_of("encoder: sasrec", *explained_datasets, max_history=7)
    assert isinstance(case.model, ExplainedNextItem)
    filled = np.flatnonzero(case.asked.lengths > 0)
    asked = case.asked.take(filled)
    begin = case.packed.starts[case.rows[filled]]
    seen = Seen(*gather(case.packed.items.astype(np.int64), begin, begin + case.low[filled]))
    learned = whole_catalogue(case.model, seen)
    other = explained_model(with_uniform_attention(case.model.trained))
    assert isinstance(other, ExplainedNextItem)
    same = uniform_attention(learned, learned, asked)
    assert (same.same_top, same.overlap) == (1.0, 1.0)
    changed = uniform_attention(learned, whole_catalogue(other, seen), asked)
    assert changed.probability == same.probability == same.probability_uniform
    assert changed.probability_uniform != pytest.approx(changed.probability, abs=1e-6)


def test_agreement_is_that_of_all_pairs_of_seeds() -> None:
    first = np.asarray([1.0, 2, 3, 4, 1, 2, 3])
    result = agreement([first, first, -first], OFFSETS, "occlusion")
    assert result.correlation == pytest.approx((1 - 1 - 1) / 3)
    assert result.overlap == pytest.approx(((1 + 2 / 3 + 2 / 3) / 3 + 1) / 2)
    assert (result.num_models, result.num_users) == (3, 2)


def test_planted_causes_are_counted_among_the_first_events() -> None:
    caused = np.asarray([False, True, False, False, True, False, False])
    orders = {"ours": np.asarray([1, 0, 2, 3, 2, 1, 0]), "recency": np.asarray([3, 2, 1, 0, 2, 1, 0])}
    ours, recency = recoveries(orders, caused, OFFSETS, k=2)
    assert (ours.precision, ours.hit_rate) == (0.25, 0.5)
    assert (recency.precision, ours.ratio_to_recency) == (0.0, None)
    ours, recency = recoveries(orders, caused, OFFSETS, k=3)
    assert ours.precision == pytest.approx(1 / 3)
    assert ours.ratio_to_recency == pytest.approx(1.0)
