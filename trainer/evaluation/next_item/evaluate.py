"""Evaluation of a next-item model on held-out histories, by all workers together.

In this file a rank is the number of a worker; the places of targets in ranked lists are target ranks. During training only means
are computed, and summed over workers. As a stage of its own, each worker writes a row per user with the results of the model and of
the popularity baseline, and the driver merges the parts (trainer.evaluation.next_item.results).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.batches.history_batch import FIRST_ITEM
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from sharding.world import World
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import Vocabulary
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.held_out import HeldOut, HeldOutBatch
from trainer.data.stream.row_groups import RowGroupReader
from trainer.evaluation.next_item.metrics import user_metrics
from trainer.evaluation.next_item.scoring import ItemShard, Query, Ranked, rank_items
from trainer.global_batch.dynamic_ids import DynamicTables

LOOKUP_CHUNK = 65536  # items looked up at a time


@dataclass(frozen=True)
class Evaluator:
    """One split of one dataset, prepared for any number of evaluations."""

    held_out: HeldOut
    """The worker's share of the split."""
    config: EvaluateConfig
    """The settings of evaluation."""
    num_items: int
    """The number of candidates."""
    world: World
    """The workers."""
    dynamic: DynamicTables
    """The model's id mappings; look-ups use their state at evaluation time."""

    def mean_metrics(
        self, model: NextItemModel, on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """Return the metrics that are means over users, over all users of the split; identical on every worker. Collective.

        on_batch: called after each batch with the number of batches done and of all batches.
        """
        totals: dict[str, float] = {}
        num_users = 0
        num_batches = self.held_out.num_batches()
        for number, (batch, ranked) in enumerate(self.rank_all(model, top=0), start=1):
            columns = user_metrics(batch.targets, ranked.target_ranks, batch.target_offsets, self.config.ks)
            num_users += batch.row_ids.size
            totals = {name: totals.get(name, 0.0) + float(values.sum()) for name, values in columns.items()}
            on_batch(number, num_batches)
        names = list(totals)
        values = torch.tensor([float(num_users), *totals.values()], dtype=torch.float64, device=self.world.device)
        summed = self.world.sum(values).tolist()
        return {name: value / max(1.0, summed[0]) for name, value in zip(names, summed[1:], strict=True)}

    def rank_all(self, model: NextItemModel, top: int) -> Iterator[tuple[HeldOutBatch, Ranked]]:
        """Yield each batch of this worker with the ranks of its targets and the `top` best items of its users. Collective."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            shard = self.item_shard(model)
            for held in self.held_out.batches():
                request = self.dynamic.rows_of(held.batch.items)
                batch = replace(held.batch, items=request).to(self.world.device)
                users = model.user_vectors(model.look_up(batch.items), batch)
                yield held, self._rank(held, users, shard, top)
        model.train(was_training)

    def rank_by_popularity(self, shard: ItemShard, held: HeldOutBatch, top: int) -> Ranked:
        """Rank a batch by popularity: every user has the same one-dimensional vector."""
        users = torch.ones((held.row_ids.size, 1), device=self.world.device)
        return self._rank(held, users, shard, top)

    def item_shard(self, model: NextItemModel) -> ItemShard:
        """Return this worker's share of the items with their vectors. Collective: every worker looks up equally often."""
        first, stop = self._item_range()
        largest = -(-self.num_items // self.world.world_size)
        pieces = []
        for start in range(0, largest, LOOKUP_CHUNK):
            low, high = min(first + start, stop), min(first + start + LOOKUP_CHUNK, stop)
            request = self.dynamic.rows_of(self.held_out.catalogue.request(np.arange(low, high)))
            request = request.to(self.world.device)
            pieces.append(model.item_vectors(model.look_up(request), request))
        return ItemShard(torch.cat(pieces), first)

    def popularity_shard(self, train_events: np.ndarray) -> ItemShard:
        """Return scores that order items by their training events, equal counts by id; exact in float32 up to 16M items."""
        first, stop = self._item_range()
        _, place = np.unique(-train_events, return_inverse=True)
        scores = -place[first - FIRST_ITEM : stop - FIRST_ITEM].astype(np.float32)
        return ItemShard(torch.from_numpy(scores)[:, None].to(self.world.device), first)

    def _item_range(self) -> tuple[int, int]:
        """Return the first id of this worker's share of the items, and the id after its last."""
        share = -(-self.num_items // self.world.world_size)
        first = min(self.world.rank * share, self.num_items)
        return first + FIRST_ITEM, min(first + share, self.num_items) + FIRST_ITEM

    def _rank(self, held: HeldOutBatch, users: torch.Tensor, shard: ItemShard, top: int) -> Ranked:
        query = Query(users, held.seen, held.seen_offsets, held.targets, held.target_offsets)
        return rank_items(query, shard, top, self.config.mask_seen, self.config.score_block_items, self.world)


def make_evaluator(
    folder: Path,
    manifest: Manifest,
    catalogue: Catalogue,
    split: Split,
    config: EvaluateConfig,
    max_history: int,
    world: World,
    dynamic: DynamicTables,
    masks_items: bool = False,
) -> Evaluator:
    """Return an evaluator that ranks all items with a vector: known ones, and with features of items all others too.

    Args:
        folder: the dataset.
        manifest: its manifest.
        catalogue: the items and their features.
        split: the split to evaluate.
        config: the settings of evaluation.
        max_history: the number of most recent events that the model sees.
        world: the workers.
        dynamic: the model's id mappings; look-ups use their state at evaluation time.
        masks_items: whether the model restores masked events, see NextItemConfig.
    """
    reader = RowGroupReader(folder, manifest, columns_for(catalogue, users=True))
    held_out = HeldOut(
        reader,
        catalogue,
        split,
        config.targets,
        max_history,
        config.batch_size,
        world.rank,
        world.world_size,
        masks_items,
    )
    return Evaluator(held_out, config, catalogue.num_ids - 1, world, dynamic)


def write_user_rows(
    evaluator: Evaluator,
    model: NextItemModel,
    vocabulary: Vocabulary,
    folder: Path,
    on_batch: Callable[[int, int], None],
) -> None:
    """Evaluate the model and popularity, and write rank-<r>.parquet into `folder`: a row per user of this worker. Collective.

    Columns: row_id, user, history_length, targets, ranks, popularity_ranks (lists), top_items, popularity_top_items (lists of ids).

    Args:
        evaluator: the split.
        model: the model.
        vocabulary: the items, with the training events that popularity counts.
        folder: where to write.
        on_batch: called after each batch with the number of batches done and of all batches.
    """
    top = max(evaluator.config.ks)
    popularity = evaluator.popularity_shard(vocabulary.train_events)
    num_batches = evaluator.held_out.num_batches()
    tables = []
    for number, (held, ranked) in enumerate(evaluator.rank_all(model, top), start=1):
        baseline = evaluator.rank_by_popularity(popularity, held, top)
        tables.append(_user_rows(held, ranked, baseline))
        on_batch(number, num_batches)
    folder.mkdir(parents=True, exist_ok=True)
    # Types differ only where a worker had empty batches (a null user column): unify by promotion.
    pq.write_table(
        pa.concat_tables(tables, promote_options="permissive"), folder / f"rank-{evaluator.world.rank}.parquet"
    )


def _user_rows(held: HeldOutBatch, ranked: Ranked, baseline: Ranked) -> pa.Table:
    offsets = pa.array(held.target_offsets.astype(np.int32))
    return pa.table(
        {
            "row_id": held.row_ids,
            "user": held.users,
            "history_length": held.history_lengths,
            "targets": pa.ListArray.from_arrays(offsets, pa.array(held.targets)),
            "ranks": pa.ListArray.from_arrays(offsets, pa.array(ranked.target_ranks)),
            "popularity_ranks": pa.ListArray.from_arrays(offsets, pa.array(baseline.target_ranks)),
            "top_items": _lists(ranked.top_items),
            "popularity_top_items": _lists(baseline.top_items),
        }
    )


def _lists(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
