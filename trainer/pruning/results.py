"""Results of pruning: quality and cost of each pruned model next to the unpruned one. No torch.

Quality is that of `shoal evaluate` on the full catalogue, and the differences are those of `shoal compare` on the same users. Costs
are those of the cost model.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.comparison.comparison import Comparison, compare
from trainer.comparison.differences import Difference
from trainer.comparison.verdicts import statement
from trainer.config.run_config import RunConfig
from trainer.costing.training import costs_of_training, read_facts
from trainer.data.dataset.manifest import Manifest
from trainer.pruning.choice import Measured
from trainer.tasks.metrics import headline_names

UNPRUNED = "unpruned"
NOT_OF_SCORING = ("objective",)  # part of the cost model that only training has


@dataclass(frozen=True)
class Cost:
    """Cost of a model, of one event (rankers: one impression)."""

    forward_flops: float
    """FLOPs of everything but the objective: what an evaluation computes besides scores of the catalogue."""
    training_flops: float
    """FLOPs of a training step, with the objective."""
    dense_parameters: int
    """Number of dense weights."""


@dataclass(frozen=True)
class PrunedModel:
    """A model that was evaluated."""

    name: str
    """Name of the level."""
    title: str
    """What is pruned, in words."""
    config: RunConfig
    """The config of its run."""
    evaluation: Path
    """Folder of its evaluation."""
    steps: int
    """Steps that it was trained after pruning."""


@dataclass(frozen=True)
class Row:
    """One pruned model in the table of results."""

    name: str
    """Name of the level."""
    title: str
    """What is pruned, in words."""
    run: str
    """Its run folder."""
    heads_by_block: list[int]
    """Number of heads of each block, 0 for one that is left out."""
    steps: int
    """Steps that it was trained after pruning."""
    cost: Cost
    """Its cost."""
    differences: tuple[Difference, ...]
    """Of the headline metrics to the unpruned model. Empty for the unpruned model."""
    values: dict[str, float]
    """The headline metrics."""
    verdict: str
    """The first difference in a sentence."""


@dataclass(frozen=True)
class PruningResults:
    """Everything that is known about the pruned models of one run."""

    run: str
    """The run folder of the unpruned model."""
    checkpoint: str
    """Name of its checkpoint."""
    split: str
    """The evaluated split."""
    num_users: int
    """Users of the comparisons."""
    unit: str
    """What costs are counted by: "event" or "impression"."""
    measured: Measured
    """The contributions by which heads and blocks were chosen."""
    rows: tuple[Row, ...]
    """The unpruned model, then the pruned ones in the order in which they were asked for."""


def cost_of(config: RunConfig, dataset: Path, manifest: Manifest) -> Cost:
    """Return the cost of a model on the training examples of a dataset."""
    costs = costs_of_training(config, read_facts(config, dataset, manifest)).costs
    scoring = [work for name, work in costs.parts.items() if name not in NOT_OF_SCORING]
    forward = sum(work.forward + work.pointwise for work in scoring)
    return Cost(forward, costs.training, costs.dense_parameters)


def rows_of(
    unpruned: PrunedModel, pruned: Sequence[PrunedModel], metric: str, dataset: Path, manifest: Manifest
) -> tuple[tuple[Row, ...], int]:
    """Return the rows of all models, the unpruned one first, and the number of users.

    Each pruned model is compared with the unpruned one on its own: p-values are corrected over metrics, not over models.

    Args:
        unpruned: the whole model.
        pruned: the other models.
        metric: the metric that is compared first; the headline metrics follow.
        dataset: the dataset of the runs.
        manifest: its manifest.
    """
    stored = json.loads((unpruned.evaluation / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    metrics = list(dict.fromkeys([metric, *headline_names(stored)]))
    rows: list[Row] = []
    num_users = 0
    for model in pruned:
        sides = [(UNPRUNED, unpruned.evaluation), (model.name, model.evaluation)]
        compared = compare(sides, metrics=metrics)
        num_users = compared.num_users
        differences = _in_order(compared, metrics)
        if not rows:
            values = {one.metric: one.reference for one in differences}
            rows.append(_row(unpruned, cost_of(unpruned.config, dataset, manifest), (), values))
        values = {one.metric: one.value for one in differences}
        rows.append(_row(model, cost_of(model.config, dataset, manifest), differences, values))
    return tuple(rows), num_users


def _in_order(compared: Comparison, metrics: Sequence[str]) -> tuple[Difference, ...]:
    """Return the differences in these metrics. A metric that repeats another one for every user has its difference."""
    of_metric = {one.metric: one for one in compared.pairs[0].differences}
    of_metric |= {name: replace(of_metric[twin], metric=name) for name, twin in compared.repeated.items()}
    # A model of a single label names it in the comparison alone.
    of_metric |= {name.partition("/")[0]: one for name, one in of_metric.items() if name not in metrics}
    return tuple(of_metric[name] for name in metrics if name in of_metric)


def values_of(results: PruningResults) -> dict[str, Any]:
    """Return the results as plain values."""
    return asdict(results)


def _row(model: PrunedModel, cost: Cost, differences: tuple[Difference, ...], values: dict[str, float]) -> Row:
    encoder = model.config.model.encoder
    blocks = encoder.heads_of_blocks
    return Row(
        name=model.name,
        title=model.title,
        run=model.config.run.dir,
        heads_by_block=[blocks.get(number, 0) for number in range(1, encoder.num_blocks + 1)],
        steps=model.steps,
        cost=cost,
        differences=differences,
        values=values,
        verdict=statement(differences[0], UNPRUNED, model.name) if differences else "",
    )
