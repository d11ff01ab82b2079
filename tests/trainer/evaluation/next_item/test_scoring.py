"""Exact ranks and top lists: equal to brute force, whatever the block size, the number of ranks and the number of ties."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sharding.world import World
from trainer.evaluation.next_item import scoring, target_counts
from trainer.evaluation.next_item.scoring import ItemShard, Query, Ranked, rank_items
from trainer.item_search import score_tiles, top_lists

NUM_USERS, NUM_ITEMS, WIDTH, TOP = 11, 23, 3, 6
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Problem:
    """users (Q, D), items (V, D) with item v having id v + 1; seen and targets: ids per user."""

    users: np.ndarray
    items: np.ndarray
    seen: list[list[int]]
    targets: list[list[int]]


def random_problem(seed: int, values: int = 2) -> Problem:
    """Return small whole numbers: sums are exact in any order, and scores are often equal."""
    random = np.random.default_rng(seed)
    users = random.integers(-values, values + 1, (NUM_USERS, WIDTH)).astype(np.float32)
    items = random.integers(-values, values + 1, (NUM_ITEMS, WIDTH)).astype(np.float32)
    seen, targets = [], []
    for _ in range(NUM_USERS):
        shuffled = random.permutation(NUM_ITEMS) + 1
        num_seen, num_targets = int(random.integers(0, 8)), int(random.integers(1, 4))
        seen.append(shuffled[:num_seen].tolist())
        targets.append(shuffled[num_seen : num_seen + num_targets].tolist())
    seen[0].append(targets[0][0])  # a target that was seen before
    targets[1].append(0)  # an unknown item
    seen[2] = [item for item in range(1, NUM_ITEMS + 1) if item not in targets[2][:1]]  # one item is left
    targets[2] = targets[2][:1]
    seen[3].extend([0, seen[3][0] if seen[3] else 0])  # unknown and repeated items of a history
    return Problem(users, items, seen, targets)


def brute_force(problem: Problem, top: int, mask_seen: bool) -> Ranked:
    """Sort everybody's whole catalogue by (-score, id)."""
    ranks, best_items, best_scores = [], [], []
    for user, seen, targets in zip(problem.users, problem.seen, problem.targets, strict=True):
        scores = {v + 1: float(score) for v, score in enumerate(problem.items @ user)}
        left = [v for v in scores if not (mask_seen and v in seen)]
        ordered = sorted(left, key=lambda v: (-scores[v], v))
        ranks += [ordered.index(t) + 1 if t in left else 0 for t in targets]
        listed = ordered[:top]
        best_items.append(listed + [0] * (top - len(listed)))
        best_scores.append([scores[v] for v in listed] + [float("-inf")] * (top - len(listed)))
    return Ranked(np.asarray(ranks), np.asarray(best_items), np.asarray(best_scores))


def packed(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists]))).astype(np.int64)
    return np.asarray([v for values in lists for v in values], dtype=np.int64), offsets


def query_of(problem: Problem, users: slice) -> Query:
    vectors = torch.from_numpy(problem.users[users])
    return Query(vectors, *packed(problem.seen[users]), *packed(problem.targets[users]))


def check_equal(actual: Ranked, expected: Ranked) -> None:
    assert actual.target_ranks.tolist() == expected.target_ranks.tolist()
    assert actual.top_items.tolist() == expected.top_items.tolist()
    assert actual.top_scores.tolist() == expected.top_scores.tolist()


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("block_items", [1, 4, 22, 23, 1000])
@pytest.mark.parametrize("values", [1, 50], ids=["many ties", "few ties"])
def test_one_rank_equals_brute_force(values, block_items, mask_seen):
    for seed in range(4):
        problem = random_problem(seed, values)
        shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
        ranked = rank_items(query_of(problem, slice(None)), shard, TOP, mask_seen, block_items, ALONE)
        check_equal(ranked, brute_force(problem, TOP, mask_seen))


def test_all_scores_equal_are_ordered_by_id():
    problem = Problem(np.zeros((2, 1), np.float32), np.zeros((9, 1), np.float32), [[2], []], [[9, 1], [3]])
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    for block_items in (1, 2, 4, 9):
        ranked = rank_items(query_of(problem, slice(None)), shard, 3, True, block_items, ALONE)
        assert ranked.target_ranks.tolist() == [8, 1, 3]
        assert ranked.top_items.tolist() == [[1, 3, 4], [1, 2, 3]]


def test_more_places_than_items_are_filled_with_nothing():
    problem = random_problem(0)
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    ranked = rank_items(query_of(problem, slice(None)), shard, NUM_ITEMS + 4, True, 5, ALONE)
    check_equal(ranked, brute_force(problem, NUM_ITEMS + 4, True))
    assert (ranked.top_items[:, -4:] == 0).all()


