"""Examples of a training: the distribution of their lengths, and the work of each in the dense part of a step. Imports no torch.

FLOPs and bytes are those of models/costs.py. An example's own work depends on its length; what a step does once (the look-up of
items, their tower, the dense weights) is fixed. The bytes of looked-up rows are left out: they are part of the costs of tables.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from cluster.config.run_config import Config
from cluster.plan.simulation.config import HistoriesConfig
from models.config import NextItemConfig
from models.costs import FLOAT, WEIGHT_TRAFFIC, Costs, Workload, costs_of
from models.histories import Histories
from models.ranking.config import RankingConfig
from trainer.costing.next_item import projected_features, shortened_histories, whole_histories
from trainer.costing.training import TrainingFacts, costs_of_training, read_facts
from trainer.data.dataset.manifest import read_manifest
from trainer.data.inputs import UsedFeatures, declared_features
from trainer.errors import UserError
from trainer.placement.loads import ITEM_TABLE, dataset_facts, demand_of, facts_of
from trainer.tasks.demand import DatasetFacts

Float64 = NDArray[np.float64]

MOST_LENGTHS = 256  # lengths for which costs are computed; those between are interpolated
ASSUMED_BYTES_PER_EVENT = 6.0  # an item and a time, compressed


@dataclass(frozen=True)
class TrainingSet:
    """The training examples of a dataset, or assumed ones."""

    lengths: NDArray[np.int64]  # (n,) input events, ascending, different
    probabilities: Float64  # (n,), with a sum of 1
    num_items: int
    features: UsedFeatures
    bytes_per_event: float  # of all files per input event of an epoch
    assumptions: tuple[str, ...]  # in place of the facts of a dataset, a sentence each
    facts: DatasetFacts  # on which look-ups depend
    ranking: TrainingFacts | None = None  # the facts of a dataset of impressions
    # With stochastic length, the share of the events of an example that are inputs. train.batch_tokens counts all events.
    share_kept: float = 1.0

    @property
    def mean(self) -> float:
        """The mean input events of an example."""
        return float(self.probabilities @ self.lengths)

    @cached_property
    def histories(self) -> Histories:
        """The lengths of the examples that have events."""
        some = self.lengths > 0
        return Histories(self.lengths[some], self.probabilities[some])

    def batch_examples(self, config: Config) -> float:
        """Return the examples of a global batch."""
        if config.train.batch_tokens is not None:
            return config.train.batch_tokens / max(1.0, self.mean / self.share_kept)
        return float(config.train.batch_size)


@dataclass(frozen=True)
class DenseWork:
    """FLOPs of matrix products, and bytes moved, in the dense part of a step."""

    products: Float64  # (n,) of an example of each length
    moved: Float64  # (n,)
    fixed_products: float  # of a rank in each step
    fixed_moved: float
    dense_parameters: int
    num_blocks: int  # of the encoder


def read_training_set(config: Config, histories: HistoriesConfig, num_items: int) -> TrainingSet:
    """Return the examples of the dataset, or those that `histories` describes.

    Args:
        config: the config of the run.
        histories: lengths to assume where there is no dataset.
        num_items: rows of the item table where there is no dataset.

    Raises:
        UserError: a dataset and lengths to assume, a ranker without a dataset, or a file that cannot be read.
    """
    if not (config.dataset_dir / "manifest.json").exists():
        return _assumed(config, histories, num_items)
    if histories != HistoriesConfig():
        raise UserError(
            f"simulation.histories: {config.dataset_dir} holds a dataset, and the lengths of its histories are used; omit them"
        )
    manifest = read_manifest(config.dataset_dir)
    facts = read_facts(config, config.dataset_dir, manifest)
    if isinstance(facts.examples, np.ndarray):
        assert isinstance(config.model, NextItemConfig)
        counted = whole_histories(facts.examples, config, config.model)
        empty = float((facts.examples < (1 if config.model.masks_items else 2)).sum())
        ranking = None
    else:
        counted = Histories.of(facts.examples.lengths)
        empty = facts.examples.num_examples - float(counted.counts.sum())
        ranking = facts
    return replace(
        _with_empty(config, counted, empty, facts.num_items, facts.features, ()),
        bytes_per_event=sum(part.num_bytes for part in manifest.parts) / max(1.0, counted.num_events),
        facts=dataset_facts(manifest, config.model.inputs),
        ranking=ranking,
    )


def _assumed(config: Config, histories: HistoriesConfig, num_items: int) -> TrainingSet:
    model = config.model
    if isinstance(model, RankingConfig):
        raise UserError(
            f"--simulate: {config.dataset_dir} holds no dataset, and the impressions of a ranking model cannot be assumed; "
            "run `shoal prepare` first"
        )
    longest = model.max_history
    if histories.mean_events is None:
        if histories.variation is not None:
            raise UserError("simulation.histories.variation: needs simulation.histories.mean_events")
        lengths = np.asarray([longest])
        weights = np.ones(1)
        text = f"every history has model.max_history = {longest:,} events, so all ranks have the same work"
    else:
        lengths = np.arange(1, longest + 1)
        weights = _log_normal(lengths, histories.mean_events, histories.variation or 0.0)
        text = (
            f"lengths of histories are log-normal with mean {histories.mean_events:g} and deviation "
            f"{histories.variation or 0.0:g} x mean, cut to {longest:,} events"
        )
    used = declared_features(config.logs, model.inputs)
    texts = (f"there is no dataset: {text}", f"a training event has {ASSUMED_BYTES_PER_EVENT:g} bytes in the dataset")
    counted = Histories(lengths[weights > 0], weights[weights > 0])
    return _with_empty(config, counted, 0.0, num_items - 1, used, texts)


def _log_normal(lengths: NDArray[np.int64], mean: float, variation: float) -> Float64:
    """Return the probabilities of lengths; longer histories are cut to the largest length."""
    if variation == 0.0:
        weights = np.zeros(lengths.size)
        whole = min(int(mean), int(lengths[-1]))
        part = mean - whole if whole < lengths[-1] else 0.0
        weights[whole - 1] = 1.0 - part
        if part:
            weights[whole] = part
        return weights
    sigma = np.sqrt(np.log1p(variation**2))
    bounds = (np.log(lengths[:-1] + 0.5) - (np.log(mean) - sigma**2 / 2.0)) / sigma
    below = [0.5 * (1.0 + erf(bound / sqrt(2.0))) for bound in bounds.tolist()]
    return np.diff(np.asarray([0.0, *below, 1.0]))


def _with_empty(
    config: Config, whole: Histories, empty: float, num_items: int, used: UsedFeatures, assumptions: tuple[str, ...]
) -> TrainingSet:
    counted = shortened_histories(whole, config.model) if isinstance(config.model, NextItemConfig) else whole
    lengths = counted.lengths.astype(np.int64)
    counts = counted.counts.astype(np.float64)
    if empty:
        lengths = np.concatenate(([0], lengths))
        counts = np.concatenate(([empty], counts))
    return TrainingSet(
        lengths,
        counts / counts.sum(),
        num_items,
        used,
        ASSUMED_BYTES_PER_EVENT,
        assumptions,
        # The last event of a history is a target only.
        facts_of(used, num_items + 1, whole.num_events / float(counts.sum()) + 1.0),
        share_kept=counted.num_events / whole.num_events if whole.num_events else 1.0,
    )


def dense_work(config: Config, examples: TrainingSet, num_ranks: int) -> DenseWork:
    """Return the dense work of a rank.

    Args:
        config: the config, with the global batch of num_ranks workers.
        examples: the training examples.
        num_ranks: the world size.
    """
    if examples.ranking is not None:
        return _ranking_work(config, examples, examples.ranking)
    demand = demand_of(config.model)
    items_per_rank = demand.of_step(config.train, num_ranks, examples.facts.num_items, examples.facts).items
    assert isinstance(config.model, NextItemConfig)
    width = config.tables[ITEM_TABLE].dim
    projected = projected_features(config, examples.features)
    per_rank = max(1.0, examples.batch_examples(config) * examples.mean / num_ranks)

    def costs(histories: Histories, events: float, items: float) -> Costs:
        given = Workload(histories, events, examples.num_items, projected=projected, items_per_step=items)
        return costs_of(config.model, width, given)  # type: ignore[arg-type]

    # Without items, and spread over endless events, only the work of the events themselves is left.
    alone = [costs(Histories(np.asarray([n]), np.ones(1)), 1e18, 0.0) for n in _chosen(examples.lengths)]
    products = _interpolated(examples.lengths, [one.total.matmul for one in alone])
    moved = _interpolated(examples.lengths, [one.moved_bytes for one in alone])
    whole = costs(examples.histories, per_rank, items_per_rank)
    own = costs(examples.histories, 1e18, 0.0)
    return DenseWork(
        products * examples.lengths,
        moved * examples.lengths,
        per_rank * max(0.0, whole.total.matmul - own.total.matmul),
        float(FLOAT * WEIGHT_TRAFFIC * whole.dense_parameters),
        whole.dense_parameters,
        config.model.encoder.num_blocks,
    )


def _chosen(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lengths for which costs are computed, 1 or more."""
    some = lengths[lengths > 0]
    if some.size <= MOST_LENGTHS:
        return some
    return some[np.unique(np.linspace(0, some.size - 1, MOST_LENGTHS).round().astype(np.int64))]


def _interpolated(lengths: NDArray[np.int64], values: list[float]) -> Float64:
    result: Float64 = np.interp(lengths, _chosen(lengths), values)
    return result


def _ranking_work(config: Config, examples: TrainingSet, facts: TrainingFacts) -> DenseWork:
    """Return the work of a ranker: the mean per example, spread over examples by the events that they gather.

    It includes the bytes of looked-up rows and of the dense weights, which the cost model has per impression only.
    """
    of_training = costs_of_training(config, facts)
    per_example = of_training.per_step / min(config.train.batch_size, _num_examples(facts))
    share = examples.lengths / examples.mean if examples.mean else np.ones(examples.lengths.size)
    costs = of_training.costs
    return DenseWork(
        costs.total.matmul * per_example * share,
        costs.moved_bytes * per_example * share,
        0.0,
        0.0,
        costs.dense_parameters,
        config.model.encoder.num_blocks,
    )


def _num_examples(facts: TrainingFacts) -> int:
    assert not isinstance(facts.examples, np.ndarray)
    return facts.examples.num_examples
