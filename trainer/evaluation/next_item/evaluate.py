"""Evaluation of a next-item model on held-out histories, by all workers together.

In this file a rank is the number of a worker; the places of targets in ranked lists are target ranks. During training only means
are computed, and summed over workers. As a stage of its own, each worker writes a row per user with the results of the model and of
the baselines, and the driver merges the parts (trainer.evaluation.next_item.results).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.batches.history_batch import FIRST_ITEM
from models.batches.micro_batches import with_cuts
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from sharding.world import World
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_train_events
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.held_out import HeldOut, HeldOutBatch
from trainer.data.stream.row_groups import RowGroupReader
from trainer.evaluation.next_item.baselines.build import Baselines
from trainer.evaluation.next_item.baselines.listed import BaselineRanks
from trainer.evaluation.next_item.candidates import Candidates, candidates_of
from trainer.evaluation.next_item.metrics import user_metrics
from trainer.evaluation.next_item.scoring import ItemShard, Query, Ranked, rank_items
from trainer.evaluation.next_item.slices import BUILT_IN, SINCE_LAST, TRAIN_LENGTH, USER_PREFIX
from trainer.evaluation.part_writer import part_writer
from trainer.evaluation.slice_features import arrow_columns, slice_features
from trainer.global_batch.dynamic_ids import DynamicTables

LOOKUP_CHUNK = 65536  # items looked up at a time
# Events encoded at a time. On a CPU the activations of a layer then stay in its caches.
PIECE_EVENTS = 1 << 14
GPU_PIECE_EVENTS = 1 << 18
NUM_REPEATS = "num_repeats"  # in the metadata of a part: targets that were dropped as repeats


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
    train_events: np.ndarray
    """(at least num_items,) training events of each item, by id from 1 on."""
    candidates: Candidates | None = None
    """The items that are ranked; None: all."""

    def mean_metrics(
        self, model: NextItemModel, on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """Return the metrics of held-out items, over all users of the split; identical on every worker. Collective.

        on_batch: called after each batch with the number of batches done and of all batches.
        """
        totals: dict[str, np.ndarray] = {}
        num_batches = self.held_out.num_batches()
        for batch, ranked in self.rank_all(model, top=0):
            columns = user_metrics(
                batch.targets, ranked.target_ranks, batch.target_offsets, self.config.ks, self.train_events
            )
            if batch.weights is not None:
                columns = {name: values.reweighted(batch.weights) for name, values in columns.items()}
            totals = {name: totals.get(name, 0.0) + np.asarray(values.sums) for name, values in columns.items()}
            on_batch(batch.number, num_batches)
        own = torch.from_numpy(np.stack(list(totals.values()))).to(self.world.device)
        summed = self.world.sum(own).tolist()
        return {name: above / below if below else 0.0 for name, (above, below) in zip(totals, summed, strict=True)}

    def rank_all(self, model: NextItemModel, top: int) -> Iterator[tuple[HeldOutBatch, Ranked]]:
        """Yield each batch of this worker with the ranks of its targets and the `top` best items of its users. Collective."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            shard = self.item_shard(model)
            for held in self.held_out.batches(self._most):
                request = self.dynamic.rows_of(held.batch.items)
                most = PIECE_EVENTS if self.world.device.type == "cpu" else GPU_PIECE_EVENTS
                batch = with_cuts(replace(held.batch, items=request), most).to(self.world.device)
                users = model.user_vectors(model.look_up(batch.items), batch)
                yield held, self._rank(held, users, shard, top)
        model.train(was_training)

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

    def rank_by_popularity(self, held: HeldOutBatch, top: int) -> BaselineRanks:
        """Rank a batch by training events among the candidates: every user has the same one-dimensional vector. Collective.

        Equal counts are ordered by id. Places are exact in float32 up to 16M items.
        """
        first, stop = self._item_range()
        _, place = np.unique(-self.train_events[: self.num_items], return_inverse=True)
        scores = -place[first - FIRST_ITEM : stop - FIRST_ITEM].astype(np.float32)
        shard = ItemShard(torch.from_numpy(scores)[:, None].to(self.world.device), first)
        users = torch.ones((held.row_ids.size, 1), device=self.world.device)
        ranked = self._rank(held, users, shard, top)
        return BaselineRanks(ranked.target_ranks, ranked.top_items)

    def _most(self, number: int) -> int:
        """Return the largest number of all workers. Collective."""
        return max(self.world.gather_ints(number))

    def _item_range(self) -> tuple[int, int]:
        """Return the first id of this worker's share of the items, and the id after its last."""
        share = -(-self.num_items // self.world.world_size)
        first = min(self.world.rank * share, self.num_items)
        return first + FIRST_ITEM, min(first + share, self.num_items) + FIRST_ITEM

    def _rank(self, held: HeldOutBatch, users: torch.Tensor, shard: ItemShard, top: int) -> Ranked:
        moments = None
        if self.candidates is not None:
            first = shard.first_id
            available = self.candidates.available_from[first : first + shard.vectors.shape[0]]
            shard = replace(shard, available_from=torch.from_numpy(available).to(self.world.device))
            moments = self.candidates.moments(held.target_times, held.target_offsets)
        query = Query(users, held.seen, held.seen_offsets, held.targets, held.target_offsets, moments)
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
    """Return an evaluator that ranks all items with a vector: known ones, and with features of items all others too. Collective.

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
    unknown = catalogue.scores_unknown
    candidates = candidates_of(config.candidates, folder, manifest, catalogue.num_ids, unknown, world)
    selection = columns_for(catalogue, users=True)
    assert isinstance(selection.features, frozenset)
    sliced = {
        feature.column for feature in slice_features(manifest, config.slices, BUILT_IN) if feature.owner == "user"
    }
    reader = RowGroupReader(folder, manifest, replace(selection, times=True, features=selection.features | sliced))
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
        config.repeats,
        manifest.split["num_targets"] if manifest.split.get("kind") == "user_holdout" else None,
    )
    train_events = read_train_events(folder, manifest)
    return Evaluator(held_out, config, catalogue.num_ids - 1, world, dynamic, train_events, candidates)


def write_user_rows(
    evaluator: Evaluator,
    model: NextItemModel,
    baselines: Baselines,
    folder: Path,
    on_batch: Callable[[int, int], None],
) -> None:
    """Evaluate the model and baselines, and write rank-<r>.parquet into `folder`: a row per query of this worker. Collective.

    A query is a user, or one target of a user (EvaluateConfig.targets = "each").

    Columns: row_id, user, history_length, targets, ranks (lists), top_items (a list of ids), and for each baseline NAME_ranks and
    NAME_top_items; for slices, TRAIN_LENGTH, SINCE_LAST, and the features of users (next_item/slices.py). The first worker also
    writes notes about the baselines (baselines/notes.py).

    Args:
        evaluator: the split.
        model: the model.
        baselines: the baselines.
        folder: where to write.
        on_batch: called after each batch with the number of batches done and of all batches.
    """
    top = max(evaluator.config.ks)
    num_batches = evaluator.held_out.num_batches()
    started = time.perf_counter()
    num_repeats = 0
    world = evaluator.world
    with part_writer(folder / f"rank-{world.rank}.parquet", world.world_size) as writer:
        for held, ranked in evaluator.rank_all(model, top):
            if evaluator.candidates is None:
                of_baselines = dict(baselines.rank_all(held, evaluator.config.mask_seen, top))
            else:  # popularity alone, and all workers together
                of_baselines = {one.name: evaluator.rank_by_popularity(held, top) for one in baselines.used}
            writer.add(_user_rows(held, ranked, of_baselines))
            num_repeats += held.num_repeats
            on_batch(held.number, num_batches)
        writer.note(NUM_REPEATS, str(num_repeats))
    if evaluator.world.is_first:
        baselines.notes(time.perf_counter() - started).write(folder)


def _user_rows(held: HeldOutBatch, ranked: Ranked, baselines: dict[str, BaselineRanks]) -> pa.Table:
    offsets = pa.array(held.target_offsets.astype(np.int32))
    columns = {
        "row_id": held.row_ids,
        "user": held.users,
        "history_length": held.history_lengths,
        "targets": pa.ListArray.from_arrays(offsets, pa.array(held.targets)),
        "ranks": pa.ListArray.from_arrays(offsets, pa.array(ranked.target_ranks)),
        "top_items": _lists(ranked.top_items),
        **_slice_columns(held),
    }
    for name, of_baseline in baselines.items():
        columns[f"{name}_ranks"] = pa.ListArray.from_arrays(offsets, pa.array(of_baseline.target_ranks))
        columns[f"{name}_top_items"] = _lists(of_baseline.top_items.astype(np.int32))
    return pa.table(columns)


def _slice_columns(held: HeldOutBatch) -> dict[str, Any]:
    """Return the columns that only slices need."""
    columns = arrow_columns(f"{USER_PREFIX}user.", held.user_features) | {TRAIN_LENGTH: held.train_lengths}
    if held.target_times is not None and held.last_times is not None:
        columns[SINCE_LAST] = held.target_times[held.target_offsets[:-1]] - held.last_times
    return columns


def _lists(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1).astype(np.int32)), matrix.shape[1])
