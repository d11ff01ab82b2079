"""One worker's part of a request: lists are written as they are computed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from sharding.world import World
from trainer.data.dataset.hashing import whole
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import Column, take_all
from trainer.data.stream.held_out import Deal
from trainer.data.stream.row_groups import RowGroupReader
from trainer.inference.candidates import Candidates
from trainer.inference.encoder import HistoryEncoder
from trainer.inference.ranking import RankedCandidates
from trainer.inference.trained_model import TrainedModel
from trainer.recommend import next_item, ranking
from trainer.recommend.chosen_rows import ChosenRows
from trainer.recommend.folder import PartWriter
from trainer.recommend.request import PartCounts, RecommendRequest
from trainer.storage.parquet import read_parquet

ROWS_OF_POPULAR = 1 << 16  # users without a history that are written at a time

Batches = Iterator[tuple[pa.Table, int, int]]


def write_part(
    trained: TrainedModel, request: RecommendRequest, world: World, on_batch: Callable[[int, int, int], None]
) -> PartCounts:
    """Write this worker's file of recommendations. Collective.

    Args:
        trained: the model, with sharded tables.
        request: what is asked for.
        world: the workers.
        on_batch: called after each batch with the number of batches done, of all batches, and of users so far.
    """
    started = time.monotonic()
    chosen = next_item.Chosen.of(request)
    trained.model.eval()
    counts = PartCounts()
    with torch.no_grad(), PartWriter(request.parts, world.rank) as writer:
        batches, num_batches = _batches(trained, request, chosen, world)
        for number, (rows, owners, popular) in enumerate(batches, start=1):
            writer.write(rows)
            counts = _added(counts, owners, popular, rows.num_rows)
            on_batch(number, num_batches, counts.num_owners)
        if chosen.cold is not None and world.is_first:
            candidates = Candidates.of(trained.num_items, _item_ids(trained, request))
            for start in range(0, len(chosen.cold), ROWS_OF_POPULAR):
                users = chosen.cold.slice(start, ROWS_OF_POPULAR)
                rows = next_item.popular_lists(trained, users, candidates, request.k)
                writer.write(rows)
                counts = _added(counts, len(users), len(users), rows.num_rows)
    return replace(counts, seconds=time.monotonic() - started)


def _batches(
    trained: TrainedModel, request: RecommendRequest, chosen: next_item.Chosen, world: World
) -> tuple[Batches, int]:
    """Return the batches of this worker, and their number, which is the same on every worker."""
    config = trained.job.config.evaluate
    ids = _item_ids(trained, request)
    if trained.manifest.task == "ranking":
        shown = _ranked_candidates(trained, request)
        size = min(config.batch_size, ranking.users_at_a_time(shown.ids.size) * world.world_size)
        deal = _deal(trained, chosen, size, world)
        ranked = ranking.recommended(ranking.RankerLists(trained, request, world), deal.batches(), shown)
        return ranked, deal.num_batches()
    lists = next_item.NextItemLists(trained, request, world, config.score_block_items)
    if request.item_to_item:
        every = Candidates.of(trained.num_items, ids).ids()
        share = -(-every.size // world.world_size)
        step = max(1, config.batch_size // world.world_size)
        return next_item.similar(lists, every, config.batch_size), -(-share // step)
    deal = _deal(trained, chosen, config.batch_size, world)
    candidates = Candidates.of(trained.num_items, ids)
    return next_item.recommended(lists, deal.batches(), candidates), deal.num_batches()


def _deal(trained: TrainedModel, chosen: next_item.Chosen, batch_size: int, world: World) -> Deal | ChosenRows:
    """Return the assignment of users to workers and batches."""
    columns = replace(columns_for(trained.catalogue, users=True), times=True)
    reader = RowGroupReader(trained.job.dataset_dir, trained.manifest, columns)
    if chosen.rows is None:
        return Deal(reader, batch_size, world.rank, world.world_size)
    return ChosenRows(reader, chosen.rows, batch_size, world.rank, world.world_size)


def _item_ids(trained: TrainedModel, request: RecommendRequest) -> np.ndarray | None:
    """Return the ids of the items of a request; None for all."""
    if request.items is None:
        return None
    column = trained.job.config.logs.item
    return trained.item_ids(whole(read_parquet(request.items, columns=[column]).column(column)))


def _ranked_candidates(trained: TrainedModel, request: RecommendRequest) -> RankedCandidates:
    assert request.items is not None
    features: dict[str, Column] = {}
    if trained.catalogue.inputs.candidates:
        _, features = HistoryEncoder(trained).candidates(read_parquet(request.items))
    ids = _item_ids(trained, request)
    assert ids is not None
    order = np.argsort(ids)
    return RankedCandidates(ids[order], take_all(features, order))


def _added(counts: PartCounts, owners: int, popular: int, rows: int) -> PartCounts:
    return PartCounts(counts.num_owners + owners, counts.num_popular + popular, counts.num_rows + rows)