def test_without_top_lists_the_ranks_are_the_same():
    problem = random_problem(1)
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    ranked = rank_items(query_of(problem, slice(None)), shard, 0, True, 5, ALONE)
    assert ranked.target_ranks.tolist() == brute_force(problem, 1, True).target_ranks.tolist()


# Over ranks


def shares(total: int, world_size: int, uneven: bool) -> list[slice]:
    """Return contiguous shares; uneven: the first rank has none, the last what is left."""
    if uneven and world_size > 1:
        return [slice(0, 0), *shares(total, world_size - 1, False)]
    size = -(-total // world_size)
    return [slice(min(rank * size, total), min((rank + 1) * size, total)) for rank in range(world_size)]


def rank_share(world: World, problem: Problem, mask_seen: bool, block_items: int, uneven: bool) -> Ranked:
    users = shares(NUM_USERS, world.world_size, uneven)[world.rank]
    items = shares(NUM_ITEMS, world.world_size, uneven)[world.rank]
    shard = ItemShard(torch.from_numpy(problem.items[items]), first_id=items.start + 1)
    return rank_items(query_of(problem, users), shard, TOP, mask_seen, block_items, world)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("block_items", [3, 1000])
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "a rank without users and items"])
def test_any_number_of_ranks_gives_the_same(rank_pool, world_size, block_items, uneven):
    problem = random_problem(7)
    pieces = rank_pool.run(world_size, rank_share, problem, True, block_items, uneven)
    together = Ranked(
        np.concatenate([p.target_ranks for p in pieces]),
        np.concatenate([p.top_items for p in pieces]),
        np.concatenate([p.top_scores for p in pieces]),
    )
    check_equal(together, brute_force(problem, TOP, True))


def rank_nobody(world: World) -> Ranked:
    nothing = Problem(np.zeros((0, 2), np.float32), np.ones((4, 2), np.float32), [], [])
    shard = ItemShard(torch.from_numpy(nothing.items), first_id=1 + 4 * world.rank)
    return rank_items(query_of(nothing, slice(None)), shard, TOP, True, 16, world)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_batch_without_users_on_any_rank(rank_pool, world_size):
    for ranked in rank_pool.run(world_size, rank_nobody):
        assert ranked.target_ranks.shape == (0,)
        assert ranked.top_items.shape == (0, TOP)


def rank_popularity(world: World, counts: np.ndarray) -> Ranked:
    items = shares(counts.size, world.world_size, False)[world.rank]
    shard = ItemShard(torch.from_numpy(counts[items, None].astype(np.float32)), first_id=items.start + 1)
    seen = [[3], []] if world.is_first else []
    targets = [[5, 1], [2]] if world.is_first else []
    query = Query(torch.ones(len(targets), 1), *packed(seen), *packed(targets))
    return rank_items(query, shard, 4, True, 2, world)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_popularity_is_a_model_of_one_dimension(rank_pool, world_size):
    """Counts 4 7 9 7 0: by popularity 3, 2, 4, 1, 5."""
    ranked = rank_pool.run(world_size, rank_popularity, np.asarray([4, 7, 9, 7, 0]))[0]
    assert ranked.top_items.tolist() == [[2, 4, 1, 5], [3, 2, 4, 1]]
    assert ranked.target_ranks.tolist() == [4, 3, 2]
    assert ranked.top_scores.tolist() == [[7.0, 7.0, 4.0, 0.0], [9.0, 7.0, 7.0, 4.0]]


def test_a_score_that_is_not_a_number_is_never_a_hit():
    """A broken model must not look like a perfect one: early stopping would keep it as the best."""
    query = Query(torch.full((1, 2), float("nan")), *packed([[]]), *packed([[3]]))
    ranked = rank_items(query, ItemShard(torch.ones(5, 2), first_id=1), 2, True, 16, ALONE)
    assert ranked.target_ranks.tolist() != [1]


# Tiles


def large_problem(ascending: bool, values: int) -> Problem:
    """Return more users and items than a small tile has; `ascending`: each item scores higher than those before it.

    values: numbers are multiples of 1 / values, so that sums are exact in any order.
    """
    random = np.random.default_rng(3)
    num_users, num_items = 37, 500
    users = np.abs(random.standard_normal((num_users, 4))) + 0.1
    items = random.standard_normal((num_items, 4))
    users, items = ((np.round(given * values) / values).astype(np.float32) for given in (users, items))
    if ascending:
        items = np.arange(num_items, dtype=np.float32)[:, None] * np.ones(4, np.float32) - num_items // 2
    seen = [(random.permutation(num_items)[:40] + 1).tolist() for _ in range(num_users)]
    targets = [(random.permutation(num_items)[: random.integers(0, 9)] + 1).tolist() for _ in range(num_users)]
    return Problem(users, items, seen, targets)


