"""Probabilities over many tiles of items, on one worker and with the items on two."""

import numpy as np
import pytest
import torch

from sharding.world import World
from tests.support.rank_pool import RankPool
from trainer.evaluation.next_item.scoring import Query
from trainer.explanation.faithfulness import scoring
from trainer.explanation.faithfulness.scoring import probabilities_of
from trainer.item_search.score_tiles import ItemShard

NUM_USERS, NUM_ITEMS, WIDTH = 6, 50, 4
Part = tuple[slice, slice]


def world_of_one() -> World:
    return World(0, 1, torch.device("cpu"))


def inputs() -> tuple[torch.Tensor, torch.Tensor, list[list[int]], np.ndarray]:
    """Return vectors of users and items, the seen items of each user, and the targets."""
    generator = torch.Generator().manual_seed(4)
    users, items = (torch.randn(rows, WIDTH, generator=generator) * 3 for rows in (NUM_USERS, NUM_ITEMS))
    seen = [[1 + (7 * user + step) % NUM_ITEMS for step in range(user)] for user in range(NUM_USERS)]
    return users, items, seen, np.asarray([50, 49, 48, 1, 2, 3])


def expected() -> np.ndarray:
    users, items, seen, targets = inputs()
    scores = (users @ items.T).double()
    for user, ids in enumerate(seen):
        scores[user, [id_ - 1 for id_ in ids]] = -torch.inf
    return torch.softmax(scores, dim=1)[torch.arange(NUM_USERS), torch.from_numpy(targets - 1)].numpy()


def query_of(rows: slice) -> Query:
    users, _, seen, targets = inputs()
    part = seen[rows]
    offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in part]))).astype(np.int64)
    flat = np.asarray([id_ for ids in part for id_ in ids], np.int64)
    number = targets[rows].size
    return Query(users[rows], flat, offsets, targets[rows], np.arange(number + 1))


def on_rank(world: World, parts: list[Part]) -> np.ndarray:
    """Return the probabilities of a worker's users. Collective."""
    rows, ids = parts[world.rank]
    shard = ItemShard(inputs()[1][ids], ids.start + 1)
    return probabilities_of(query_of(rows), shard, world)


def test_probabilities_are_a_softmax_over_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ITEMS", 16)
    shard = ItemShard(inputs()[1], 1)
    actual = probabilities_of(query_of(slice(0, NUM_USERS)), shard, world_of_one())
    np.testing.assert_allclose(actual, expected(), rtol=1e-5)


def test_probabilities_are_the_same_on_two_ranks(rank_pool: RankPool) -> None:
    parts: list[Part] = [(slice(0, 2), slice(0, 30)), (slice(2, NUM_USERS), slice(30, NUM_ITEMS))]
    np.testing.assert_allclose(np.concatenate(rank_pool.run(2, on_rank, parts)), expected(), rtol=1e-5)
