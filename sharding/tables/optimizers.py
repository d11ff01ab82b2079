"""One combined optimizer: those fused into the tables' backward pass, one for each other table, and a dense one for the rest.

The invariant: every parameter of the module is covered exactly once, which is checked when the optimizer is built. A table is
always updated by its own optimizer at its own rate, for every sharding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.config import COUNTING_OPTIMIZERS, TableConfig
from sharding.plan import Plan
from sharding.tables.conditional_updates import HostCounters, can_skip, set_back, step_where
from sharding.tables.fused import fused_tables, set_num_updates
from sharding.tables.local_shards import table_of


class Optimizers:
    """All optimizers of a model as one object to schedule, step, save and load.

    The attribute `configs` has the settings of the tables. `dense_parameters` belong to no table; `copied_parameters` are
    tables with a copy on every rank. The gradients of both have to be summed over ranks before `step_dense`. Gradients of
    shards, fused or not, are already complete. `num_updates` is () float32 like that of torch's Adam, the number of updates.
    `counting_tables` are those with fused optimizers that depend on it, the same on all ranks. With `can_skip`, the same on all
    ranks too, the device can leave out an update.

    Args:
        module: the sharded model.
        build_dense: builds the optimizer of the dense parameters, with one or more parameter groups.
        tables: settings by table.
        plan: the plan of the tables.
        schedule_tables: the rates of tables are scaled too.
    """

    def __init__(
        self,
        module: DistributedModelParallel,
        build_dense: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        tables: Mapping[str, TableConfig],
        plan: Plan,
        schedule_tables: bool = True,
    ):
        self.configs = tables
        fused = module.fused_optimizer
        fused_names = set(fused.params)
        # A rank without a shard of a table has an empty parameter for it, which is never updated.
        rest = {name: p for name, p in module.named_parameters() if name not in fused_names and p.numel()}
        unfused = {name: table for name in rest if (table := table_of(name, tables)) is not None}
        dense = {name: p for name, p in rest.items() if name not in unfused}
        self.dense_parameters: list[nn.Parameter] = list(dense.values())
        self.copied_parameters: list[nn.Parameter] = [
            rest[name] for name, table in unfused.items() if plan.tables[table].sharding == "data_parallel"
        ]
        self.dense = KeyedOptimizerWrapper(dense, lambda parameters: build_dense(parameters))
        self.tables = [
            KeyedOptimizerWrapper({name: rest[name]}, lambda p, table=table: table_optimizer(p, tables[table]))
            for name, table in unfused.items()
        ]
        self.fused = fused
        self.combined = CombinedOptimizer([fused, *self.tables, self.dense])
        self.num_updates = torch.zeros((), dtype=torch.float32)
        self.counting_tables = tuple(
            name
            for name, table in plan.tables.items()
            if table.kernel != "dense" and name in tables and tables[name].optimizer in COUNTING_OPTIMIZERS
        )
        self.can_skip = can_skip(tables, plan)
        self._counters: HostCounters = []  # of an update that the host does not know to be applied
        self._fused_tables = fused_tables(module)
        _check_coverage(module, fused_names, [self.dense, *self.tables])
        self._schedule_tables = schedule_tables
        self._base_rates = [group["lr"] for group in self._scheduled()]

    def _scheduled(self) -> list[dict[str, Any]]:
        """Return the parameter groups with scaled rates."""
        groups = list(self.dense.param_groups)
        if self._schedule_tables:
            groups += [group for optimizer in (*self.tables, self.fused) for group in optimizer.param_groups]
        return groups

    def set_rate_factor(self, factor: float) -> None:
        """Set every scheduled learning rate, dense or fused, to `factor` times its configured value."""
        for group, rate in zip(self._scheduled(), self._base_rates, strict=True):
            group["lr"] = rate * factor
        # A fused optimizer reads its rate on this call, before the backward pass that applies it.
        self.fused.zero_grad()

    def slots_of(self, parameter: str) -> Mapping[str, Any]:
        """Return the state of a parameter by name, as the optimizer holds it. Empty if it has none, or none yet."""
        for optimizer in (self.fused, *self.tables, self.dense):
            if parameter in optimizer.params:
                slots: Mapping[str, Any] = optimizer.state.get(optimizer.params[parameter], {})
                return slots
        return {}

    def count_lookups(self) -> None:
        """Set the counters of fused optimizers to the number of updates so far. Call it before the look-up of a step."""
        set_num_updates(self._fused_tables, int(self.num_updates.numpy()))  # of the CPU

    def step_dense(self) -> None:
        """Apply the gradients of everything that is not fused, and count the update. Fused tables are already updated."""
        self.num_updates += 1
        for optimizer in (self.dense, *self.tables):
            optimizer.step()
        self.zero_dense_grad()

    def step_dense_where(self, applied: Tensor) -> None:
        """Do the same where `applied`, () bool on the device, and change nothing otherwise. Needs `can_skip`.

        Before the next update `confirm` has to count this one. All gradients, also those that fused tables received, are zero if
        the step is not applied. `materialize_dense_state` was called before the first of these updates.
        """
        for optimizer in (self.dense, *self.tables):
            self._counters += step_where(optimizer, applied)
        self.zero_dense_grad()

    def confirm(self, applied: bool) -> None:
        """Count the last update of `step_dense_where`, now that the host knows whether it was applied."""
        if applied:
            self.num_updates += 1
        else:
            set_back(self._counters)
        self._counters = []

    def zero_dense_grad(self) -> None:
        for optimizer in (self.dense, *self.tables):
            optimizer.zero_grad(set_to_none=True)

    def materialize_dense_state(self) -> None:
        """Create the missing state of optimizers that are not fused, as before the first step. No weight changes.

        torch creates it in the first step. A checkpoint can be written, or has to be loaded, before that.
        """
        for optimizer in (self.dense, *self.tables):
            states = optimizer.state_dict()["state"]
            if states and all(states.values()):
                continue
            # Without a rate no weight changes. Without decay, which some optimizers add to the gradient, the moments stay zero.
            kept = [
                {name: group[name] for name in ("lr", "weight_decay") if name in group}
                for group in optimizer.param_groups
            ]
            for group, settings in zip(optimizer.param_groups, kept, strict=True):
                group.update(dict.fromkeys(settings, 0.0))
            for parameter in optimizer.params.values():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for group, settings in zip(optimizer.param_groups, kept, strict=True):
                group.update(settings)
            for slots in optimizer.state_dict()["state"].values():
                if isinstance(slots.get("step"), Tensor):
                    slots["step"].zero_()


def table_optimizer(parameters: Iterable[Tensor], config: TableConfig) -> torch.optim.Optimizer:
    """Return the equivalent of a table's fused optimizer for a table that is an ordinary parameter.

    One difference: Adam also moves rows without a gradient, by their momentum. The fused optimizer does not.
    """
    rate = config.learning_rate
    eps = config.eps
    decay = config.weight_decay
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=rate, eps=eps, weight_decay=decay)
        case "rowwise_adagrad":
            rowwise: torch.optim.Optimizer = RowWiseAdagrad(parameters, lr=rate, eps=eps, weight_decay=decay)
            return rowwise
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, eps=eps, weight_decay=decay)
        case other:
            raise ValueError(f"{other} exists only fused into the backward pass")


def _check_coverage(module: nn.Module, fused: set[str], unfused: Sequence[torch.optim.Optimizer]) -> None:
    """Raise an error unless the optimizers cover each parameter once. Counts what they hold, which may differ from the input."""
    held = Counter(id(p) for optimizer in unfused for group in optimizer.param_groups for p in group["params"])
    covered = {name: held[id(p)] + (name in fused) for name, p in module.named_parameters() if p.numel()}
    twice = {name for name, count in covered.items() if count > 1}
    missing = {name for name, count in covered.items() if count == 0}
    if twice or missing:
        raise AssertionError(
            f"optimizers must cover each parameter once: twice {sorted(twice)}, never {sorted(missing)}"
        )