@pytest.mark.parametrize("ascending", [False, True], ids=["any order", "the best come last"])
@pytest.mark.parametrize("values", [64, 1], ids=["few ties", "many ties"])
@pytest.mark.parametrize("top", [3, 40, 200])
@pytest.mark.parametrize(("tile_users", "tile_scores"), [(8, 8 * 48), (37, 37 * 16), (512, 1 << 20)])
@pytest.mark.parametrize("expected_on", [("cpu",), ()], ids=["expected scores", "bounds"])
def test_tiles_of_any_size_give_the_same(monkeypatch, ascending, values, top, tile_users, tile_scores, expected_on):
    monkeypatch.setattr(score_tiles, "TILE_USERS", tile_users)
    monkeypatch.setattr(score_tiles, "TILE_SCORES", tile_scores)
    monkeypatch.setattr(top_lists, "MIN_SPARE", 4)
    problem = large_problem(ascending, values)
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    monkeypatch.setattr(scoring, "EXPECTED_ON", expected_on)
    passes = count_passes(monkeypatch)
    ranked = rank_items(query_of(problem, slice(None)), shard, top, True, 1000, ALONE)
    check_equal(ranked, brute_force(problem, top, True))
    assert len(passes) == 1


def count_passes(monkeypatch) -> list[score_tiles.ScoreTiles]:
    """Return a list that grows with each pass over the scores."""
    passes: list[score_tiles.ScoreTiles] = []
    of_tiles = score_tiles.ScoreTiles.__iter__
    monkeypatch.setattr(score_tiles.ScoreTiles, "__iter__", lambda tiles: passes.append(tiles) or of_tiles(tiles))
    return passes


@pytest.mark.parametrize(("name", "value"), [("MAX_CLOSE", 3), ("SLACK", -1.0)])
def test_bounds_of_no_use_cost_a_second_pass_and_change_nothing(monkeypatch, name, value):
    """More items between the bounds of targets than are kept, and targets outside of their bounds."""
    monkeypatch.setattr(target_counts, name, value)
    monkeypatch.setattr(scoring, "EXPECTED_ON", ())
    problem = large_problem(False, 1)
    passes = count_passes(monkeypatch)
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    ranked = rank_items(query_of(problem, slice(None)), shard, 3, True, 64, ALONE)
    check_equal(ranked, brute_force(problem, 3, True))
    assert len(passes) == 2


@pytest.mark.parametrize("error", [-0.5, 0.5])
def test_other_scores_than_expected_cost_a_second_pass_and_change_nothing(monkeypatch, error):
    expected = target_counts.expected_scores
    monkeypatch.setattr(scoring, "expected_scores", lambda *given: expected(*given) + error)
    problem = large_problem(False, 1)
    passes = count_passes(monkeypatch)
    shard = ItemShard(torch.from_numpy(problem.items), first_id=1)
    ranked = rank_items(query_of(problem, slice(None)), shard, 3, True, 64, ALONE)
    check_equal(ranked, brute_force(problem, 3, True))
    assert len(passes) == 2


@pytest.mark.parametrize("num_users", [1, 7, 37, 700])
@pytest.mark.parametrize("width", [8, 64, 200])
def test_scores_are_as_expected_on_a_cpu_so_that_one_pass_is_enough(monkeypatch, num_users, width):
    generator = torch.Generator().manual_seed(4)
    users, items = (torch.randn(n, width, generator=generator) for n in (num_users, 3000))
    targets = torch.randint(1, 3001, (num_users,), generator=generator).numpy()
    query = Query(users, *packed([[]] * num_users), targets, np.arange(num_users + 1))
    passes = count_passes(monkeypatch)
    rank_items(query, ItemShard(items, 1), 5, True, 65536, ALONE)
    assert len(passes) == 1


def test_infinite_scores_and_zeros_of_both_signs_are_ordered_by_id():
    inf = float("inf")
    items = np.asarray([[-0.0], [inf], [0.0], [-inf], [inf], [-1.0]], np.float32)
    query = Query(torch.ones(6, 1), *packed([[]] * 6), np.arange(1, 7), np.arange(7))
    ranked = rank_items(query, ItemShard(torch.from_numpy(items), first_id=1), 5, True, 16, ALONE)
    assert ranked.target_ranks.tolist() == [3, 1, 4, 0, 2, 5]
    assert ranked.top_items.tolist() == [[2, 5, 1, 3, 6]] * 6


def test_scores_of_one_precision_are_the_same_in_tiles_of_any_width():
    """Ranks in float32 agree to the last place over block sizes and shards, as products add the same numbers in the same order."""
    generator = torch.Generator().manual_seed(5)
    users, items = (torch.randn(n, 64, generator=generator) for n in (40, 3000))
    nothing, offsets = np.zeros(0, np.int64), np.arange(41)
    query = Query(users, nothing, np.zeros(41, np.int64), np.arange(40) * 70 + 1, offsets)
    ranks = {
        tuple(rank_items(query, ItemShard(items, 1), 0, True, block, ALONE).target_ranks.tolist())
        for block in (64, 1000, 65536)
    }
    assert len(ranks) == 1
