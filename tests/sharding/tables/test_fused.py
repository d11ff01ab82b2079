"""Fused optimizers correct for the number of updates, not of look-ups: by a fake of fbgemm's Adam, which needs a GPU."""

import inspect

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from sharding.tables.fused import fused_tables, set_num_updates

RATE, BETAS, EPS = 0.1, (0.9, 0.999), 1e-8


class FakeFusedAdam:
    """A table of fbgemm with Adam, as far as its count of look-ups goes: see its forward and the test of its drift below."""

    def __init__(self) -> None:
        self.iter = torch.zeros(1, dtype=torch.int64)
        self.iter_cpu = torch.zeros(1, dtype=torch.int64)
        self.weight = torch.linspace(-1.0, 1.0, 4)
        self.moments = (torch.zeros(4), torch.zeros(4))

    def look_up(self) -> int:
        """Return the number of the update that a backward pass of this look-up would be."""
        if self.iter_cpu.item() == 0:
            self.iter_cpu.fill_(self.iter.cpu().item())
        number = int(self.iter_cpu.add_(1).item())
        self.iter.add_(1)
        return number

    def update(self, number: int, gradient: Tensor) -> None:
        (first, second), (beta1, beta2) = self.moments, BETAS
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        root = (second / (1 - beta2**number)).sqrt() + EPS
        self.weight -= RATE * (first / (1 - beta1**number)) / root


def gradients() -> list[Tensor]:
    return list(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))


def plain_adam() -> Tensor:
    """Return the weight after all gradients, by torch's Adam."""
    weight = nn.Parameter(torch.linspace(-1.0, 1.0, 4))
    adam = torch.optim.Adam([weight], lr=RATE, betas=BETAS, eps=EPS)
    for gradient in gradients():
        weight.grad = gradient
        adam.step()
    return weight.detach()


def trained(restart_after: int | None, others: int) -> Tensor:
    """Return the weight after all gradients, with look-ups between updates that train nothing, and perhaps a new process."""
    table = FakeFusedAdam()
    for num_updates, gradient in enumerate(gradients()):
        if num_updates == restart_after:
            table.iter, table.iter_cpu = torch.zeros_like(table.iter), torch.zeros_like(table.iter_cpu)
        for _ in range(others):
            table.look_up()
        set_num_updates([table], num_updates)
        table.update(table.look_up(), gradient)
    return table.weight


def test_lookups_that_train_nothing_and_a_restart_change_no_update():
    for restart_after, others in ((None, 0), (None, 3), (2, 0), (0, 1), (4, 2)):
        torch.testing.assert_close(trained(restart_after, others), plain_adam(), msg=f"{restart_after}, {others}")


def table_of_fbgemm() -> SplitTableBatchedEmbeddingBagsCodegen:
    return SplitTableBatchedEmbeddingBagsCodegen([(5, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)])


def test_the_fake_counts_as_fbgemm_does():
    real, fake = table_of_fbgemm(), FakeFusedAdam()
    for name in ("iter", "iter_cpu"):
        expected, actual = getattr(real, name), getattr(fake, name)
        assert (expected.shape, expected.dtype) == (actual.shape, actual.dtype), name
    assert real.iter_cpu.device.type == "cpu"
    # What is copied in the fake; a version of fbgemm that counts in another way has to be looked at.
    source = inspect.getsource(SplitTableBatchedEmbeddingBagsCodegen)
    for line in (
        "if self.iter_cpu.item() == 0:",
        "self.iter_cpu.fill_(self.iter.cpu().item())",
        "iter_int = int(self.iter_cpu.add_(1).item())",
        "self.iter.add_(1)",
        "self.iter[0] = step",
    ):
        assert line in source, line


def test_the_tables_of_fbgemm_are_found_and_set():
    module = nn.Sequential(nn.Linear(2, 2), table_of_fbgemm(), nn.ModuleList([table_of_fbgemm()]))
    tables = fused_tables(module)
    assert len(tables) == 2
    set_num_updates(tables, 7)
    assert [int(count) for table in tables for count in (table.iter, table.iter_cpu)] == [7, 7, 7, 7]
