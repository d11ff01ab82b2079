"""Rows that are written from outside arrive in a table and in the cache of a GPU, and nothing else changes."""

from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbeddingLocation
from torch import Tensor

from sharding.tables import cached_rows
from sharding.tables.cached_rows import write_rows
from tests.sharding.tables.caches import UNTOUCHED, cache_slots, give_cache
from tests.support.device_work import recorded_waits

ROWS = torch.tensor([4, 0, 3])
VALUES = torch.tensor([[4.0, 4.5], [0.25, 0.5], [3.0, 3.5]], dtype=torch.float64)
WIDEST = 3


@dataclass
class TwoTables:
    """A module of fbgemm with tables of 6 rows of width 3 and of 5 rows of width 2. The second one has two features."""

    tables: list[Tensor] = field(default_factory=lambda: [torch.ones(6, 3), torch.ones(5, 2)])
    feature_table_map: list[int] = field(default_factory=lambda: [0, 1, 1])
    lxu_cache_weights: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    lxu_cache_state: Tensor = field(default_factory=lambda: torch.empty(0))
    cache_hash_size_cumsum: Tensor = field(default_factory=lambda: torch.zeros(1))
    total_cache_hash_size: int = 0
    weights_physical_placements: list[int] = field(default_factory=lambda: [EmbeddingLocation.HOST.value] * 2)

    def split_embedding_weights(self) -> list[Tensor]:
        return [table[:] for table in self.tables]


def written(held: list[int]) -> tuple[TwoTables, Tensor]:
    """Write rows of the second table while a cache holds rows `held`, numbered over both tables. Return its cached rows."""
    module = TwoTables()
    cache = give_cache(module, torch.tensor(held), WIDEST)
    with mock.patch("sharding.tables.cached_rows.slots_of", cache_slots), recorded_waits() as waits:
        write_rows([TwoTables(), module], module.tables[1], ROWS, VALUES)
    assert waits == []
    return module, cache


@pytest.mark.parametrize(
    "held",
    [
        [6 + 3, 4, 6 + 4, 6 + 0],  # all rows, and row 4 of the other table
        [0, 6 + 3, -1, 4],  # one of them
        [6 + 2, 0, 6 + 1, 3],  # none, but rows of the same numbers of the other table
        [-1, -1, -1, -1],
    ],
)
def test_rows_are_written_to_the_table_and_to_slots_that_hold_them(held):
    module, cache = written(held)
    expected = torch.ones(5, 2)
    expected[ROWS] = VALUES.float()
    assert torch.equal(module.tables[1], expected)
    assert torch.equal(module.tables[0], torch.ones(6, 3))
    of_cache = torch.full((4, WIDEST), UNTOUCHED)
    for row, values in zip(ROWS.tolist(), VALUES, strict=True):
        if 6 + row in held:
            of_cache[held.index(6 + row), :2] = values.float()
    assert torch.equal(cache, of_cache)


def test_a_table_that_is_not_cached_is_written_in_its_memory_only():
    module = TwoTables()
    cache = give_cache(module, torch.tensor([0, 3, 4, 9]), WIDEST)
    module.weights_physical_placements[1] = EmbeddingLocation.DEVICE.value
    with mock.patch("sharding.tables.cached_rows.slots_of", cache_slots):
        write_rows([module], module.tables[1], ROWS, VALUES)
    assert torch.equal(module.tables[1][ROWS], VALUES.float())
    assert torch.equal(cache, torch.full((4, WIDEST), UNTOUCHED))


def test_no_rows_write_nothing():
    module = TwoTables()
    write_rows([module], module.tables[0], torch.empty(0, dtype=torch.int64), torch.empty(0, 3))
    assert torch.equal(module.tables[0], torch.ones(6, 3))


def test_fbgemm_still_looks_slots_up_as_here():
    schema = torch.ops.fbgemm.lxu_cache_lookup.default._schema
    assert [given.name for given in schema.arguments[:3]] == [
        "linear_cache_indices",
        "lxu_cache_state",
        "invalid_index",
    ]
    assert all(given.has_default_value() for given in schema.arguments[2:])
    calls = mock.Mock(return_value=torch.tensor([2, -1], dtype=torch.int32))
    with mock.patch.object(torch.ops.fbgemm, "lxu_cache_lookup", calls):
        slots = cached_rows.slots_of(TwoTables(total_cache_hash_size=11), torch.tensor([3, 4]))
    assert slots.tolist() == [2, -1]
    assert calls.call_args.args[2] == 11
