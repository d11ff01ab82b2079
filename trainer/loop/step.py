"""One step of training: look-up, forward, backward, agreement, update.

The graph is cut where rows leave the sharded tables. First the dense part is differentiated. Sums of its gradients over ranks
start during this backward pass (trainer/optim/gradient_buckets.py). Then all ranks agree, in one small sum, on the global loss, the
global number of targets and whether everything is finite. Only then do gradients enter the tables, and their fused optimizers apply
them at once. The sums of dense gradients are needed after that, or before it if the gradient is clipped. So a non-finite step is
applied nowhere, and the gradient is that of the global batch: sums over ranks, divided once by the global number of targets.
Clipping uses the norm of that whole gradient, before any part of it is applied.

The device computes all of this, the norm and the divisor included. An asynchronous copy brings the numbers to the host, which reads
them at one of two times, with the same results:

- At once, before the update. The host waits for its device, and leaves out the update of a step that must not be applied.
- With `reads_later`, after the next step was queued. The device leaves out the update (sharding/tables/conditional_updates.py), and
  the host never waits. What only the host does, the moving average and counters, it does before the next update is queued.
  Fused optimizers with moments or weight decay do not allow this.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models import devices
from models.features.bags import changed_rows, row_gradients
from models.features.request import ItemRequest
from models.layers import running_statistics
from models.tables import NOTHING_SENT
from sharding.tables.early_requests import EarlyRequest
from sharding.tables.gradient_norm import HostRows, squared_row_norm
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.config.train import Precision
from trainer.fault_points import reach
from trainer.loop.host_copy import HostCopy
from trainer.loop.products import tf32_products
from trainer.loop.step_clock import StepClock
from trainer.loop.step_result import NUM_TARGETS, StepResult, is_applied, result_of
from trainer.optim.ema import WeightEma
from trainer.optim.gradient_buckets import GradientBuckets, gradient_of
from trainer.tasks.task import Batch, Model

T = TypeVar("T")


@dataclass(frozen=True)
class EarlyBatch:
    """A batch with look-ups that were sent to other ranks before its step."""

    batch: Batch
    """The batch, on the device."""
    sent: Mapping[str, EarlyRequest]
    """The requests of its look-up, by name of the collection of tables."""


@dataclass(frozen=True)
class StartedStep:
    """A step that is queued. Its result is known, or on its way to the host."""

    result: StepResult | None
    """The result, if it was read at once."""
    numbers: HostCopy
    """The numbers of the result, and with `reads_later` whether the device applies the step."""
    names: tuple[str, ...]
    """The tables, and "" for the dense weights, in the order of the numbers."""
    loss_limit: float
    """The loss above which the step is not applied."""


@dataclass(frozen=True)
class TrainStep:
    """One step as a function of the batch and the step number."""

    model: Model
    """The model, with sharded tables."""
    optimizers: Optimizers
    """The optimizers of tables and dense weights."""
    world: World
    """All ranks."""
    seed: int
    """The seed of the run, for dropout."""
    clock: StepClock
    """The clock that measures the parts of a step."""
    parts_of: Callable[[Any], Iterator[Any]]
    """Returns the micro-batches of a batch."""
    dense_sums: GradientBuckets
    """The sums over ranks of the gradients of dense weights."""
    clip_norm: float | None = None
    """The largest norm of the gradient (train.clip_norm)."""
    ema: WeightEma | None = None
    """The moving average of dense weights to update."""
    precision: Precision = "float32"
    """The precision of the dense part."""
    tf32: bool = False
    """Products of the dense part are computed in TF32 on GPUs."""
    host_world: World | None = None
    """All ranks, for collectives of CPU tensors; clipping needs them unless the ranks' devices are CPUs."""
    reads_later: bool = False
    """The host reads the result after the next step was queued."""

    @cached_property
    def _statistics(self) -> nn.ModuleList:
        """Return the modules of the model with running statistics."""
        return running_statistics.statistics_of(self.model)

    def __call__(
        self,
        batch: Batch,
        step: int,
        rate_factor: float,
        stop_requested: bool,
        save_requested: bool = False,
        loss_limit: float = math.inf,
    ) -> StepResult:
        """Train on this rank's share of a global batch, and return the result. Collective. Arguments as in `start`."""
        return self.finish(self.start(batch, step, rate_factor, stop_requested, save_requested, lambda: loss_limit))

    def start(
        self,
        batch: Batch,
        step: int,
        rate_factor: float,
        stop_requested: bool,
        save_requested: bool,
        loss_limit: Callable[[], float],
        early: EarlyBatch | None = None,
        after_look_up: Callable[[], None] = lambda: None,
    ) -> StartedStep:
        """Train on this rank's share of a global batch. Collective. `finish` has to follow, before the next update.

        Args:
            batch: The share, on the CPU.
            step: The number of the step, from 0.
            rate_factor: The factor of the schedule on all learning rates.
            stop_requested: True if this rank was asked to stop.
            save_requested: True if this rank was asked for a checkpoint at once.
            loss_limit: Returns the loss above which the step is not applied, the same on all ranks. Called once, between the
                backward pass and the update. There the step before may be finished.
            early: The same batch, if its look-ups were sent before.
            after_look_up: Called once between look-up and forward pass. There the next look-ups may be sent.
        """
        # Dropout is a function of (seed, step, rank): a checkpoint needs no generator state, and resuming is exact.
        devices.seed(self.world.device, _dropout_seed(self.seed, step, self.world.rank))
        self.optimizers.set_rate_factor(rate_factor)
        self.clock.start()
        # Before the look-up, which determines the number of the update that the fused optimizers make in its backward pass.
        self.optimizers.count_lookups()
        host_items = batch.items
        batch = batch.to(self.world.device) if early is None else early.batch
        rows = self.model.look_up(batch.items, NOTHING_SENT if early is None else early.sent)
        after_look_up()
        self.clock.mark()
        reach("forward", self.world.rank, step)
        boundary = {table: values.detach().requires_grad_() for table, values in rows.items()}
        loss_sum = self._differentiate(boundary, batch)
        gradients = {table: gradient_of(leaf) for table, leaf in boundary.items()}
        self.clock.mark()
        weights = {**boundary, "": _flat(self.optimizers.dense_parameters, self.world.device)}
        numbers = self._numbers(loss_sum, list(gradients.values()), weights, batch, (stop_requested, save_requested))
        numbers, divisor = self._with_norm(numbers, (batch.items, host_items), gradients)
        limit = loss_limit()
        applied = self._applied_on_device(numbers, limit) if self.reads_later else None
        numbers = numbers if applied is None else torch.cat((numbers, applied[None].double()))
        started = StartedStep(None, HostCopy(numbers), tuple(sorted(weights)), limit)
        if applied is None:
            # The only wait of a step: the host needs these numbers to decide whether to apply it.
            started = replace(started, result=self._result(started))
        self.clock.mark()
        if started.result is None or started.result.applied:
            self._update(rows, gradients, divisor, applied, step)
        else:
            self.dense_sums.wait()
            self.optimizers.zero_dense_grad()
            running_statistics.forget(self._statistics)
        self.clock.mark()
        return started

    def finish(self, started: StartedStep) -> StepResult:
        """Return the result of a step, and do what only the host can do after it. Steps are finished in their order."""
        if started.result is not None:
            return started.result
        result = self._result(started)
        self.optimizers.confirm(result.applied)
        if result.applied:
            self._update_ema()
        return result

    def _update(
        self,
        rows: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        divisor: Tensor,
        applied: Tensor | None,
        step: int,
    ) -> None:
        """Update everything that is trained. Collective.

        Args:
            rows: The rows of the look-up, with their graph.
            gradients: The gradients of the rows, of the sum of losses.
            divisor: () float64, what gradients are divided by.
            applied: () bool on the device: where it is False nothing changes. None: the host knows that the step is applied.
            step: The number of the step.
        """
        reach("backward", self.world.rank, step)
        divided = [_where(applied, gradient / divisor) for gradient in gradients.values()]
        torch.autograd.backward(list(rows.values()), divided)
        self._set_summed_gradient(divisor, applied)
        reach("optimizer", self.world.rank, step)
        if applied is not None:
            self.optimizers.step_dense_where(applied)
            self._update_statistics(applied)
            return
        self.optimizers.step_dense()
        self._update_statistics(applied)
        self._update_ema()

    def _update_ema(self) -> None:
        if self.ema is not None:
            self.ema.update()

    def _differentiate(self, boundary: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return this rank's sum of losses, float64. Starts the sums of dense gradients over ranks. Collective.

        The gradient of rows is left in `boundary`. Only one micro-batch has activations in memory at a time.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        with tf32_products(self.tf32):
            for part, is_last in _with_last(self.parts_of(batch)):
                # Weights and boundary are float32, and so are their gradients, because casts are part of the graph.
                with torch.autocast(total.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    loss = self.model.loss(boundary, part)
                # Only the last pass completes gradients.
                with self.dense_sums.started_in_backward() if is_last else nullcontext():
                    loss.backward()
                total += loss.detach()
        return total

    def _update_statistics(self, applied: Tensor | None) -> None:
        """Update running statistics of the model with this batch of all ranks. Collective if the model has any."""
        counted = running_statistics.sums_of(self._statistics)
        if counted.numel():
            # Sums of zero entries change nothing.
            running_statistics.update(self._statistics, _where(applied, self.world.sum(counted)))

    def _set_summed_gradient(self, divisor: Tensor, applied: Tensor | None) -> None:
        """Set the gradient of dense weights and copied tables: the sum over ranks, divided by `divisor`, float64 (). Collective."""
        dense = self.dense_sums.wait()
        dense /= divisor
        dense = _where(applied, dense)
        _set_gradient(self.optimizers.dense_parameters, dense)
        if self.optimizers.copied_parameters:
            # Copied tables received their gradient just now, already divided.
            copied = _flat_gradient(self.optimizers.copied_parameters, self.world.device)
            _set_gradient(self.optimizers.copied_parameters, self.world.sum(copied))

    def _with_norm(
        self, numbers: Tensor, requests: tuple[ItemRequest, ItemRequest], gradients: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the numbers of the step, with clipping followed by the norm, and what its gradients are divided by. Collective."""
        divisor = numbers[NUM_TARGETS]
        if self.clip_norm is None:
            return numbers, divisor
        norm = self._norm(self.dense_sums.wait(), requests, gradients) / divisor
        return torch.cat((numbers, norm[None])), divisor * (norm / self.clip_norm).clamp(min=1.0)

    def _norm(
        self, dense: Tensor, requests: tuple[ItemRequest, ItemRequest], gradients: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the norm of the gradient of the sum over all targets, as the first rank computes it, (). Collective.

        Args:
            dense: The gradient of dense weights, summed over ranks.
            requests: The look-ups of this rank, on its device and on the CPU.
            gradients: The gradients of the rows that it looked up.
        """
        request, host_request = requests
        host = None
        if not devices.is_host(self.world.device):
            assert self.host_world is not None
            host = HostRows(changed_rows(host_request.rows, host_request.bags), self.host_world)
        of_rows = row_gradients(request.rows, request.bags, gradients)
        square = dense.double().square().sum() + squared_row_norm(*of_rows, self.world, host)
        # Ranks may round the same sum differently. Copies of dense weights stay equal only if all ranks scale by the same number.
        return self.world.from_first(square).sqrt()

    def _result(self, started: StartedStep) -> StepResult:
        """Wait for the numbers of a step, and return its result."""
        numbers = started.numbers.wait()
        applied = bool(numbers.pop()) if self.reads_later else None
        clips = self.clip_norm is not None
        result = result_of(numbers, started.names, self.world.world_size, started.loss_limit, clips)
        assert applied in (None, result.applied), "host and device disagree on whether a step is applied"
        return result

    def _applied_on_device(self, numbers: Tensor, loss_limit: float) -> Tensor:
        """Return whether the step is applied, () bool on the device."""
        return is_applied(numbers, self.world.world_size, loss_limit, self.clip_norm is not None)

    def _numbers(
        self,
        loss_sum: Tensor,
        gradients: list[Tensor],
        weights: Mapping[str, Tensor],
        batch: Batch,
        requests: tuple[bool, bool],
    ) -> Tensor:
        """Return the numbers of the result, summed over ranks. Collective. requests: to stop, and to save."""
        finite = [loss_sum.isfinite(), self.dense_sums.finite(), *map(devices.all_finite, gradients)]
        broken = ~torch.stack(finite).all()
        # Each rank writes its events and its time into its own entries, so that the one sum also shows imbalance and stragglers.
        events = [0.0] * self.world.world_size
        events[self.world.rank] = float(batch.layout.num_events)
        own_seconds = [0.0] * self.world.world_size
        own_seconds[self.world.rank] = self.clock.own_seconds
        counts = torch.tensor([batch.num_targets, *requests, *events, *own_seconds], dtype=torch.float64)
        broken_weights = torch.stack([~devices.all_finite(weights[name]) for name in sorted(weights)])
        of_device = torch.stack((loss_sum, broken.double()))
        numbers = torch.cat((of_device, devices.from_host(counts, loss_sum.device), broken_weights.double()))
        return self.world.sum(numbers)


def _with_last(parts: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each part, with True for the last one."""
    held: list[T] = []
    for part in parts:
        yield from ((earlier, False) for earlier in held)
        held = [part]
    yield from ((last, True) for last in held)


def _flat_gradient(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """Return all gradients as one vector, in the fixed order of the parameters."""
    return _flat([gradient_of(parameter) for parameter in parameters], device)


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat([torch.zeros(0, device=device), *(tensor.detach().reshape(-1) for tensor in tensors)])


def _set_gradient(parameters: list[nn.Parameter], flat: Tensor) -> None:
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def _where(applied: Tensor | None, values: Tensor) -> Tensor:
    """Return the values, or zeros if the step is not applied."""
    return values if applied is None else torch.where(applied, values, 0.0)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"dropout/{seed}/{step}/{rank}".encode()).digest()[:7], "little")
