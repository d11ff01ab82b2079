"""Values of a feature that are added up where their rows lie: the values of each owner are a bag, and a bag gives one vector.

    said(o) = sum over values x of  w E[x]          w: one, or one over the number of values of o (mean)

It is what models.features.values has of looked-up rows, up to rounding. Between ranks travel the values of every bag, as often as
owners have them, and one vector for each owner; of rows each distinct one travels once, however many owners ask for it.
Means are sums with weights: TorchRec's own mean is wrong where rows of a table lie on several ranks (sharding.tables.apply_plan).

Shapes: M owners, n values of all of them, W width of a row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Pooling = Literal["mean", "sum"]


@dataclass(frozen=True)
class Bags:
    """The values of one feature for M owners. table: of the rows.

    rows: (n,) int64, owner after owner; lengths: (M,) int64, how many each has, also none; weights: (n,) float32, none where
    rows are added up as they are.
    """

    table: str
    rows: Tensor
    lengths: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Bags":
        weights = None if self.weights is None else self.weights.to(device)
        return Bags(self.table, self.rows.to(device), self.lengths.to(device), weights)


def bags_of(table: str, rows: np.ndarray, lengths: np.ndarray, pooling: Pooling) -> Bags:
    """rows (n,), owner after owner, and how many each owner has (M,)."""
    weights = None
    if pooling == "mean":
        weights = torch.from_numpy(np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32))
    return Bags(table, _int64(rows), _int64(lengths), weights)


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def joined_bags(pieces: Iterable[Bags]) -> Bags:
    """Bags of one table, one after another. There is at least one piece."""
    found = list(pieces)
    weights = [bags.weights for bags in found if bags.weights is not None]
    return Bags(
        found[0].table,
        torch.cat([bags.rows for bags in found]),
        torch.cat([bags.lengths for bags in found]),
        torch.cat(weights) if weights else None,
    )


def no_bags(table: str, pooling: Pooling, device: torch.device) -> Bags:
    """Of no owner."""
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Bags(table, nothing, nothing, torch.zeros(0, device=device) if pooling == "mean" else None)


def row_gradients(
    rows: Mapping[str, Tensor], bags: Mapping[str, Bags], gradients: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By table (rows, gradients of them), (R,) and (R, W): what gradients of looked-up rows and of bags do to rows.

    gradients: by table of `rows`, and by name of `bags`. Of a table that is looked up as bags each row comes once.
    """
    found = {table: gradients[table] for table in rows}
    asked = dict(rows)
    pieces: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, given in bags.items():
        num_rows = given.rows.numel()
        spread = gradients[name].repeat_interleave(given.lengths, dim=0, output_size=num_rows)
        pieces.setdefault(given.table, []).append(
            (given.rows, spread if given.weights is None else spread * given.weights[:, None])
        )
    for table, of_table in pieces.items():
        numbers, gradient = (torch.cat(parts) for parts in zip(*of_table, strict=True))
        asked[table], place = numbers.unique(return_inverse=True)
        found[table] = gradient.new_zeros((asked[table].numel(), gradient.shape[1])).index_add_(0, place, gradient)
    return asked, found
