"""What of every table lies on every rank, as arrays: the shards of a plan without an object for each. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.plan import TablePlan

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """All (T, R), by table and rank, summed over the shards of the table that lie there.

    blocks: shards. numbers: rows x columns. rows: rows, so that a row in two column blocks counts twice. routed: of the ids
    that a rank looks up, the part that is sent here, if ids are spread evenly over rows; 1 for every block of all rows.
    width: numbers read for an id that is looked up, on average. columns: width of the bags that can be summed up here.
    """

    blocks: Float64
    numbers: Float64
    rows: Float64
    routed: Float64
    width: Float64
    columns: Float64


def shares_of(tables: Sequence[TablePlan], num_ranks: int, ranks_per_host: int) -> Shares:
    """The shares of the ranks 0 .. num_ranks - 1, which hold all shards (of one group, where groups hold replicas)."""
    shape = len(tables), num_ranks
    blocks, rows, numbers, part, width = (np.zeros(shape) for _ in range(5))
    columns = np.zeros(shape)
    for t, table in enumerate(tables):
        match table.sharding:
            case "data_parallel":
                ranks, held, num_columns = np.arange(num_ranks), np.full(num_ranks, float(table.num_rows)), table.dim
            case "row_wise":
                ranks, held, num_columns = np.arange(num_ranks), row_blocks(table.num_rows, num_ranks), table.dim
            case "table_wise" | "column_wise" | "table_column_wise":
                ranks = np.array(table.places)
                held, num_columns = np.full(ranks.size, float(table.num_rows)), table.dim // ranks.size
            case "table_row_wise" | "grid_shard":
                hosts = np.array(table.places)
                ranks = (hosts[:, None] * ranks_per_host + np.arange(ranks_per_host)).ravel()
                held, num_columns = (
                    np.tile(row_blocks(table.num_rows, ranks_per_host), hosts.size),
                    table.dim // hosts.size,
                )
        np.add.at(blocks[t], ranks, 1.0)
        np.add.at(rows[t], ranks, held)
        np.add.at(numbers[t], ranks, held * num_columns)
        np.add.at(part[t], ranks, held / table.num_rows)
        np.add.at(width[t], ranks, held / table.num_rows * num_columns)
        np.add.at(columns[t], ranks, float(num_columns))
    return Shares(blocks, numbers, rows, part, width, columns)


def row_blocks(num_rows: int, num_ranks: int) -> Float64:
    """(num_ranks,) rows of each block, as sharding.plan.shards_of cuts them."""
    block = -(-num_rows // num_ranks)
    return np.clip(num_rows - np.arange(num_ranks) * block, 0, block).astype(np.float64)
