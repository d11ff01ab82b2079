"""The share of every table on every rank, as arrays: the shards of a plan without an object for each. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.plan import TablePlan

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """Arrays (T, R) by table and rank, summed over the table's shards on the rank."""

    blocks: Float64  # number of shards
    numbers: Float64  # rows x columns
    rows: Float64  # a row in two column blocks counts twice
    routed: Float64  # part of a rank's ids that is sent here if ids are spread evenly; 1 for every block of all rows
    width: Float64  # mean numbers read per looked-up id
    columns: Float64  # width of the bags that can be summed here


def shares_of(tables: Sequence[TablePlan], num_ranks: int, ranks_per_host: int) -> Shares:
    """Return the shares of the ranks 0 .. num_ranks - 1, which hold all shards (of one replica group)."""
    shape = len(tables), num_ranks
    blocks, rows, numbers, part, width = (np.zeros(shape) for _ in range(5))
    columns = np.zeros(shape)
    for t, table in enumerate(tables):
        match table.sharding:
            case "data_parallel":
                ranks = np.arange(num_ranks)
                held = np.full(num_ranks, float(table.num_rows))
                num_columns = table.dim
            case "row_wise":
                ranks = np.arange(num_ranks)
                held = row_blocks(table.num_rows, num_ranks)
                num_columns = table.dim
            case "table_wise" | "column_wise" | "table_column_wise":
                ranks = np.array(table.places)
                held = np.full(ranks.size, float(table.num_rows))
                num_columns = table.dim // ranks.size
            case "table_row_wise" | "grid_shard":
                hosts = np.array(table.places)
                ranks = (hosts[:, None] * ranks_per_host + np.arange(ranks_per_host)).ravel()
                held = np.tile(row_blocks(table.num_rows, ranks_per_host), hosts.size)
                num_columns = table.dim // hosts.size
        np.add.at(blocks[t], ranks, 1.0)
        np.add.at(rows[t], ranks, held)
        np.add.at(numbers[t], ranks, held * num_columns)
        np.add.at(part[t], ranks, held / table.num_rows)
        np.add.at(width[t], ranks, held / table.num_rows * num_columns)
        np.add.at(columns[t], ranks, float(num_columns))
    return Shares(blocks, numbers, rows, part, width, columns)


def row_blocks(num_rows: int, num_ranks: int) -> Float64:
    """Return the rows of each block, (num_ranks,), as sharding.plan.shards_of cuts them."""
    block = -(-num_rows // num_ranks)
    return np.clip(num_rows - np.arange(num_ranks) * block, 0, block).astype(np.float64)
