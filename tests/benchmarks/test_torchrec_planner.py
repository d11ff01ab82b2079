"""Our search compared with TorchRec's, on the same costs and the same goal."""

import pytest

from benchmarks.torchrec_planner import torchrec_plan
from sharding.errors import PlacementError
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.planner import make_plan
from sharding.planning.topology import GIB, Topology, described


def loads_of(count: int) -> list[TableLoad]:
    """Return pooled and sequence tables of two widths, from 10^3 rows up."""
    return [
        TableLoad(
            f"t{n}",
            10**3 * 4 ** (n % 6),
            (64, 128)[n % 2],
            pooled=n % 3 > 0,
            ids_per_rank=2000.0 * (1 + n % 5),
            vectors_per_rank=500.0 if n % 3 else 2000.0 * (1 + n % 5),
            optimizer="adagrad" if n % 4 else "rowwise_adagrad",
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "topology"),
    [(4, Topology("cpu", 2, 2, 8 * GIB)), (10, described("h100-80gb", 8)), (12, described("a100-80gb", 16))],
    ids=["2 cpus", "8 gpus", "16 gpus on 2 hosts"],
)
def test_ours_is_at_least_as_good_as_torchrecs(count: int, topology: Topology) -> None:
    loads = loads_of(count)
    actual, expected = make_plan(loads, topology), torchrec_plan(loads, topology, timeout_seconds=60)
    assert expected.tables.keys() == actual.tables.keys()
    for name, table in expected.tables.items():
        numbers = sum(shard.num_rows * shard.num_columns for shard in expected.shards(name))
        copies = topology.num_devices if table.sharding == "data_parallel" else 1
        assert numbers == copies * table.num_rows * table.dim
    best = predict(expected, loads, topology)
    assert best.memory_bytes.sum(axis=0).max() <= topology.capacity_bytes
    assert predict(actual, loads, topology).step_seconds <= best.step_seconds * (1 + 1e-9)


def test_neither_finds_a_plan_where_there_is_none() -> None:
    loads, topology = [TableLoad("t", 10**8, 64, False, 100, 100)], Topology("cpu", 2, 2, GIB)
    for plan in (make_plan, torchrec_plan):
        with pytest.raises(PlacementError):
            plan(loads, topology)
