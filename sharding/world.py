"""The ranks of a run and the collectives of Shoal. Only this module and trainer/checkpoint use torch.distributed directly.

The process group is created by the launcher of the ranks. All methods are collective: every rank calls them in the same order,
with tensors of the same dtype.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.comm_ops import set_gradient_division

from sharding.errors import picklable

T = TypeVar("T")


@dataclass(frozen=True)
class PendingSum:
    """A sum over ranks that was started, and may be in progress."""

    tensor: Tensor
    """The tensor that becomes the sum."""
    work: dist.Work | None = None
    """The collective in progress. None if there is nothing to wait for."""

    def wait(self) -> Tensor:
        """Wait for the sum, and return it. With NCCL the device waits, and the host does not."""
        if self.work is not None:
            self.work.wait()
        return self.tensor


@dataclass(frozen=True)
class World:
    """The ranks of a run, as one rank sees them."""

    rank: int  # this rank
    world_size: int  # number of ranks
    device: torch.device  # of this rank's computations
    group: dist.ProcessGroup | None = None  # of the collectives; None: the default group

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self.group)
        return tensor

    def start_sum(self, tensor: Tensor) -> "PendingSum":
        """Start a sum of a tensor over ranks, in place. The tensor must not be used before `PendingSum.wait`."""
        if self.world_size == 1:
            return PendingSum(tensor)
        return PendingSum(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self.group, async_op=True))

    def max(self, tensor: Tensor) -> Tensor:
        """Compute the maximum of a tensor over ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order. First dimensions may differ; others must be equal."""
        if self.world_size == 1:
            return [tensor]
        return self.gather_sized(tensor, self.gather_ints(tensor.shape[0]))

    def gather_sized(self, tensor: Tensor, sizes: list[int]) -> list[Tensor]:
        """Return every rank's tensor, in rank order, without asking for their first dimensions, `sizes`."""
        if self.world_size == 1:
            return [tensor]
        # gloo gathers equal shapes only: pad to the longest and cut afterwards.
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded, group=self.group)
        return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]

    def gather_ints(self, value: int) -> list[int]:
        """Return every rank's integer, in rank order."""
        if self.world_size == 1:
            return [int(value)]
        own = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        own[self.rank] = value
        return [int(n) for n in self.sum(own).tolist()]

    def gather_numbers(self, values: Sequence[int]) -> list[list[int]]:
        """Return every rank's integers, in rank order. Every rank gives equally many."""
        if self.world_size == 1:
            return [list(values)]
        own = torch.tensor([list(values)], dtype=torch.int64, device=self.device)
        return [numbers for part in self.gather_sized(own, [1] * self.world_size) for numbers in part.tolist()]

    def exchange_ints(self, values: Sequence[int]) -> list[int]:
        """Send values[r] to rank r. Returns the integers that were received, in rank order."""
        if self.world_size == 1:
            return list(values)
        leaving = torch.tensor(list(values), dtype=torch.int64, device=self.device)
        arriving = torch.empty_like(leaving)
        dist.all_to_all_single(arriving, leaving, group=self.group)
        return [int(value) for value in arriving.tolist()]

    def exchange(self, leaving: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send the first sent[0] numbers of a flat tensor to rank 0, the next sent[1] to rank 1, and so on.

        Returns the received numbers: received[r] numbers from rank r, in rank order.
        """
        if self.world_size == 1:
            return leaving
        arriving = leaving.new_empty(sum(received))
        dist.all_to_all_single(arriving, leaving.contiguous(), received, sent, group=self.group)
        return arriving

    def from_first(self, tensor: Tensor) -> Tensor:
        """Broadcast the first rank's tensor, bit for bit, in place, and return it."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0, group=self.group)
        return tensor

    def broadcast(self, value: object) -> object:
        """Return the first rank's picklable object on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device, group=self.group)
        return box[0]

    def on_first(self, function: Callable[[], T]) -> T:
        """Run `function` on the first rank. Every rank returns its picklable result or raises its error.

        Objects that cannot be pickled must not be sent, since the other ranks would wait for them until their deadline. Such an
        error is replaced by a summary, and such a result by the error of pickling.
        """
        result: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                result = function()
                if self.world_size > 1:
                    pickle.dumps(result)
            except Exception as error:  # noqa: BLE001 - an error of one rank is raised on all, so that no rank waits forever
                result = None
                failure = error
        summary = picklable(failure) if failure is not None else None
        result, summary = cast(tuple[T, Exception | None], self.broadcast((result, summary)))
        if failure is not None:
            raise failure
        if summary is not None:
            raise summary
        return result

    def gather_objects(self, value: object) -> list[object]:
        """Return every rank's picklable object, in rank order."""
        values: list[object] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def beside(self) -> "World":
        """Return the same ranks with a group of their own for collectives of CPU tensors, so that a thread can use it. Collective.

        Collectives of two groups may be in progress at the same time; those of one group must be called in one order.
        """
        group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        return World(self.rank, self.world_size, torch.device("cpu"), group)

    def on_cpu(self) -> "World":
        """Return the same ranks for collectives of CPU tensors in this thread: this world if its device is a CPU. Collective.

        Such collectives do not wait for the work that is queued on a GPU.
        """
        return self if self.device.type == "cpu" else self.beside()

    def group_of(self, size: int) -> "World":
        """Return the group of `size` ranks that this rank belongs to: ranks 0 to size - 1, the next ones, and so on. Collective.

        size: a divisor of the number of ranks.
        """
        if self.world_size % size:
            raise ValueError(f"groups of {size} ranks do not divide {self.world_size} ranks")
        if size == self.world_size:
            return self
        own = self
        for first in range(0, self.world_size, size):
            members = list(range(first, first + size))
            group = dist.new_group(members) if size > 1 else None  # every rank takes part in making every group
            if self.rank in members:
                own = World(self.rank - first, size, self.device, group)
        return own

    def barrier(self) -> None:
        self.sum(torch.zeros(1, device=self.device))

    def disagreements(self, facts: dict[str, str]) -> list[str]:
        """Compare named facts over ranks.

        Returns one line per fact that differs, with the ranks; the same lines on every rank.
        """
        everywhere = self.gather_objects(facts)
        lines = []
        for name in facts:
            values = [str(other.get(name)) if isinstance(other, dict) else "?" for other in everywhere]
            if len(set(values)) > 1:
                lines.append(f"{name} differs: " + ", ".join(f"rank {r} has {v}" for r, v in enumerate(values)))
        return lines


ALONE = World(0, 1, torch.device("cpu"))
"""The one rank of a process without a process group."""


def current_world(device: torch.device) -> World:
    """Return the ranks of the default process group. Also disables TorchRec's division of gradients by the world size.

    The trainer sums losses and divides by the global number of targets itself, so a division by the world size would have to be
    undone. Only this function disables it.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group: ranks are launched by Ray Train, or by the tests' harness")
    set_gradient_division(False)
    return World(dist.get_rank(), dist.get_world_size(), device)
