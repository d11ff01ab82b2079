"""Moving statistics: outputs that depend on earlier batches only, and sums that do not depend on how a batch is cut."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers.running_statistics import RunningStatistics, forget, sums_of, update

WIDTH = 3


def data(rows: int, seed: int) -> Tensor:
    return 5.0 + 2.0 * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def step(module: nn.Module, *pieces: Tensor) -> None:
    for piece in pieces:
        module(piece)
    update(module, sums_of(module))


def test_output_is_standardised_by_the_batches_before():
    module, first, second = RunningStatistics(WIDTH), data(50, 1), data(40, 2)
    assert torch.equal(module(first), first * (1 + 1e-8) ** -0.5)  # mean 0 and variance 1 until anything is known
    update(module, sums_of(module))
    expected = (second - first.mean(dim=0)) / first.var(dim=0, unbiased=False).sqrt()
    torch.testing.assert_close(module(second), expected)
    update(module, sums_of(module))
    torch.testing.assert_close(module.mean, (first.mean(dim=0) + second.mean(dim=0)) / 2)


def test_averages_end_as_exponential_ones():
    module, decay = RunningStatistics(WIDTH, decay=0.75), 0.75
    batches = [data(20, seed) for seed in range(12)]
    mean, variance = torch.zeros(WIDTH), torch.zeros(WIDTH)
    for number, batch in enumerate(batches):
        step(module, batch)
        weight = max(1.0 - decay, 1.0 / (number + 1))
        mean = mean + weight * (batch.mean(dim=0) - mean)
        variance = variance + weight * (batch.var(dim=0, unbiased=False) - variance)
    torch.testing.assert_close(module.mean, mean)
    torch.testing.assert_close(module.variance, variance)


@pytest.mark.parametrize("cuts", [[20, 17, 3], [1, 39], [0, 40], [40]])
def test_how_a_batch_is_cut_changes_nothing(cuts):
    whole, cut = RunningStatistics(WIDTH), RunningStatistics(WIDTH)
    for seed in (1, 2):
        batch = data(40, seed)
        step(whole, batch)
        step(cut, *batch.split(cuts))
        torch.testing.assert_close(cut.mean, whole.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(cut.variance, whole.variance, rtol=1e-5, atol=1e-6)


def test_sums_over_ranks_are_those_of_one_rank():
    alone, ranks = RunningStatistics(WIDTH), [RunningStatistics(WIDTH) for _ in range(3)]
    for seed in (1, 2):
        batch = data(40, seed)
        step(alone, batch)
        for rank, share in zip(ranks, batch.split([25, 0, 15]), strict=True):
            rank(share)
        summed = torch.stack([sums_of(rank) for rank in ranks]).sum(dim=0)
        for rank in ranks:
            update(rank, summed)
            torch.testing.assert_close(rank.variance, alone.variance, rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0].mean, ranks[1].mean)


def test_padding_does_not_count():
    plain, padded = RunningStatistics(WIDTH), RunningStatistics(WIDTH)
    batch, real = data(12, 1).view(3, 4, WIDTH), torch.ones(3, 4, dtype=torch.bool)
    real[1, 2:] = real[2, 1:] = False
    plain(batch[real])
    padded(torch.where(real[:, :, None], batch, float("nan")), real)
    torch.testing.assert_close(padded.sums, plain.sums, rtol=1e-6, atol=1e-6)
    assert padded.sums[0] == real.sum()


def test_a_piece_that_is_computed_again_counts_once():
    class Piece(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.statistics, self.calls = RunningStatistics(WIDTH), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.statistics(x).sin()

    module, x = Piece(), data(9, 1).requires_grad_()
    checkpoint(module, x, use_reentrant=False).sum().backward()
    assert module.calls == 2
    assert sums_of(module)[0] == 9


def test_no_batch_no_change_and_evaluation_counts_nothing():
    module = RunningStatistics(WIDTH)
    step(module, data(20, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval()
    module(data(30, 2))
    assert not sums_of(module).any()
    step(module, data(0, 3))
    module.train()
    step(module, data(0, 3))
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    module(data(30, 2))
    forget(module)
    assert not sums_of(module).any()
    assert sums_of(nn.Linear(2, 2)).numel() == 0


def test_values_far_from_zero_keep_their_variance():
    module, batch = RunningStatistics(WIDTH), 3000.0 + data(200, 1)
    for _ in range(2):
        step(module, batch)
    torch.testing.assert_close(module(batch).std(dim=0, unbiased=False), torch.ones(WIDTH), rtol=0.2, atol=0.0)
