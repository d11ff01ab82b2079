"""Updates that the device leaves out where it finds that a step must not be applied, without waiting for the host.

If a step is not applied, its gradients are replaced by zeros on the device, and each optimizer leaves its weights and its state as
they are, bit for bit:

- A fused optimizer of tables has no flag for it. SGD and the Adagrads change nothing by zeros, without weight
  decay. All others have moments that decay, or weights that do, so for them only the host can leave out an update (`can_skip`).
- Fused AdamW of dense weights has such a flag on the device: `found_inf` of torch's gradient scaler.
- Of other optimizers in torch that change something by zeros, the device selects the weights and state before the update.

Step counters on the host advance with each update. They are set back when the host knows that the update was left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.config import IDLE_AT_ZERO_OPTIMIZERS, TableConfig
from sharding.plan import Plan

# Of a rate over eps: the update of a row that never had a gradient is their ratio times zero, which must not overflow.
LARGEST_RATIO = torch.finfo(torch.float32).max / 2
COUNTER = "step"  # slot of torch's optimizers
HostCounters = list[tuple[Tensor, Tensor]]
"""Step counters on the host, each with a copy of its value before an update."""


def can_skip(tables: Mapping[str, TableConfig], plan: Plan) -> bool:
    """Return whether zero gradients leave all tables with fused optimizers as they are."""
    return all(
        plan.tables[name].kernel == "dense"
        or (
            config.optimizer in IDLE_AT_ZERO_OPTIMIZERS
            and config.weight_decay == 0.0
            and config.learning_rate / config.eps < LARGEST_RATIO
        )
        for name, config in tables.items()
        if name in plan.tables
    )


@torch.no_grad()
def step_where(optimizer: KeyedOptimizerWrapper, applied: Tensor) -> HostCounters:
    """Make the step of an optimizer where `applied`, () bool on the device. Returns the counters to set back otherwise.

    All weights have gradients, which are zero if the step is not applied. The state of the optimizer exists.
    """
    inner = optimizer._optimizer
    if isinstance(inner, torch.optim.Adam) and inner.defaults["fused"]:
        inner.found_inf = (~applied).to(torch.float32)  # type: ignore[attr-defined]
        inner.step()
        inner.found_inf = None  # type: ignore[attr-defined]
        return []
    states: list[dict[str, Any]] = [inner.state.get(weight, {}) for weight in optimizer.params.values()]
    counters = [(state[COUNTER], state[COUNTER].clone()) for state in states if COUNTER in state]
    changing: list[Tensor] = []
    if not _is_idle_at_zero(inner):
        slots = [slot for state in states for name, slot in state.items() if name != COUNTER]
        changing = [*optimizer.params.values(), *slots]
    before = [tensor.clone() for tensor in changing]
    inner.step()
    for tensor, earlier in zip(changing, before, strict=True):
        tensor.copy_(torch.where(applied, tensor, earlier))
    return counters


def set_back(counters: HostCounters) -> None:
    """Set the counters of an update that was left out back."""
    for counter, before in counters:
        counter.copy_(before)


def _is_idle_at_zero(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether zero gradients leave weights and state of an optimizer as they are, apart from counters."""
    return isinstance(optimizer, torch.optim.SGD | torch.optim.Adagrad | RowWiseAdagrad) and all(
        group["weight_decay"] == 0.0
        and group.get("momentum", 0.0) == 0.0
        and group["lr"] / group.get("eps", 1.0) < LARGEST_RATIO
        for group in optimizer.param_groups
    )
