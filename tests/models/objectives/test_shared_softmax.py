"""Softmax over a catalogue that ranks divide: in value and gradients it is the softmax over the whole one."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.batches.catalogue_share import CatalogueShare
from models.objectives import chunked_scores, shared_softmax
from models.objectives.shared_softmax import shared_softmax_cross_entropy
from models.objectives.softmax import softmax_cross_entropy_reference
from sharding.world import World
from tests.models.objectives.largest_tensor import largest_tensor
from trainer.global_batch.catalogue_groups import share_of

CASES = [(1.0, 0.0), (0.07, 0.1), (3.0, 0.9)]


@dataclass(frozen=True)
class Problem:
    """Targets of all ranks, and the items."""

    users: tuple[Tensor, ...]  # by rank
    targets: tuple[Tensor, ...]  # item ids, from 1
    items: Tensor


def problem_of(counts: list[int], num_items: int) -> Problem:
    generator = torch.Generator().manual_seed(sum(counts))
    users = tuple(torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in counts)
    targets = tuple(torch.randint(1, num_items + 1, (count,), generator=generator) for count in counts)
    return Problem(users, targets, torch.randn(num_items, 5, generator=generator, dtype=torch.float64))


def on_a_rank(
    world: World, problem: Problem, temperature: float, smoothing: float, tile: tuple[int, int] = (512, 2048)
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of this rank, and the gradients of its users and of its items, times a factor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_softmax, "TILE_ROWS", tile[0])
        patch.setattr(chunked_scores, "CHUNK_ELEMENTS", tile[0] * tile[1])
        return loss_and_gradients(world, problem, temperature, smoothing)


def loss_and_gradients(
    world: World, problem: Problem, temperature: float, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    counts = tuple(len(targets) for targets in problem.targets)
    first, stop = share_of(world.rank, world.world_size, len(problem.items) + 1)
    user_TD = problem.users[world.rank].clone().requires_grad_()
    item_KD = problem.items[first - 1 : stop - 1].clone().requires_grad_()
    share = CatalogueShare(first, stop, 0, (counts,), world)
    targets = problem.targets[world.rank]
    loss = shared_softmax_cross_entropy(user_TD, item_KD, targets, share, len(problem.items), temperature, smoothing)
    (loss * 0.3).backward()
    assert user_TD.grad is not None
    assert item_KD.grad is not None
    return loss.detach(), user_TD.grad, item_KD.grad


def expected_of(problem: Problem, temperature: float, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    user_SD = torch.cat(problem.users).requires_grad_()
    item_CD = problem.items.clone().requires_grad_()
    target_S = torch.cat(problem.targets) - 1
    loss = softmax_cross_entropy_reference(user_SD, item_CD, target_S, temperature, smoothing)
    (loss * 0.3).backward()
    assert user_SD.grad is not None
    assert item_CD.grad is not None
    return loss.detach(), user_SD.grad, item_CD.grad


@pytest.mark.parametrize(("temperature", "smoothing"), CASES)
@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (5, 4), (512, 2048)])
@pytest.mark.parametrize(
    ("counts", "num_items"), [([13], 11), ([7, 4], 11), ([5, 0, 9], 10), ([2, 3, 1, 6], 3)], ids=str
)
def test_ranks_add_up_to_the_softmax_over_all_items(rank_pool, counts, num_items, tile, temperature, smoothing):
    """Also where a rank has no targets, and where there are fewer items than ranks."""
    problem = problem_of(counts, num_items)
    of_ranks = rank_pool.run(len(counts), on_a_rank, problem, temperature, smoothing, tile)
    expected = expected_of(problem, temperature, smoothing)
    losses, users, items = zip(*of_ranks, strict=True)
    for ours, plain in zip((torch.stack(losses).sum(), torch.cat(users), torch.cat(items)), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_large_scores_overflow_nowhere(rank_pool):
    problem = problem_of([6, 5], 9)
    problem = Problem(problem.users, problem.targets, problem.items * 1e3)
    of_ranks = rank_pool.run(2, on_a_rank, problem, 0.5, 0.0, (2, 3))
    expected = expected_of(problem, 0.5, 0.0)
    torch.testing.assert_close(sum(loss for loss, _, _ in of_ranks), expected[0], rtol=1e-11, atol=0.0)
    assert all(part.isfinite().all() for parts in of_ranks for part in parts)


def test_no_tensor_holds_the_scores(monkeypatch):
    monkeypatch.setattr(shared_softmax, "TILE_ROWS", 16)
    monkeypatch.setattr(chunked_scores, "CHUNK_ELEMENTS", 16 * 32)
    problem = problem_of([64], 500)
    world = World(0, 1, torch.device("cpu"))
    share = CatalogueShare(1, 501, 0, ((64,),), world)

    def run() -> None:
        shared_softmax_cross_entropy(problem.users[0], problem.items, problem.targets[0], share, 500, 1.0)

    assert largest_tensor(run) <= 500 * 5


@pytest.mark.parametrize("num_items", [0, 1, 5, 1000])
@pytest.mark.parametrize("num_ranks", [1, 3, 1024])
def test_shares_hold_every_item_once_and_are_equal(num_items, num_ranks):
    shares = [share_of(rank, num_ranks, num_items + 1) for rank in range(num_ranks)]
    assert shares[0][0] == 1
    assert shares[-1][1] == num_items + 1
    assert all(stop == first for (_, stop), (first, _) in pairwise(shares))
    sizes = {stop - first for first, stop in shares}
    assert max(sizes) - min(sizes) <= 1
