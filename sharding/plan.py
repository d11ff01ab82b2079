"""Where the shards of every table lie: a plain value, a function of its inputs, kept in plan.json and in every checkpoint.

It says what TorchRec is told (sharding.tables.apply_plan), and no more than that: predictions stand beside it (sharding.planning).
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
    """How one table of num_rows x dim numbers lies.

    places: the rank of each column block of a table_wise (one block), column_wise or table_column_wise table; the host of each
    column block of a table_row_wise (one block) or grid_shard table, whose rows are spread over that host's ranks; empty for
    row_wise (spread over all ranks) and data_parallel (whole on all ranks). Column blocks are equally wide.
    """

    sharding: Sharding
    kernel: Kernel
    num_rows: int
    dim: int
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The plan of all tables for `world_size` ranks, `local_world_size` of them on each host. device: "cpu" or "cuda".

    inputs: sha256 over all that the plan was computed from; equal inputs give an equal plan.
    replica_groups: groups of ranks that each hold all tables; ranks and hosts in `tables` are then those of one group.
    """

    world_size: int
    local_world_size: int
    device: str
    tables: dict[str, TablePlan]
    inputs: str = ""
    replica_groups: int = 1

    def shards(self, table: str) -> list[Shard]:
        """The shards of a table in the order that TorchRec expects: by column block, then by row."""
        return shards_of(self.tables[table], self.world_size // self.replica_groups, self.local_world_size)

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def plan_of(values: dict[str, Any]) -> Plan:
    """The plan that `Plan.values` gave, also after a journey through JSON. Raises TypeError, KeyError for anything else."""
    tables = {
        name: TablePlan(**{**table, "places": tuple(table["places"])}) for name, table in values["tables"].items()
    }
    return Plan(**{**values, "tables": tables})


def shards_of(table: TablePlan, world_size: int, local_world_size: int) -> list[Shard]:
    """Blocks of ceil(rows / ranks) rows, as TorchRec cuts them; the last ones may be smaller, or empty."""
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
