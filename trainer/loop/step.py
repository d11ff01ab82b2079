"""One step of training: look up, encode, lose, agree, update.

The graph is cut where rows leave the sharded tables. The dense part is differentiated first; then all ranks agree, in one
small sum, on the global loss, the global number of targets and whether everything is finite; only then do gradients
enter the tables, whose fused optimizers apply them at once. So a step that is not finite is applied nowhere, and the
gradient is that of the global batch: sums over ranks, divided once by the global number of targets. It is clipped, if it is to
be, by the norm of that whole gradient, before any part of it is applied.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.features.bags import row_gradients
from models.features.items import ItemRequest
from models.layers import running_statistics
from sharding.tables.gradient_norm import squared_row_norm
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.config.train import Precision
from trainer.loop.step_clock import StepClock
from trainer.optim.ema import WeightEma
from trainer.tasks.task import Batch, Model


@dataclass(frozen=True)
class StepResult:
    """The same on every rank. loss: mean over the global targets (nan if there are none); applied: weights were updated.

    num_events: input events of all ranks; most_events: those of the rank that has most. grad_norm: of the whole gradient before
    clipping, where there is clipping and something to apply. broken: tables, and "" for the dense weights, whose values were not
    finite before the step, on any rank: an earlier update has made them so, and no later one can repair them.
    """

    loss: float
    num_targets: int
    num_events: int
    most_events: int
    finite: bool
    stop_requested: bool
    grad_norm: float | None = None
    broken: tuple[str, ...] = ()

    @property
    def applied(self) -> bool:
        return self.finite and self.num_targets > 0


@dataclass(frozen=True)
class TrainStep:
    """Everything that a step needs and that does not change between steps. parts_of: the pieces of a batch."""

    model: Model
    optimizers: Optimizers
    world: World
    seed: int
    clock: StepClock
    parts_of: Callable[[Any], Iterator[Any]]
    clip_norm: float | None = None
    averages: WeightEma | None = None
    precision: Precision = "float32"

    def __call__(self, batch: Batch, step: int, rate_factor: float, stop_requested: bool) -> StepResult:
        """Train on this rank's share of global batch number `step`. Collective."""
        # Dropout is a function of (seed, step, rank): a checkpoint needs no generator state, and resuming is exact.
        torch.manual_seed(_dropout_seed(self.seed, step, self.world.rank))
        self.optimizers.set_rate_factor(rate_factor)
        self.clock.start()
        # The look-up decides which update the fused optimizers take the backward pass for.
        self.optimizers.count_lookups()
        rows = self.model.look_up(batch.items)
        self.clock.mark()
        boundary = {table: found.detach().requires_grad_() for table, found in rows.items()}
        loss_sum = self._differentiate(boundary, batch)
        gradients = {
            table: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for table, leaf in boundary.items()
        }
        dense = _flat_gradient(self.optimizers.dense_parameters, self.world.device)
        self.clock.mark()
        weights = {**boundary, "": _flat(self.optimizers.dense_parameters, self.world.device)}
        result = self._agree(loss_sum, list(gradients.values()), dense, weights, batch, stop_requested)
        divisor: float = result.num_targets
        if result.applied and self.clip_norm is not None:
            self.world.sum(dense)
            norm = self._norm(dense, batch.items, gradients) / result.num_targets
            # Numbers that are finite on every rank may have no finite sum.
            result = replace(result, grad_norm=norm, finite=math.isfinite(norm))
            divisor *= max(1.0, norm / self.clip_norm)
        self.clock.mark()
        if result.applied:
            torch.autograd.backward(list(rows.values()), [gradient / divisor for gradient in gradients.values()])
            # Tables of which every rank has a copy got their gradient just now, divided already.
            copied = _flat_gradient(self.optimizers.copied_parameters, self.world.device)
            if self.clip_norm is None:
                summed = self.world.sum(torch.cat((dense, copied)))
            else:
                summed = torch.cat((dense, self.world.sum(copied)))
            summed[: dense.numel()] /= divisor
            _set_gradient(self.optimizers.summed_parameters, summed)
            self.optimizers.step_dense()
            self._take_in_statistics()
            if self.averages is not None:
                self.averages.update()
        else:
            self.optimizers.zero_dense_grad()
            running_statistics.forget(self.model)
        self.clock.mark()
        return result

    def _differentiate(self, boundary: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Leave the gradient of this rank's sum of losses in `boundary` and the dense weights; returns that sum, float64.

        Activations live for one piece of the batch at a time.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for part in self.parts_of(batch):
            # Weights and boundary are float32 and so are their gradients: casts are part of the graph.
            with torch.autocast(total.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss = self.model.loss(boundary, part)
            loss.backward()
            total += loss.detach()
        return total

    def _take_in_statistics(self) -> None:
        """Let what standardises by earlier batches take in this one, of all ranks. Collective if the model has any of it."""
        counted = running_statistics.sums_of(self.model)
        if counted.numel():
            running_statistics.update(self.model, self.world.sum(counted))

    def _norm(self, dense: Tensor, asked: ItemRequest, gradients: Mapping[str, Tensor]) -> float:
        """Of the gradient of the sum over all targets, as the first rank has it. Collective.

        dense: summed over ranks; gradients: of what this rank asked for.
        """
        of_rows = row_gradients(asked.rows, asked.bags, gradients)
        square = dense.double().square().sum() + squared_row_norm(*of_rows, self.world)
        # Ranks may round the same sum differently. Copies of dense weights stay equal only if all are scaled by the same number.
        return math.sqrt(self.world.from_first(square).item())

    def _agree(
        self,
        loss_sum: Tensor,
        gradients: list[Tensor],
        dense: Tensor,
        weights: Mapping[str, Tensor],
        batch: Batch,
        stop_requested: bool,
    ) -> StepResult:
        finite = [loss_sum.isfinite(), dense.isfinite().all(), *(gradient.isfinite().all() for gradient in gradients)]
        broken = ~torch.stack(finite).all()
        # A rank's own place for its events: so the one sum also tells how evenly the work is shared.
        events = [0] * self.world.world_size
        events[self.world.rank] = batch.layout.num_events
        counts = torch.tensor([batch.num_targets, stop_requested, *events], dtype=torch.float64, device=dense.device)
        names = sorted(weights)
        broken_weights = torch.stack([~weights[name].isfinite().all() for name in names])
        facts = torch.cat((torch.stack((loss_sum, broken.double())), counts, broken_weights.double()))
        # The one deliberate synchronisation of a step: the host needs these numbers to decide.
        total, num_broken, num_targets, stops, *others = self.world.sum(facts).tolist()
        events, of_weights = others[: self.world.world_size], others[self.world.world_size :]
        return StepResult(
            loss=total / num_targets if num_targets else float("nan"),
            num_targets=int(num_targets),
            num_events=int(sum(events)),
            most_events=int(max(events)),
            finite=num_broken == 0 and not any(of_weights),
            stop_requested=stops > 0,
            broken=tuple(name for name, number in zip(names, of_weights, strict=True) if number),
        )


def _flat_gradient(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """All gradients one after another, in the fixed order of the parameters."""
    return _flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters], device)


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat([torch.zeros(0, device=device), *(tensor.detach().reshape(-1) for tensor in tensors)])


def _set_gradient(parameters: list[nn.Parameter], flat: Tensor) -> None:
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"dropout/{seed}/{step}/{rank}".encode()).digest()[:7], "little")
