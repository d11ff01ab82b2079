"""Evaluation of a ranking model on held-out impressions, by all workers together.

During training only metrics are computed: sums are added over workers, and for pairs each worker counts one range of scores. As
a stage of its own, each worker writes a row per impression with the scores of the model and of the baselines, and the driver merges
the parts (trainer.evaluation.ranking.results). Neither needs memory for all impressions, or for all of one worker: scores are in
temporary files, and rows are written as they are scored.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.features.catalogue import Catalogue
from models.features.request import ItemRequest
from models.ranking.batch import RankingBatch
from models.ranking.config import LabelConfig
from models.ranking.reach import Reach
from sharding.world import World
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import take_all
from trainer.data.stream.held_out import Deal
from trainer.data.stream.impressions import HeldOutImpressions, HeldOutImpressionsBatch
from trainer.data.stream.row_groups import RowGroupReader
from trainer.evaluation.part_writer import part_writer
from trainer.evaluation.ranking.baselines import TrainingRates, count_training
from trainer.evaluation.ranking.judged import MergedCounts, Sums, count_scores, sums_of
from trainer.evaluation.ranking.labels import LabelRules
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import name_of
from trainer.evaluation.ranking.over_ranks import areas_over_ranks, sum_over_ranks
from trainer.evaluation.ranking.slices import BUILT_IN, FEATURE_PREFIX, columns_of
from trainer.evaluation.slice_features import arrow_columns, slice_features, slice_name
from trainer.global_batch.dynamic_ids import DynamicTables


class ScoresImpressions(Protocol):
    """A ranking model."""

    training: bool
    """As of any nn.Module."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the columns of logits."""

    def eval(self) -> object:
        """Switch to evaluation, as of any nn.Module."""

    def train(self, mode: bool) -> object:
        """Switch to training, as of any nn.Module."""

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        """Return the requested rows by table. Collective."""

    def logits(self, rows: dict[str, Tensor], batch: RankingBatch) -> Tensor:
        """Return the logits of M impressions for T labels, (M, T) float32."""


