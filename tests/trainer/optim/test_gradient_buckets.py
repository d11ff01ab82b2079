"""Buckets of dense gradients: their layout, their sums, and the time at which these start."""

import gc
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharding.world import ALONE, PendingSum, World
from trainer.optim.gradient_buckets import GradientBuckets, bucket_ranges

WIDTH = 8
LAYERS = 5
LAYER_BYTES = 4 * (WIDTH * WIDTH + WIDTH)
ONE_BUCKET = 1 << 20


def layers() -> nn.ModuleList:
    torch.manual_seed(3)
    return nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))


def loss_of(model: nn.ModuleList, seed: int, without: int | None = None, events: list[str] | None = None) -> Tensor:
    """Return a loss.

    Args:
        model: the layers.
        seed: of the input.
        without: a layer that is left out, so that it has no gradient.
        events: receives a text when the backward pass has left layer 1.
    """
    x = torch.randn((6, WIDTH), generator=torch.Generator().manual_seed(seed)) * (1.0 + seed)
    for number, layer in enumerate(model):
        if number != without:
            x = torch.tanh(layer(x))
        if number == 0 and events is not None:
            x.register_hook(lambda gradient: events.append("layer 0"))
    return x.square().sum()


def gradient_of(model: nn.ModuleList, loss: Tensor) -> Tensor:
    """Return the gradient of all parameters as one vector. Leaves none in the parameters."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


# Layout


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([], 8, []),
        ([3], 8, [range(1)]),
        ([4, 4, 4], 8, [range(1, 3), range(1)]),
        ([4, 4, 4], 100, [range(3)]),
        ([1, 100, 1], 8, [range(2, 3), range(1, 2), range(1)]),
        ([100, 1, 1], 8, [range(1, 3), range(1)]),
        ([1, 1, 100], 8, [range(2, 3), range(2)]),
        ([9], 8, [range(1)]),
    ],
)
def test_buckets_are_filled_from_the_last_parameter(sizes, most, expected):
    assert bucket_ranges(sizes, most) == expected


def test_every_parameter_is_in_one_bucket_of_limited_size():
    random = np.random.default_rng(5)
    for _ in range(200):
        sizes = random.integers(1, 30, size=int(random.integers(0, 20))).tolist()
        most = int(random.integers(1, 60))
        buckets = bucket_ranges(sizes, most)
        assert [n for bucket in reversed(buckets) for n in bucket] == [*range(len(sizes))]
        assert all(len(bucket) == 1 or sum(sizes[n] for n in bucket) <= most for bucket in buckets)


# Sums


@dataclass(frozen=True)
class Sums:
    """The sums of one rank."""

    own: Tensor  # the gradient of this rank
    whole: Tensor  # one sum of the whole vector
    parts: Tensor  # a sum of each bucket after the backward pass
    overlapping: Tensor  # sums that start in the backward pass


def sums_of(world: World, bucket_bytes: int, incomplete_rank: int | None = None) -> Sums:
    """Return the sums of a gradient that differs from rank to rank. On one rank, one layer may have none."""
    model = layers()
    without = 2 if world.rank == incomplete_rank else None
    own = gradient_of(model, loss_of(model, world.rank, without))
    buckets = GradientBuckets(list(model.parameters()), world, bucket_bytes)
    bounds = np.cumsum([0, *(p.numel() for p in model.parameters())]).tolist()
    parts = own.clone()
    for bucket in buckets.buckets:
        world.sum(parts[bounds[bucket.start] : bounds[bucket.stop]])
    with buckets.started_in_backward():
        loss_of(model, world.rank, without).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    return Sums(own, world.sum(own.clone()), parts, buckets.wait().clone())


@pytest.mark.parametrize("incomplete_rank", [None, 1])
@pytest.mark.parametrize("bucket_bytes", [1, LAYER_BYTES, 2 * LAYER_BYTES + 4, ONE_BUCKET])
def test_two_ranks_have_the_bits_of_one_sum(rank_pool, bucket_bytes, incomplete_rank):
    for sums in rank_pool.run(2, sums_of, bucket_bytes, incomplete_rank):
        assert torch.equal(sums.overlapping, sums.whole)
        assert not torch.equal(sums.whole, sums.own)


@pytest.mark.parametrize("world_size", [3, 4])
def test_more_ranks_have_the_bits_of_one_sum_in_one_bucket(rank_pool, world_size):
    for sums in rank_pool.run(world_size, sums_of, ONE_BUCKET, 1):
        assert torch.equal(sums.overlapping, sums.whole)


@pytest.mark.parametrize("incomplete_rank", [None, 1])
@pytest.mark.parametrize("world_size", [3, 4])
def test_only_the_layout_determines_the_rounding(rank_pool, world_size, incomplete_rank):
    """Neither the start in the backward pass nor a rank without some gradients changes a bit."""
    results = rank_pool.run(world_size, sums_of, LAYER_BYTES, incomplete_rank)
    for sums in results:
        assert torch.equal(sums.overlapping, sums.parts)
        assert torch.equal(sums.overlapping, results[0].overlapping)
        torch.testing.assert_close(sums.overlapping, sums.whole, rtol=1e-6, atol=1e-6)


def test_one_rank_has_its_own_gradient():
    model = layers()
    expected = gradient_of(model, loss_of(model, 4))
    buckets = GradientBuckets(list(model.parameters()), ALONE, LAYER_BYTES)
    with buckets.started_in_backward():
        loss_of(model, 4).backward()
    assert torch.equal(buckets.wait(), expected)


def test_a_model_without_dense_weights_has_an_empty_sum():
    buckets = GradientBuckets([], ALONE)
    with buckets.started_in_backward():
        pass
    assert buckets.wait().shape == (0,)
    assert bool(buckets.finite())


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
def test_one_number_that_is_not_finite_is_found_in_every_bucket(layer, broken):
    model = layers()
    buckets = GradientBuckets(list(model.parameters()), FakeWorld(0, 2, torch.device("cpu")), LAYER_BYTES)

    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[1, 3] = broken
        return gradient

    for hook in (None, spoil):
        handle = model[layer].weight.register_hook(hook) if hook is not None else None
        with buckets.started_in_backward():
            loss_of(model, 1).backward()
        buckets.wait()
        assert bool(buckets.finite()) == (hook is None)
        if handle is not None:
            handle.remove()


# Starts


@dataclass(frozen=True)
class FakeWorld(World):
    """Two ranks, of which the other one has zeros. Records the starts of sums by their places in the vector."""

    events: list[str] = field(default_factory=list)

    def start_sum(self, tensor: Tensor) -> PendingSum:
        first = int(tensor.storage_offset())
        self.events.append(f"{first}-{first + tensor.numel()}")
        return PendingSum(tensor)


def starts(bucket_bytes: int, without: int | None = None, events_of_pass: bool = False) -> list[str]:
    """Return the starts of a step in their order, with the time at which the backward pass reaches layer 0."""
    model = layers()
    world = FakeWorld(1, 2, torch.device("cpu"))
    buckets = GradientBuckets(list(model.parameters()), world, bucket_bytes)
    with buckets.started_in_backward():
        loss_of(model, 1, without, world.events if events_of_pass else None).backward()
        if events_of_pass:
            world.events.append("end")
    buckets.wait()
    return world.events


PLACES = ["288-360", "216-288", "144-216", "72-144", "0-72"]  # of the layers, the last one first


def test_sums_start_as_soon_as_their_gradients_are_complete():
    assert starts(LAYER_BYTES, events_of_pass=True) == [*PLACES[:4], "layer 0", PLACES[4], "end"]


def test_sums_start_in_the_same_order_on_a_rank_without_some_gradients():
    """The sums behind the missing gradient start after the backward pass."""
    assert starts(LAYER_BYTES, without=3) == PLACES
    assert starts(LAYER_BYTES, without=3, events_of_pass=True) == [PLACES[0], "layer 0", "end", *PLACES[1:]]


def test_earlier_passes_of_a_step_start_nothing_and_are_part_of_its_sums():
    model = layers()
    world = FakeWorld(0, 2, torch.device("cpu"))
    buckets = GradientBuckets(list(model.parameters()), world, LAYER_BYTES)
    losses = [loss_of(model, seed, without=2 if seed else None) for seed in range(3)]
    expected = sum(gradient_of(model, loss_of(model, seed, 2 if seed else None)) for seed in range(3))
    for loss in losses[:2]:
        loss.backward()
    assert world.events == []
    with buckets.started_in_backward():
        losses[2].backward()
    assert world.events == PLACES
    torch.testing.assert_close(buckets.wait(), expected)


def test_a_second_gradient_in_one_pass_is_refused():
    model = layers()
    buckets = GradientBuckets(list(model.parameters()), FakeWorld(0, 2, torch.device("cpu")), ONE_BUCKET)
    with buckets.started_in_backward():
        model[2](torch.ones(WIDTH)).sum().backward()
        with pytest.raises(AssertionError, match="received a second gradient"):
            model[2](torch.ones(WIDTH)).sum().backward()
    with buckets.started_in_backward():  # the next step is not affected
        loss_of(model, 1).backward()


def test_a_pass_that_fails_starts_no_further_sum():
    model = layers()
    world = FakeWorld(0, 2, torch.device("cpu"))
    buckets = GradientBuckets(list(model.parameters()), world, LAYER_BYTES)
    with pytest.raises(ValueError, match="broken"), buckets.started_in_backward():
        raise ValueError("broken")
    loss_of(model, 1).backward()
    assert world.events == []


def test_buckets_are_freed_while_their_parameters_exist():
    model = layers()
    world = FakeWorld(0, 2, torch.device("cpu"))
    buckets = GradientBuckets(list(model.parameters()), world, LAYER_BYTES)
    freed = weakref.ref(buckets)
    del buckets
    assert freed() is None
    loss_of(model, 1).backward()
    assert world.events == []
    parameter = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert parameter() is None
