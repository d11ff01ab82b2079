"""Initial weights of tables as a function of (seed, table, row, column): the same model under every plan.

A counter-based generator (SplitMix64 of Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195) gives each weight its own
number, so a shard is filled without communication. A row that passes to another id (sharding.dynamic_ids.mapping) gets the
weights of its next generation: other numbers, also a function of the row. All rows start in generation 0.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from sharding.tables.local_shards import local_shards, table_of

# Weights computed at a time. Each of the ten intermediate tensors then has 1 MiB and stays in the second-level cache.
CHUNK_WEIGHTS = 1 << 17


@torch.no_grad()
def initialize_tables(module: nn.Module, seed: int, std: dict[str, float]) -> None:
    """Fill every table of `module`, sharded or not, with normal numbers. `std`: standard deviation by table name.

    Parameter names end in `<table>.weight`, which is TorchRec's convention.
    """
    for name, value in module.state_dict().items():
        table = table_of(name, std)
        if table is not None:
            for shard in local_shards(value):
                _fill(shard.tensor, _key(seed, table), shard.first_row, shard.first_column, value.size(1), std[table])


def _key(seed: int, table: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{table}".encode()).digest()[:7], "little")


def initial_weights(
    seed: int, table: str, rows: Tensor, generations: Tensor, columns: range, num_columns: int, std: float
) -> Tensor:
    """Return the initial weights of rows in some columns of the table, (R, len(columns)) float64.

    In generation 0 they are those of `initialize_tables`.

    Args:
        seed: of the run.
        table: name of the table.
        rows: (R,) int64.
        generations: (R,) int64, of the rows.
        columns: columns of the result.
        num_columns: of the table.
        std: standard deviation.
    """
    # Generation 0 uses the key itself. The hash of a later generation moves the row to an unrelated sequence.
    keys = _key(seed, table) + torch.where(generations > 0, _split_mix(generations), 0)
    return _weights(keys[:, None], rows, columns, num_columns) * std


def _fill(weights: Tensor, key: int, first_row: int, first_column: int, num_columns: int, std: float) -> None:
    rows, columns = weights.shape
    rows_each = max(1, CHUNK_WEIGHTS // max(1, columns))
    for start in range(0, rows, rows_each):
        stop = min(rows, start + rows_each)
        row_index = torch.arange(first_row + start, first_row + stop, dtype=torch.int64)
        filled = _weights(key, row_index, range(first_column, first_column + columns), num_columns)
        weights[start:stop] = (filled * std).to(weights.dtype)


def _weights(key: int | Tensor, rows: Tensor, columns: range, num_columns: int) -> Tensor:
    column_index = torch.arange(columns.start, columns.stop, dtype=torch.int64)
    return _normal(rows[:, None] * num_columns + column_index[None, :], key)


def _normal(counter: Tensor, key: int | Tensor) -> Tensor:
    """Return standard normal numbers by Box & Muller (1958), in float64, from two hashes of each counter."""
    radius = _uniform(_split_mix(counter * 2 + key))
    angle = _uniform(_split_mix(counter * 2 + 1 + key))
    return radius.log_().mul_(-2.0).sqrt_().mul_(angle.mul_(2.0 * math.pi).cos_())


def _uniform(bits: Tensor) -> Tensor:
    """Return numbers in (0, 1] from the top 53 of 64 bits, never zero."""
    return _shift_right(bits, 11).add_(1).to(torch.float64).mul_(2.0**-53)


def _split_mix(z: Tensor) -> Tensor:
    # The published constants as signed 64-bit numbers; int64 products wrap.
    z = z * -7046029254386353131  # 0x9E3779B97F4A7C15
    z.bitwise_xor_(_shift_right(z, 30)).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
    z.bitwise_xor_(_shift_right(z, 27)).mul_(-7723592293110705685)  # 0x94D049BB133111EB
    return z.bitwise_xor_(_shift_right(z, 31))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift logically, unlike torch's >> on int64, which keeps the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