@dataclass(frozen=True)
class RankingEvaluator:
    """One split of one dataset, prepared for any number of evaluations."""

    held_out: HeldOutImpressions
    """The worker's share of the split."""
    rules: LabelRules
    """The labels."""
    world: World
    """The workers."""
    dynamic: DynamicTables
    """The model's id mappings; look-ups use their state at evaluation time."""
    sliced: frozenset[str] = frozenset()
    """Features of users and impressions by which the report has slices: "user.NAME" and "impression.NAME"."""

    def mean_metrics(
        self, model: ScoresImpressions, on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """Return every metric of every label (trainer.evaluation.ranking.metrics), exact; identical on every worker. Collective.

        on_batch: called after each batch with the number of batches done and of all batches.
        """
        tally = Tally(self.rules)
        num_batches = self.held_out.num_batches()
        for number, (held, logits) in enumerate(self.score_all(model), start=1):
            tally.add(held, logits)
            on_batch(number, num_batches)
        return tally.metrics(self.world)[0]

    def score_all(self, model: ScoresImpressions) -> Iterator[tuple[HeldOutImpressionsBatch, np.ndarray]]:
        """Yield each batch of this worker with its logits, (M, T) float32. Collective, because look-ups are."""
        assert tuple(model.labels) == self.rules.labels, "the model has other labels than are evaluated"
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for held in self.held_out.batches():
                batch = replace(held.batch, items=self.dynamic.rows_of(held.batch.items)).to(self.world.device)
                yield held, model.logits(model.look_up(batch.items), batch).float().cpu().numpy()
        model.train(was_training)


class Tally:
    """Sums and counts of the impressions added so far, from which all metrics are computed. Metrics can be asked for once."""

    def __init__(self, rules: LabelRules) -> None:
        self._rules = rules
        self._sums = dict.fromkeys(rules.labels, Sums())
        self._counts = {label: MergedCounts() for label in rules.labels}

    def add(self, held: HeldOutImpressionsBatch, logits: np.ndarray) -> None:
        """Add a batch with its logits, (M, T). All impressions of a user must be in one batch."""
        user, columns = held.batch.history_of.numpy(), label_columns(held)
        for place, label in enumerate(self._rules.labels):
            judged = self._rules.judged(label, user, logits[:, place], columns)
            self._sums[label] += sums_of(judged)
            self._counts[label].add(count_scores(judged))

    def metrics(self, world: World) -> tuple[dict[str, float], dict[str, int]]:
        """Return every metric of every label over all workers, and on how many impressions each label is defined. Collective."""
        labels = self._rules.labels
        metrics: dict[str, float] = {}
        impressions: dict[str, int] = {}
        for label in labels:
            of_all = sum_over_ranks(self._sums[label], world)
            values = metrics_of(of_all, areas_over_ranks(self._counts[label].merged(), world))
            metrics |= {name_of(name, label, labels): value for name, value in values.items()}
            impressions[label] = of_all.impressions
        return metrics, impressions


def make_ranking_evaluator(
    folder: Path,
    manifest: Manifest,
    catalogue: Catalogue,
    split: Split,
    config: EvaluateConfig,
    reach: Reach,
    world: World,
    dynamic: DynamicTables,
    labels: Mapping[str, LabelConfig],
) -> RankingEvaluator:
    """Return an evaluator that scores all impressions of the split.

    Args:
        folder: the dataset.
        manifest: its manifest.
        catalogue: the items and their features.
        split: the split to evaluate.
        config: the settings of evaluation.
        reach: how many events of a history the model uses.
        world: the workers.
        dynamic: the model's id mappings.
        labels: the labels that the model learns, in the order of its logits.
    """
    selection = columns_for(catalogue, users=True)
    assert isinstance(selection.features, frozenset)
    features = slice_features(manifest, config.slices, BUILT_IN, impressions=True)
    sliced = frozenset(slice_name(feature) for feature in features if feature.owner != "item")
    selection = replace(selection, times=True, impressions=True, features=selection.features | sliced)
    reader = RowGroupReader(folder, manifest, selection)
    deal = Deal(reader, config.batch_size, world.rank, world.world_size)
    rules = LabelRules(labels, 1.0 / manifest.labels.get("negative_sampling_rate", 1.0))
    return RankingEvaluator(HeldOutImpressions(deal, catalogue, split, reach), rules, world, dynamic, sliced)


def write_scores(
    evaluator: RankingEvaluator, model: ScoresImpressions, folder: Path, on_batch: Callable[[int, int], None]
) -> None:
    """Score the split by model and baselines, and write rank-<r>.parquet into `folder`: a row per impression. Collective.

    Columns: row_id, place (among the impressions of the row), user, item (id), time, history_length (earlier events that the model
    sees), item_impressions (in training), weight, and by label: label.NAME (0 or 1, NaN where it is not defined), logit.NAME and
    logit.BASELINE.NAME. Logits and labels are float32. For slices: USER_IMPRESSIONS, SINCE_LAST, and features (ranking/slices.py).
    """
    held_out, world = evaluator.held_out, evaluator.world
    rates = count_training(held_out.deal.reader, held_out.catalogue.num_ids, evaluator.rules, world)
    num_batches = held_out.num_batches()
    with part_writer(folder / f"rank-{world.rank}.parquet", world.world_size) as writer:
        for number, (held, logits) in enumerate(evaluator.score_all(model), start=1):
            writer.add(_impression_rows(evaluator, held, logits, rates))
            on_batch(number, num_batches)


def _impression_rows(
    evaluator: RankingEvaluator, held: HeldOutImpressionsBatch, logits: np.ndarray, rates: TrainingRates
) -> pa.Table:
    batch, rules, columns = held.batch, evaluator.rules, label_columns(held)
    history = batch.history_of.numpy()
    row_id, item = held.row_ids[history], batch.candidate_ids.numpy()
    table = {
        "row_id": row_id,
        "place": held.place,
        "user": held.users.take(pa.array(history)),
        "item": item,
        "time": batch.shown_at.numpy(),
        "history_length": np.minimum(batch.history_end.numpy(), evaluator.held_out.reach.attended),
        "item_impressions": rates.item_impressions[item],
        "weight": rules.weights(columns),
        **columns_of(held.train_impressions[history], held.since_last),
        **_feature_columns(evaluator.sliced, held, history),
    }
    for place, label in enumerate(rules.labels):
        positive = rules.positive(label, columns).astype(np.float32)
        table[f"label.{label}"] = np.where(rules.defined(label, columns), positive, np.float32(np.nan))
        table[f"logit.{label}"] = logits[:, place]
        for name, of_baseline in rates.logits(label, item, row_id).items():
            table[f"logit.{name}.{label}"] = of_baseline
    return pa.table(table)


def _feature_columns(sliced: frozenset[str], held: HeldOutImpressionsBatch, history: np.ndarray) -> dict[str, Any]:
    """Return the columns of the sliced features of users and impressions, an entry per impression."""
    users = {name: column for name, column in held.user_features.items() if f"user.{name}" in sliced}
    impressions = {name: column for name, column in held.features.items() if f"impression.{name}" in sliced}
    of_users = arrow_columns(f"{FEATURE_PREFIX}user.", take_all(users, history))
    return of_users | arrow_columns(f"{FEATURE_PREFIX}impression.", impressions)


def label_columns(held: HeldOutImpressionsBatch) -> dict[str, np.ndarray]:
    """Return all labels of the logs, (M,) each."""
    return {name: column.numpy() for name, column in held.batch.labels.items()}
