"""Lists of a next-item model by all workers: items for users, and similar items. Items are sharded over workers, as in evaluation.

No worker holds all item vectors, or the histories of more users than a batch. All workers look up and rank equally often.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.batches.history_batch import FIRST_ITEM
from models.features.request import ItemRequest
from sharding.world import World
from trainer.data.dataset.hashing import whole
from trainer.data.stream.held_out import query_batch
from trainer.evaluation.next_item.scoring import ItemShard, Query, Ranked, rank_items
from trainer.inference.candidates import Candidates
from trainer.inference.lists import COLUMNS, SIMILAR_COLUMNS, list_table
from trainer.inference.moments import latest_time
from trainer.inference.next_item import NOTHING, Recommendations, with_popular
from trainer.inference.requests import Histories
from trainer.inference.stored import histories_in
from trainer.inference.trained_model import TrainedModel
from trainer.recommend.chosen_rows import RowBatches
from trainer.recommend.request import RecommendRequest
from trainer.storage.parquet import read_parquet

LOOKUP_CHUNK = 65_536  # items looked up at a time


@dataclass(frozen=True)
class Chosen:
    """The users to recommend to, of the rows of a dataset."""

    rows: np.ndarray | None
    """(n,) rows of the dataset, ascending; None: all."""
    cold: pa.Array | None = None
    """Users without a history."""

    @classmethod
    def of(cls, request: RecommendRequest) -> "Chosen":
        """Read the users of a request."""
        if request.users is None:
            return cls(None)
        table = read_parquet(request.users)
        rows = table.column("row").to_numpy()
        return cls(np.sort(rows[rows >= 0]), whole(table.column("user")).filter(pa.array(rows < 0)))


@dataclass(frozen=True)
class NextItemLists:
    """Recommendations of a next-item model on this worker."""

    trained: TrainedModel
    """The model, with sharded tables."""
    request: RecommendRequest
    """What is asked for."""
    world: World
    """The workers."""
    block_items: int
    """Items that are scored at a time."""

    def look_up(self, request: ItemRequest) -> tuple[dict[str, Tensor], ItemRequest]:
        """Return the rows of a request, and the request on the device of this worker. Collective."""
        moved = self.trained.dynamic.rows_of(request).to(self.world.device)
        rows: dict[str, Tensor] = self.trained.model.look_up(moved)
        return rows, moved

    def item_shard(self, candidates: Candidates) -> ItemShard:
        """Return this worker's share of the candidates, numbered from 1 on. Collective."""
        share = -(-candidates.size // self.world.world_size)
        first = min(self.world.rank * share, candidates.size)
        stop = min(first + share, candidates.size)
        pieces = [self.item_vectors(candidates.ids(first, first))]
        for start in range(0, share, LOOKUP_CHUNK):
            low, high = min(first + start, stop), min(first + start + LOOKUP_CHUNK, stop)
            pieces.append(self.item_vectors(candidates.ids(low, high)))
        return ItemShard(torch.cat(pieces), first + FIRST_ITEM)

    def item_vectors(self, ids: np.ndarray) -> Tensor:
        """Return the vectors of items, (n, D). Collective."""
        rows, request = self.look_up(self.trained.catalogue.request(ids))
        vectors: Tensor = self.trained.model.item_vectors(rows, request)
        return vectors

    def user_vectors(self, histories: Histories) -> Tensor:
        """Return the vector of each history, (B, D); zeros of an empty one. Collective."""
        trained = self.trained
        config: Any = trained.model.config
        rows = np.flatnonzero(histories.lengths)
        numbers = np.arange(histories.lengths.size)
        lengths = histories.lengths[rows]
        batch = query_batch(
            histories.packed, numbers, rows, lengths, trained.catalogue, config.max_history, config.masks_items
        )
        looked_up, moved = self.look_up(batch.items)
        batch = replace(batch, items=moved).to(self.world.device)
        vectors = torch.zeros((numbers.size, trained.model.width), device=self.world.device)
        vectors[torch.from_numpy(rows).to(self.world.device)] = trained.model.user_vectors(looked_up, batch)
        return vectors

    def rank(
        self, users: Tensor, seen: np.ndarray, offsets: np.ndarray, shard: ItemShard, size: int, mask: bool
    ) -> Ranked:
        """Return the best of `size` candidates for each vector. Collective."""
        query = Query(users, seen, offsets, NOTHING, np.zeros(offsets.size, np.int64))
        return rank_items(query, shard, min(self.request.k, size), mask, self.block_items, self.world)


def recommended(
    lists: NextItemLists, batches: RowBatches, candidates: Candidates
) -> Iterator[tuple[pa.Table, int, int]]:
    """Yield for each batch of this worker its lists as rows, the number of users, and of those with popular items. Collective."""
    trained, request = lists.trained, lists.request
    popular = candidates.most_popular(trained.train_events, request.k)
    latest = latest_time(trained.manifest)
    shard = lists.item_shard(candidates)
    for packed, _, rows in batches:
        assert packed.users is not None
        at = None if request.at is None else np.full(rows.size, request.at, np.int64)
        given = histories_in(packed, rows, packed.users.take(pa.array(rows)), at, latest)
        seen, offsets = given.seen()
        ranked = lists.rank(
            lists.user_vectors(given),
            candidates.numbers_of(seen),
            offsets,
            shard,
            candidates.size,
            request.filter_viewed,
        )
        cold = given.lengths == 0
        best = Recommendations(candidates.ids_of(ranked.top_items), ranked.top_scores)
        best = with_popular(best, cold, popular)
        table = list_table(COLUMNS, given.users, best.items, best.scores, trained.item_values)
        yield table, rows.size, int(cold.sum())


def popular_lists(trained: TrainedModel, users: pa.Array, candidates: Candidates, k: int) -> pa.Table:
    """Return the lists of users without a history: the most popular items, with scores of null."""
    popular = candidates.most_popular(trained.train_events, k)
    ids = np.broadcast_to(popular, (len(users), popular.size))
    return list_table(COLUMNS, users, ids, np.full(ids.shape, np.nan), trained.item_values)


def similar(lists: NextItemLists, ids: np.ndarray, batch_size: int) -> Iterator[tuple[pa.Table, int, int]]:
    """Yield for each batch of this worker's share of items `ids` (ascending) the most similar items by cosine. Collective."""
    trained, world = lists.trained, lists.world
    every = Candidates(trained.num_items)
    shard = lists.item_shard(every)
    shard = replace(shard, vectors=torch.nn.functional.normalize(shard.vectors, dim=1))
    share = -(-ids.size // world.world_size)
    own = ids[world.rank * share : (world.rank + 1) * share]
    step = max(1, batch_size // world.world_size)
    for start in range(0, share, step):
        part = own[start : start + step]
        vectors = torch.nn.functional.normalize(lists.item_vectors(part), dim=1)
        ranked = lists.rank(vectors, part, np.arange(part.size + 1), shard, every.size, True)
        owners = trained.item_values.take(pa.array(part - FIRST_ITEM))
        yield (
            list_table(SIMILAR_COLUMNS, owners, ranked.top_items, ranked.top_scores, trained.item_values),
            part.size,
            0,
        )
