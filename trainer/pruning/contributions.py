"""Contributions of heads and blocks: the validation metric without each of them (Michel et al. 2019, arXiv:1905.10650).

    contribution = metric of the whole model - metric without the unit      (the other way round where less is better)

Contributions do not add up: heads can stand in for each other. A unit that is switched off contributes exactly what it
contributes to a pruned model, which is nothing (trainer.pruning.weights).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from models.encoders.block import EncoderBlock
from models.encoders.encoder import Encoder
from trainer.explanation.heads import without_heads
from trainer.pruning.choice import Contribution, Measured, Unit, units_of
from trainer.tasks.metrics import larger_is_better
from trainer.tasks.task import Evaluator


def measure_contributions(
    model: nn.Module, evaluator: Evaluator, metric: str, on_unit: Callable[[int, int], None] = lambda done, total: None
) -> Measured:
    """Return the contributions of all units of a model, the same on every worker. Collective.

    Args:
        model: a model with an encoder.
        evaluator: of the validation split.
        metric: name of the metric.
        on_unit: called with the number of evaluations done, and of all.
    """
    encoder = encoder_of(model)
    units = units_of(encoder.config)
    sign = 1.0 if larger_is_better(metric) else -1.0

    def evaluated() -> float:
        return evaluator.mean_metrics(model, lambda done, total: None)[metric]

    whole = evaluated()
    contributions = []
    for number, unit in enumerate(units, start=1):
        on_unit(number, len(units) + 1)
        with without(encoder, unit):
            value = evaluated()
        contributions.append(Contribution(unit, value, sign * (whole - value)))
    on_unit(len(units) + 1, len(units) + 1)
    return Measured(metric, whole, tuple(contributions))


def encoder_of(model: nn.Module) -> Encoder:
    """Return the encoder of a model."""
    return next(module for module in model.modules() if isinstance(module, Encoder))


@contextmanager
def without(encoder: Encoder, unit: Unit) -> Iterator[None]:
    """Switch off a unit within the context."""
    block = encoder.blocks[list(encoder.config.heads_of_blocks).index(unit.block)]
    assert isinstance(block, EncoderBlock)
    if unit.kind == "heads":
        with without_heads(block.attention, unit.heads):
            yield
        return

    def skipped(module: nn.Module, given: tuple[Any, ...], output: Any) -> tuple[Tensor, None]:
        x_ND, context = given
        return context.output_rows(x_ND), None

    hook = block.register_forward_hook(skipped)
    try:
        yield
    finally:
        hook.remove()
