"""Names of tensors in a checkpoint. They do not depend on how a run shards or optimizes its tables.

    table.<name>.weight                 rows x dim
    table.<name>.accumulator            of Adagrad rows x dim, of row-wise Adagrad (rows,)
    table.<name>.exp_avg, .exp_avg_sq   of Adam and related optimizers
    table.<name>.step                   of the same optimizers: the number of updates, for bias correction
    dense.<parameter>, dense.<parameter>.<slot>
    ema.<parameter>                     moving average of a dense weight, and state.ema.num_updates
    state.<name>                        other state, the same on all ranks: mappings of ids, estimates

So a table that was sharded by one plan loads under any other plan, also as a copy on every rank, although fbgemm's and torch's
optimizers name and shape the same numbers differently (torchrec issue 2394).
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sharding.tables.local_shards import table_of
from sharding.tables.optimizers import Optimizers
from trainer.optim.ema import WeightEma

# By optimizer: the names of its state in torch and fbgemm, and the name in a checkpoint. Other names stay as they are.
_ACCUMULATOR = {"sum": "accumulator", "momentum1": "accumulator"}
_MOMENTS = {"momentum1": "exp_avg", "momentum2": "exp_avg_sq"}
SLOTS = {
    "sgd": {},
    "adagrad": _ACCUMULATOR,
    "rowwise_adagrad": _ACCUMULATOR,
    "adam": _MOMENTS,
    "lamb": _MOMENTS,
    "partial_rowwise_adam": _MOMENTS,
    "partial_rowwise_lamb": _MOMENTS,
}


def tensors_of(
    sharded_model: nn.Module,
    tables: Collection[str],
    optimizers: Optimizers | None,
    state: Mapping[str, Tensor] | None = None,
    ema: WeightEma | None = None,
) -> dict[str, Any]:
    """Return the tensors to save or to load into, by name. They share their memory with the model and the optimizers.

    Args:
        sharded_model: The model with sharded tables.
        tables: The names of its tables.
        optimizers: The optimizers to include, or None.
        state: Other tensors, the same on all ranks or divided over them.
        ema: The moving average of dense weights to include, or None.
    """
    tensors: dict[str, Any] = {_key(name, tables): value for name, value in sharded_model.state_dict().items()}
    if optimizers is not None:
        for parameter, slots in optimizers.combined.state_dict()["state"].items():
            table = table_of(parameter, tables)
            for slot, value in slots.items():
                if table is None:
                    tensors[f"{_key(parameter, tables)}.{slot}"] = value
                elif (name := _slot(slot, optimizers.configs[table].optimizer)) is not None:
                    tensors[f"table.{table}.{name}"] = _by_row(value)
        # fbgemm keeps no number of updates per table; it is the same for all tables.
        tensors.update({step_key(table): optimizers.num_updates for table in optimizers.counting_tables})
    tensors.update({f"state.{name}": value for name, value in (state or {}).items()})
    if ema is not None:
        tensors.update({f"ema.{name}": value for name, value in ema.values.items()})
        tensors["state.ema.num_updates"] = ema.num_updates
    return tensors


def step_key(table: str) -> str:
    """Return the name of a table's number of updates."""
    return f"table.{table}.step"


def model_names(sharded_model: nn.Module, tables: Collection[str]) -> dict[str, str]:
    """Return the names of tensors in the model, by their names in a checkpoint."""
    return {_key(name, tables): name for name in sharded_model.state_dict()}


def _key(parameter: str, tables: Collection[str]) -> str:
    table = table_of(parameter, tables)
    return f"dense.{parameter}" if table is None else f"table.{table}.weight"


def _slot(slot: str, optimizer: str) -> str | None:
    """Return the name of an optimizer's slot in a checkpoint, or None if it need not be saved.

    The number of steps of Adagrad has no effect without a decay of its learning rate.
    """
    name = slot.rsplit(".", 1)[-1]
    if name == "step" and optimizer in ("sgd", "adagrad", "rowwise_adagrad"):
        return None
    return SLOTS[optimizer].get(name, name)


def _by_row(value: Any) -> Any:
    """Return one number per row as (rows,), as fbgemm holds it. TorchRec's plain optimizer holds it as (rows, 1)."""
    if type(value) is torch.Tensor and value.dim() == 2 and value.shape[1] == 1:
        return value.view(-1)
    return value
