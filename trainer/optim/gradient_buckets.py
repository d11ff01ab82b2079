"""Sums of dense gradients over ranks, in fixed buckets that start during the backward pass.

All dense gradients together are one flat vector, in the order of the parameters. A bucket is a part of it that holds whole
parameters. Backward passes reach the last parameters first, so the last bucket starts first. A bucket starts when its gradients
are complete and all later parts of the vector have started. So communication overlaps with the rest of the backward pass, and with
whatever follows until `wait`.

The buckets are a function of the sizes of the parameters. The order of their starts is fixed. Neither depends on the order in which
gradients arrive, nor on missing gradients. So all ranks start the same sums, and a sum is rounded equally in every run and after
every resume. The values on two ranks are those of one sum of the whole vector, bit for bit. On more ranks the place of a number in
a bucket determines the order in which a ring adds it, so the size of buckets changes the rounding.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from models import devices
from sharding.world import PendingSum, World

BUCKET_BYTES = 4 << 20
"""The size of a bucket that is not exceeded, except by one parameter alone."""
NUMBER_BYTES = 4


class GradientBuckets:
    """The sums of the gradients of dense weights. One object serves all steps of a training.

    Args:
        parameters: the dense weights, float32 and on one device, in the same order on all ranks.
        world: all ranks.
        bucket_bytes: the size of a bucket.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._parameters = list(parameters)
        self._world = world
        sizes = [parameter.numel() for parameter in self._parameters]
        self._bounds = list(accumulate(sizes, initial=0))
        self.buckets = bucket_ranges(sizes, bucket_bytes // NUMBER_BYTES)
        self._bucket_of = {n: number for number, bucket in enumerate(self.buckets) for n in bucket}
        self._flat = torch.zeros(self._bounds[-1], device=world.device)  # the vector of every step
        self._missing: list[set[int]] = []  # by bucket, the parameters without a gradient of the last backward pass
        self._finite: list[Tensor] = []  # by bucket that has started, () bool
        self._waiting: list[PendingSum] = []  # of the buckets that have started
        self._listening = False
        if world.world_size == 1:
            return  # nothing to overlap with
        for n, parameter in enumerate(self._parameters):
            # The hook holds no strong reference: one to the parameter that holds the hook would never be freed.
            parameter.register_post_accumulate_grad_hook(partial(_arrived, weakref.ref(self), n))

    @contextmanager
    def started_in_backward(self) -> Iterator[None]:
        """Start the sums within the body, which runs the last backward pass of a step. Collective.

        Gradients that earlier passes of the step have left in the parameters are part of the sums. Parameters have no gradient
        afterwards. Raises AssertionError if the body computes a gradient twice.
        """
        self._missing = [set(bucket) for bucket in self.buckets]
        self._finite = []
        self._waiting = []
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
        for bucket in self.buckets[len(self._finite) :]:
            self._start(bucket)

    def finite(self) -> Tensor:
        """Return () bool: True if all gradients of this rank were finite before they were added to those of others."""
        return torch.stack([*self._finite, torch.ones((), dtype=torch.bool, device=self._world.device)]).all()

    def wait(self) -> Tensor:
        """Wait for all sums, and return them as one flat vector in the order of the parameters.

        The next step overwrites the vector. It must not start before this one has waited.
        """
        while self._waiting:
            self._waiting.pop(0).wait()
        return self._flat

    def _gradient_arrived(self, n: int) -> None:
        """Start all buckets that can start, now that parameter n has its gradient."""
        if not self._listening:
            return
        missing = self._missing[self._bucket_of[n]]
        assert n in missing, (
            f"dense weight {n} received a second gradient in one backward pass, after it was counted as complete"
        )
        missing.remove(n)
        while len(self._finite) < len(self.buckets) and not self._missing[len(self._finite)]:
            self._start(self.buckets[len(self._finite)])

    @torch.no_grad()
    def _start(self, bucket: range) -> None:
        """Start the sum of a bucket, and free its gradients."""
        whole = self._flat[self._bounds[bucket.start] : self._bounds[bucket.stop]]
        parameters = self._parameters[bucket.start : bucket.stop]
        torch.cat([gradient_of(parameter).reshape(-1) for parameter in parameters], out=whole)
        for parameter in parameters:
            parameter.grad = None
        self._finite.append(devices.all_finite(whole))
        self._waiting.append(self._world.start_sum(whole))


def gradient_of(leaf: Tensor) -> Tensor:
    """Return the gradient of a leaf; zeros if no loss depends on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def bucket_ranges(sizes: Sequence[int], most_numbers: int) -> list[range]:
    """Return the buckets as ranges of parameters, in the order of their starts: from the last parameter to the first.

    Args:
        sizes: the numbers of each parameter.
        most_numbers: the numbers of a bucket that are not exceeded, except by one parameter alone.
    """
    buckets: list[range] = []
    stop = len(sizes)
    total = 0
    for n in reversed(range(len(sizes))):
        if n + 1 < stop and total + sizes[n] > most_numbers:
            buckets.append(range(n + 1, stop))
            stop = n + 1
            total = 0
        total += sizes[n]
    return [*buckets, range(stop)] if stop else buckets


def _arrived(buckets: "weakref.ref[GradientBuckets]", n: int, parameter: Tensor) -> None:
    """Tell the buckets, if they still exist, that parameter n has its gradient."""
    existing = buckets()
    if existing is not None:
        existing._gradient_arrived(n)
