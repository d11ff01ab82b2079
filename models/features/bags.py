"""Bags: values of a feature that are summed where their rows are stored. The values of an owner are a bag with one vector.

    embedding(o) = sum over values x of  w E[x]          w: one, or one over the number of values of o (mean)

Up to rounding the result equals that of looked-up rows in models.features.values; the communication differs. With bags, the
values of every bag and one vector per owner are sent between ranks. With rows, each unique row is sent once, however many
owners request it. Means are weighted sums, since TorchRec's own mean is wrong where the rows of a table are on several ranks
(sharding.tables.apply_plan).

Shapes: M owners, n values of all of them, W width of a row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models import devices

Pooling = Literal["mean", "sum"]


@dataclass(frozen=True)
class Bags:
    """The values of one feature for M owners."""

    table: str  # of the rows
    rows: Tensor  # (n,) int64, ordered by owner
    lengths: Tensor  # (M,) int64, number of values of each owner, can be 0
    weights: Tensor | None = None  # (n,) float32; None: unweighted sums


def bags_of(table: str, rows: np.ndarray, lengths: np.ndarray, pooling: Pooling) -> Bags:
    """Build bags from rows (n,), ordered by owner, and the number of rows of each owner (M,)."""
    weights = None
    if pooling == "mean":
        weights = torch.from_numpy(np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32))
    return Bags(table, _int64(rows), _int64(lengths), weights)


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def concatenate_bags(pieces: Iterable[Bags]) -> Bags:
    """Concatenate bags of one table, of which there is at least one."""
    bags_list = list(pieces)
    weights = [bags.weights for bags in bags_list if bags.weights is not None]
    return Bags(
        bags_list[0].table,
        torch.cat([bags.rows for bags in bags_list]),
        torch.cat([bags.lengths for bags in bags_list]),
        torch.cat(weights) if weights else None,
    )


def empty_bags(table: str, pooling: Pooling, device: torch.device) -> Bags:
    """Return bags of no owner."""
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Bags(table, nothing, nothing, torch.zeros(0, device=device) if pooling == "mean" else None)


def row_gradients(
    rows: Mapping[str, Tensor], bags: Mapping[str, Bags], gradients: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the rows that gradients of looked-up rows and of bags change, and the gradients of these rows.

    Args:
        rows: looked-up rows by table.
        bags: looked-up bags by name.
        gradients: of the looked-up vectors, by table of `rows` and by name of `bags`.

    Returns:
        By table the rows (R,) and their gradients (R, W). On a CPU each row of a table with bags occurs once. On other devices
        it can occur several times, because finding equal rows would wait for the device.
    """
    summed = {table: gradients[table] for table in rows}
    changed = dict(rows)
    pieces: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, given in bags.items():
        num_rows = given.rows.numel()
        spread = gradients[name].repeat_interleave(given.lengths, dim=0, output_size=num_rows)
        pieces.setdefault(given.table, []).append(
            (given.rows, spread if given.weights is None else spread * given.weights[:, None])
        )
    for table, of_table in pieces.items():
        numbers, gradient = (torch.cat(parts) for parts in zip(*of_table, strict=True))
        changed[table] = numbers
        summed[table] = gradient
        if devices.is_host(numbers.device):
            changed[table], place = numbers.unique(return_inverse=True)
            whole = gradient.new_zeros((changed[table].numel(), gradient.shape[1]))
            summed[table] = whole.index_add_(0, place, gradient)
    return changed, summed


def changed_rows(rows: Mapping[str, Tensor], bags: Mapping[str, Bags]) -> dict[str, Tensor]:
    """Return the rows that `row_gradients` returns on devices other than CPUs, in the same order, from the same request."""
    changed = dict(rows)
    pieces: dict[str, list[Tensor]] = {}
    for given in bags.values():
        pieces.setdefault(given.table, []).append(given.rows)
    return changed | {table: torch.cat(of_table) for table, of_table in pieces.items()}
