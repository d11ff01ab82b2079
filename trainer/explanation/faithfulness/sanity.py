"""Sanity checks of explanations: randomised weights, uniform attention, and agreement over seeds.

randomised weights  Weights are replaced by initial ones, from the output to the input, and stay replaced (cascading randomisation:
                    Adebayo et al. 2018, arXiv:1810.03292). An explanation of the model must change: its rank correlation with the
                    one before must fall. A map that stays the same does not depend on what the model learned.
uniform attention   All events that an event can attend to get equal weights (Wiegreffe & Pinter 2019, arXiv:1908.04626;
                    Jain & Wallace 2019, arXiv:1902.10186). If the output hardly changes, attention explains little of it.
agreement           Models that differ in their seed alone explain the same item. If their maps differ, the maps tell more about the
                    seed than about the data.

The model of a check is a copy in this process. Shapes: B questions, N events of all of them.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from models.attention.layer import Attention
from sharding.tables.initialize import initialize_tables
from trainer.evaluation.confidence import SHARE
from trainer.explanation.faithfulness.maps import common_share, rank_correlations
from trainer.explanation.faithfulness.results import Agreement, RandomisedStage, RandomisedWeights, UniformAttention
from trainer.explanation.faithfulness.scoring import CatalogueScorer
from trainer.explanation.faithfulness.summary import CORRELATION, mean_of
from trainer.explanation.questions import Questions
from trainer.inference.trained_model import TrainedModel

INPUTS = re.compile(r"(^|\.)(tables|items|inputs|mask|positions|input_norm|merge)\.")
BLOCK = re.compile(r"(^|\.)blocks\.(\d+)\.")
OUTPUT_STAGE, INPUT_STAGE = "output", "items and inputs"
TOP = 10  # items of the lists that are compared
MOST_IMPORTANT = 3  # events that maps are compared by

Weigh = Callable[[TrainedModel], np.ndarray]


def cascade(trained: TrainedModel, seed: int) -> Iterator[tuple[str, TrainedModel]]:
    """Yield the model with more and more of its weights replaced by initial ones, from the output to the input.

    Args:
        trained: the model, which is left unchanged.
        seed: seed of the initial weights.
    """
    model = copy.deepcopy(trained.model)
    fresh = dict(_initial(trained, seed).named_parameters())
    stages: dict[str, list[str]] = {}
    for name in fresh:
        stages.setdefault(_stage_of(name), []).append(name)
    own = dict(model.named_parameters())
    for stage in sorted(stages, key=_depth, reverse=True):
        with torch.no_grad():
            for name in stages[stage]:
                own[name].copy_(fresh[name])
        # A copy, since the next stage changes the model, and since a trained model keeps its tables.
        yield stage, replace(trained, model=copy.deepcopy(model))


def randomised_weights(
    trained: TrainedModel, asked: Questions, weigh: Weigh, order: str, seed: int
) -> RandomisedWeights:
    """Return how far a method's weights correlate with those of randomised models.

    Args:
        trained: the model.
        asked: the questions, with at least two events each.
        weigh: returns the weights (N,) that the method gives the events, for any model.
        order: name of the method.
        seed: seed of the random weights.
    """
    before = weigh(trained)
    stages = []
    for name, randomised in cascade(trained, seed):
        # A constant map has no order, so it has nothing in common with the one before.
        correlations = np.nan_to_num(rank_correlations(before, weigh(randomised), asked.offsets), nan=0.0)
        stages.append(RandomisedStage(name, float(correlations.mean()), mean_of(correlations, CORRELATION)))
    return RandomisedWeights(order, tuple(stages), asked.size)


def with_uniform_attention(trained: TrainedModel) -> TrainedModel:
    """Return a copy of the model in which each event attends equally to all events that it can see.

    The weights are those of a softmax of equal scores, 1 / number of visible events. Where the model learned pointwise weights,
    their sum differs; the norm after HSTU's attention removes the difference. Biases are zero.
    """
    model = copy.deepcopy(trained.model)
    for module in model.modules():
        if isinstance(module, Attention):
            _make_uniform(module)
    return replace(trained, model=model)


def uniform_attention(learned: CatalogueScorer, uniform: CatalogueScorer, asked: Questions) -> UniformAttention:
    """Return how the best items change when attention is made uniform.

    Args:
        learned: the model.
        uniform: the model of `with_uniform_attention`, with the same seen items.
        asked: the questions; their targets are not used.
    """
    before, after = (scorer.top(asked, TOP).top_items for scorer in (learned, uniform))
    best = asked.with_targets(before[:, 0])
    history = np.arange(asked.size)
    probability, of_uniform = (scorer.score(best, history).probabilities for scorer in (learned, uniform))
    same = (before[:, 0] == after[:, 0]).astype(np.float64)
    overlap = (before[:, :, None] == after[:, None, :]).any(axis=2).mean(axis=1)
    return UniformAttention(
        same_top=float(same.mean()),
        same_top_interval=mean_of(same, SHARE),
        overlap=float(overlap.mean()),
        probability=float(probability.mean()),
        probability_uniform=float(of_uniform.mean()),
        num_users=asked.size,
    )


def agreement(weights: Sequence[np.ndarray], offsets: np.ndarray, order: str) -> Agreement:
    """Return how far the maps of several models agree.

    Args:
        weights: for each model, the weights (N,) of a method for the same items; at least two models.
        offsets: (B + 1,) bounds of the questions.
        order: name of the method.
    """
    pairs = list(combinations(weights, 2))
    correlations = np.mean([np.nan_to_num(rank_correlations(*pair, offsets), nan=0.0) for pair in pairs], axis=0)
    shares = np.mean([common_share(*pair, offsets, MOST_IMPORTANT) for pair in pairs], axis=0)
    return Agreement(
        order=order,
        correlation=float(correlations.mean()),
        correlation_interval=mean_of(correlations, CORRELATION),
        overlap=float(shares.mean()),
        overlap_interval=mean_of(shares, SHARE),
        num_models=len(weights),
        num_users=offsets.size - 1,
    )


def _initial(trained: TrainedModel, seed: int) -> Any:
    """Return a copy of the model with initial weights of another seed."""
    fresh = copy.deepcopy(trained.model)
    fresh.initialize(torch.Generator().manual_seed(seed))
    configs = trained.job.config.tables
    initialize_tables(fresh, seed, {name: configs[name].init_std for name in trained.tables.weights})
    return fresh


def _stage_of(name: str) -> str:
    """Return the stage of the cascade that a parameter belongs to."""
    block = BLOCK.search(name)
    if block is not None:
        return f"block {int(block.group(2)) + 1}"
    return INPUT_STAGE if INPUTS.search(name) else OUTPUT_STAGE


def _depth(stage: str) -> float:
    """Return how near to the output a stage is."""
    if stage == OUTPUT_STAGE:
        return float("inf")
    return 0.0 if stage == INPUT_STAGE else float(stage.rpartition(" ")[2])


@torch.no_grad()
def _make_uniform(module: Attention) -> None:
    module.query_key_value.weight[: module.sizes[0]] = 0.0
    for bias in (module.position_bias, module.time_bias):
        if isinstance(bias, nn.Module):
            for parameter in bias.parameters():
                parameter.zero_()
    module.config = module.config.model_copy(update={"normalisation": "softmax"})
