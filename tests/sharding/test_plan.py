"""A plan cuts each table into shards that cover it exactly once."""

from itertools import product

import numpy as np
import pytest

from sharding.plan import TablePlan, shards_of

ROWS = (1, 3, 8, 10, 17)


@pytest.mark.parametrize(("num_rows", "world_size"), product(ROWS, (1, 2, 3, 4)))
@pytest.mark.parametrize("sharding", ["row_wise", "table_row_wise", "column_wise", "table_wise", "table_column_wise"])
def test_shards_cover_a_table_once(sharding: str, num_rows: int, world_size: int) -> None:
    dim = 8
    places = {
        "row_wise": (),
        "table_wise": (world_size - 1,),
        "column_wise": tuple(rank % world_size for rank in range(2)),
        "table_row_wise": (0,),
        "table_column_wise": tuple(rank % world_size for rank in range(2)),
    }[sharding]
    plan = TablePlan(sharding, "fused", num_rows, dim, places)  # type: ignore[arg-type]
    covered = np.zeros((num_rows, dim), np.int64)
    for shard in shards_of(plan, world_size, world_size):
        covered[shard.row : shard.row + shard.num_rows, shard.column : shard.column + shard.num_columns] += 1
    assert (covered == 1).all()
