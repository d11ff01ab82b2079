"""Evaluation of a ranking model on held-out impressions, by all workers together.

During training only metrics are computed: sums are added over workers, and for pairs each worker counts one range of scores. So no
worker needs memory for all impressions. As a stage of its own, each worker writes a row per impression with the scores of the model
and of the baselines, and the driver merges the parts (trainer.evaluation.ranking.results).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
from trainer.evaluation.ranking.baselines import TrainingRates, count_training
from trainer.evaluation.ranking.judged import (
    Areas,
    ScoreCounts,
    Sums,
    count_scores,
    mean_precision,
    merge_counts,
    pairs_in_order,
    precision_sum,
    share_of_pairs,
    sums_of,
)
from trainer.evaluation.ranking.labels import LabelRules
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import name_of
from trainer.evaluation.ranking.slices import BUILT_IN, FEATURE_PREFIX, columns_of
from trainer.evaluation.slice_features import arrow_columns, slice_features, slice_name
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.storage.parquet import parquet_writer

_WRITE_ROWS = 1 << 17  # impressions written at a time
_SAMPLE = 256  # scores of each worker that determine the ranges
_NO_SCORES = ScoreCounts(*np.zeros((3, 0)))
_LIMB = 1 << 31  # sums over workers are sent in two halves, so that they always fit into int64


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
    """Sums and counts of the impressions added so far, from which all metrics are computed."""

    def __init__(self, rules: LabelRules) -> None:
        self._rules = rules
        self._sums = dict.fromkeys(rules.labels, Sums())
        self._counts: dict[str, list[ScoreCounts]] = {label: [] for label in rules.labels}

    def add(self, held: HeldOutImpressionsBatch, logits: np.ndarray) -> None:
        """Add a batch with its logits, (M, T). All impressions of a user must be in one batch."""
        user, columns = held.batch.history_of.numpy(), label_columns(held)
        for place, label in enumerate(self._rules.labels):
            judged = self._rules.judged(label, user, logits[:, place], columns)
            self._sums[label] += sums_of(judged)
            self._counts[label].append(count_scores(judged))

    def metrics(self, world: World) -> tuple[dict[str, float], dict[str, int]]:
        """Return every metric of every label over all workers, and on how many impressions each label is defined. Collective."""
        labels = self._rules.labels
        metrics: dict[str, float] = {}
        impressions: dict[str, int] = {}
        for label in labels:
            of_all = sum_over_ranks(self._sums[label], world)
            values = metrics_of(of_all, areas_over_ranks(merge_counts(self._counts[label] or [_NO_SCORES]), world))
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


def sum_over_ranks(sums: Sums, world: World) -> Sums:
    """Return the exact sum over workers. Collective."""
    return Sums(*_sum_exactly([getattr(sums, entry.name) for entry in fields(Sums)], world))


def _sum_exactly(values: list[int], world: World) -> list[int]:
    """Return the sums over workers. Collective."""
    halves = torch.tensor([divmod(value, _LIMB) for value in values], dtype=torch.int64, device=world.device)
    return [high * _LIMB + low for high, low in world.sum(halves).tolist()]


def areas_over_ranks(counts: ScoreCounts, world: World) -> Areas:
    """Return the areas under the curves of the impressions of all workers. Collective.

    The workers determine ranges of scores from a sample. Each receives the impressions of its range, counts the pairs with
    a positive among them, and sums the precisions at these positives.
    """
    if world.world_size > 1:
        counts = _exchanged(counts, world)
    own = torch.tensor([[counts.positives.sum(), counts.negatives.sum()]], dtype=torch.float64, device=world.device)
    totals = torch.cat(world.gather(own)).cpu().numpy()
    pairs = pairs_in_order(counts, float(totals[: world.rank, 1].sum()))
    in_order = world.sum(torch.tensor([pairs], dtype=torch.float64, device=world.device)).item()
    positives, negatives = totals.sum(axis=0).tolist()
    positives_above, negatives_above = totals[world.rank + 1 :].sum(axis=0).tolist()
    (precisions,) = _sum_exactly([precision_sum(counts, positives_above, negatives_above)], world)
    return Areas(share_of_pairs(in_order, positives * negatives), mean_precision(precisions, positives))


def _exchanged(counts: ScoreCounts, world: World) -> ScoreCounts:
    """Return the counts of all workers in this worker's range of scores. Equal scores are always in one range."""
    size = counts.scores.size
    sample = counts.scores[np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64)]
    samples = torch.cat(world.gather(torch.from_numpy(sample).to(world.device))).cpu().numpy()
    if samples.size == 0:
        return counts
    bounds = np.sort(samples)[np.arange(1, world.world_size) * samples.size // world.world_size]
    cuts = np.concatenate(([0], np.searchsorted(counts.scores, bounds), [size])).astype(np.int64)
    sent = torch.from_numpy(np.diff(cuts)).to(world.device)
    received = torch.stack(world.gather(sent))[:, world.rank].tolist()
    columns = np.stack((counts.scores, counts.positives, counts.negatives), axis=1)
    leaving = torch.from_numpy(columns.reshape(-1)).to(world.device)
    arriving = world.exchange(leaving, [3 * n for n in sent.tolist()], [3 * n for n in received])
    scores, positives, negatives = arriving.cpu().numpy().reshape(-1, 3).T
    return merge_counts([ScoreCounts(scores, positives, negatives)])


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
    folder.mkdir(parents=True, exist_ok=True)
    path, num_batches = folder / f"rank-{world.rank}.parquet", held_out.num_batches()
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    for number, (held, logits) in enumerate(evaluator.score_all(model), start=1):
        waiting.append(_impression_rows(evaluator, held, logits, rates))
        if sum(table.num_rows for table in waiting) >= _WRITE_ROWS or number == num_batches:
            table = pa.concat_tables(waiting)
            writer = writer or parquet_writer(path, table.schema)
            writer.write_table(table)
            waiting = []
        on_batch(number, num_batches)
    assert writer is not None, "a dataset has at least one row"
    writer.close()


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
