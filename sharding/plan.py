"""The plan: the shards of every table as a plain value, a function of its inputs, stored in plan.json and in every checkpoint.

It contains what TorchRec needs (sharding.tables.apply_plan) and nothing else. Predictions are separate (sharding.planning).
Imports no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

from sharding.config import Kernel, Sharding


@dataclass(frozen=True)
class Shard:
    """A block of a table on one rank: rows row .. row + num_rows - 1, columns column .. column + num_columns - 1."""

    rank: int
    row: int
    column: int
    num_rows: int
    num_columns: int


@dataclass(frozen=True)
class TablePlan:
    """The shards of one table of num_rows x dim numbers.

    `places` are the ranks of the column blocks of a table_wise (one block), column_wise or table_column_wise table. They are
    the hosts of the column blocks of a table_row_wise (one block) or grid_shard table, with rows split over all ranks of
    that host. They are empty for row_wise (rows split over all ranks) and data_parallel (a copy on every rank). Column blocks
    have equal widths.
    """

    sharding: Sharding
    kernel: Kernel
    num_rows: int
    dim: int
    places: tuple[int, ...] = ()  # ranks or hosts of the column blocks, see above


@dataclass(frozen=True)
class Plan:
    """The plan of all tables.

    With replica groups, each group of ranks holds all tables, and the ranks and hosts in `tables` are those of one group.
    """

    world_size: int
    local_world_size: int  # ranks per host
    device: str  # "cpu" or "cuda"
    tables: dict[str, TablePlan]
    inputs: str = ""  # sha256 of all inputs of the plan; equal inputs give an equal plan
    replica_groups: int = 1  # groups of ranks that each hold all tables

    def shards(self, table: str) -> list[Shard]:
        """Return the shards of a table in the order that TorchRec expects: by column block, then by row."""
        return shards_of(self.tables[table], self.world_size // self.replica_groups, self.local_world_size)

    def values(self) -> dict[str, Any]:
        """Return the plan as plain values, for JSON."""
        return asdict(self)


def plan_of(values: dict[str, Any]) -> Plan:
    """Return the plan of the result of `Plan.values`, also after a conversion to JSON. Raises TypeError or KeyError otherwise."""
    tables = {
        name: TablePlan(**{**table, "places": tuple(table["places"])}) for name, table in values["tables"].items()
    }
    return Plan(**{**values, "tables": tables})


def shards_of(table: TablePlan, world_size: int, local_world_size: int) -> list[Shard]:
    """Return the shards of a table, in blocks of ceil(rows / ranks) rows like TorchRec's. The last can be smaller or empty."""
    match table.sharding:
        case "data_parallel":
            return [Shard(rank, 0, 0, table.num_rows, table.dim) for rank in range(world_size)]
        case "row_wise":
            return _row_blocks(table, range(world_size), 0, table.dim)
        case "table_wise" | "column_wise" | "table_column_wise":
            width = table.dim // len(table.places)
            return [Shard(rank, 0, n * width, table.num_rows, width) for n, rank in enumerate(table.places)]
        case "table_row_wise" | "grid_shard":
            width = table.dim // len(table.places)
            return [
                shard
                for n, host in enumerate(table.places)
                for shard in _row_blocks(
                    table, range(host * local_world_size, (host + 1) * local_world_size), n * width, width
                )
            ]


def _row_blocks(table: TablePlan, ranks: range, column: int, num_columns: int) -> list[Shard]:
    block = -(-table.num_rows // len(ranks))
    return [
        Shard(rank, min(n * block, table.num_rows), column, max(0, min(block, table.num_rows - n * block)), num_columns)
        for n, rank in enumerate(ranks)
    ]
