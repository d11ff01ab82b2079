"""A rank among ranks: the collectives that the rest of Shoal uses, and nothing else of torch.distributed.

The process group is created by whoever launches the ranks. All methods are collective: every rank calls them in the
same order, with tensors of the same dtype.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.comm_ops import set_gradient_division

from sharding.errors import picklable

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This rank, the number of ranks, and the device that this rank computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place and returned."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place and returned."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in rank order. First dimensions may differ, the others may not."""
        if self.world_size == 1:
            return [tensor]
        sizes = [int(n) for n in self.gather_ints(tensor.shape[0])]
        # gloo gathers equal shapes only: pad to the longest, cut after.
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded)
        return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]

    def gather_ints(self, value: int) -> list[int]:
        """Every rank's integer, in rank order."""
        mine = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        mine[self.rank] = value
        return [int(n) for n in self.sum(mine).tolist()]

    def exchange(self, leaving: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send the first sent[0] numbers of a flat tensor to rank 0, the next to rank 1, and so on.

        Returns what arrives: received[r] numbers from rank r, in rank order.
        """
        if self.world_size == 1:
            return leaving
        arriving = leaving.new_empty(sum(received))
        dist.all_to_all_single(arriving, leaving.contiguous(), received, sent)
        return arriving

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, bit for bit, on every rank; in place and returned. Collective."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def broadcast(self, value: object) -> object:
        """The first rank's picklable object, on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_first(self, function: Callable[[], T]) -> T:
        """Run `function` on the first rank; its picklable result, or the error it raised, on every rank.

        What cannot be pickled must not be sent: the others would wait for it until their deadline. They get a summary of such an
        error, and of such a result the error.
        """
        result: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                result = function()
                if self.world_size > 1:
                    pickle.dumps(result)
            except Exception as error:  # noqa: BLE001 - what only one rank can see is raised on all, so nobody hangs
                result, failure = None, error
        summary = picklable(failure) if failure is not None else None
        result, summary = cast(tuple[T, Exception | None], self.broadcast((result, summary)))
        if failure is not None:
            raise failure
        if summary is not None:
            raise summary
        return result

    def gather_objects(self, value: object) -> list[object]:
        """Every rank's picklable object, in rank order."""
        values: list[object] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        self.sum(torch.zeros(1, device=self.device))

    def disagreements(self, facts: dict[str, str]) -> list[str]:
        """Compare named facts over ranks. One line per fact that differs, naming the ranks; the same lines on every rank."""
        everywhere = self.gather_objects(facts)
        lines = []
        for name in facts:
            values = [str(other.get(name)) if isinstance(other, dict) else "?" for other in everywhere]
            if len(set(values)) > 1:
                lines.append(f"{name} differs: " + ", ".join(f"rank {r} has {v}" for r, v in enumerate(values)))
        return lines


def current_world(device: torch.device) -> World:
    """The ranks of the default process group. Also switches off TorchRec's division of gradients by the world size.

    The trainer sums losses and divides by the global number of targets itself, so a division by the world size would
    be undone anyway; switching it off here is the one place where that happens.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group: ranks are launched by Ray Train, or by the tests' harness")
    set_gradient_division(False)
    return World(dist.get_rank(), dist.get_world_size(), device)
