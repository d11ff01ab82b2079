"""Names of tensors in a checkpoint: those of what they are, not of how this run happens to hold them.

    table.<name>.weight                 rows x dim
    table.<name>.accumulator            of Adagrad rows x dim, of row-wise Adagrad (rows,)
    table.<name>.exp_avg, .exp_avg_sq   of Adam and its kin
    table.<name>.step                   likewise: the number of updates, for which they correct
    dense.<parameter>, dense.<parameter>.<slot>
    ema.<parameter>                     moving average of a dense weight, and state.ema.num_updates
    state.<name>                        numbers that all ranks hold alike: mappings of ids, estimates

So a table that was sharded by one plan is loaded by any other, as a copy on every rank too: fbgemm's and torch's optimizers name
and shape the same numbers differently (torchrec issue 2394).
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sharding.tables.local_shards import table_of
from sharding.tables.optimizers import Optimizers
from trainer.optim.ema import WeightEma

# By optimizer: what torch and fbgemm call its state, and what it is called here. Others keep the names that they have.
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
    averages: WeightEma | None = None,
) -> dict[str, Any]:
    """Tensors to save, or to load into, by name: they share their memory with the model and the optimizers."""
    found: dict[str, Any] = {_key(name, tables): value for name, value in sharded_model.state_dict().items()}
    if optimizers is not None:
        for parameter, slots in optimizers.combined.state_dict()["state"].items():
            table = table_of(parameter, tables)
            for slot, value in slots.items():
                if table is None:
                    found[f"{_key(parameter, tables)}.{slot}"] = value
                elif (name := _slot(slot, optimizers.configs[table].optimizer)) is not None:
                    found[f"table.{table}.{name}"] = _by_row(value)
        # fbgemm keeps the number of updates of no table; it is the same for all of them.
        found.update({step_key(table): optimizers.num_updates for table in optimizers.counting_tables})
    found.update({f"state.{name}": value for name, value in (state or {}).items()})
    if averages is not None:
        found.update({f"ema.{name}": value for name, value in averages.values.items()})
        found["state.ema.num_updates"] = averages.num_updates
    return found


def step_key(table: str) -> str:
    """The number of updates of a table."""
    return f"table.{table}.step"


def model_names(sharded_model: nn.Module, tables: Collection[str]) -> dict[str, str]:
    """What the model calls each of its tensors, by their names in a checkpoint."""
    return {_key(name, tables): name for name in sharded_model.state_dict()}


def _key(parameter: str, tables: Collection[str]) -> str:
    table = table_of(parameter, tables)
    return f"dense.{parameter}" if table is None else f"table.{table}.weight"


def _slot(slot: str, optimizer: str) -> str | None:
    """None if it need not be kept: of Adagrad, the number of steps means nothing without a decay of its rate."""
    name = slot.rsplit(".", 1)[-1]
    if name == "step" and optimizer in ("sgd", "adagrad", "rowwise_adagrad"):
        return None
    return SLOTS[optimizer].get(name, name)


def _by_row(value: Any) -> Any:
    """One number per row is (rows,) here, as in fbgemm; TorchRec's plain optimizer holds it as (rows, 1)."""
    if type(value) is torch.Tensor and value.dim() == 2 and value.shape[1] == 1:
        return value.view(-1)
    return value
