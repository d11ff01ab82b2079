"""The account that the planner keeps is what the cost model predicts of the plan that comes of it."""

from dataclasses import replace

import numpy as np
import pytest

from sharding.config import CommunicationConfig
from sharding.plan import Plan
from sharding.planning.costs import predict
from sharding.planning.layout import Layout, Placed
from sharding.planning.load import TableLoad
from sharding.planning.options import options_of
from sharding.planning.topology import Topology, described

BF16 = CommunicationConfig(forward="bf16", backward="bf16")
ROWS = 8 * 10_000  # the same on every rank
SEQUENCE = TableLoad(
    "sequence", ROWS, 128, False, 5000, 5000, optimizer="adagrad", shardings=("column_wise", "row_wise")
)
BAGS = TableLoad(
    "bags",
    ROWS,
    256,
    True,
    9000,
    1000,
    optimizer="sgd",
    shardings=("table_row_wise", "grid_shard", "table_column_wise"),
)
COPIED = TableLoad("copied", 1000, 64, False, 5000, 5000, shardings=("data_parallel", "table_wise"))


def drawn_layout(topology: Topology, seed: int) -> tuple[Layout, list[TableLoad], Plan]:
    rng = np.random.default_rng(seed)
    loads = [replace(load, name=f"{load.name}{n}") for load in (SEQUENCE, BAGS, COPIED) for n in range(3)]
    layout = Layout(topology, sum(options_of(load, topology, BF16)[0].asking_bytes for load in loads))
    for load in loads:
        options = options_of(load, topology, BF16)
        for _ in range(2):  # put, taken up again, and put otherwise
            if load.name in layout.tables:
                layout.take(load.name)
            option = options[rng.integers(len(options))]
            places = layout.best_places(option)
            assert places is not None
            layout.put(load.name, Placed(option, places))
    tables = {
        name: replace(placed.option.table, places=tuple(placed.places.tolist()))
        for name, placed in layout.tables.items()
    }
    return layout, loads, Plan(topology.num_devices, topology.devices_per_host, topology.device, tables)


@pytest.mark.parametrize("seed", range(10))
def test_step_and_memory_are_those_of_the_prediction(seed: int) -> None:
    topology = described("h100-80gb", 8, 4)
    layout, loads, plan = drawn_layout(topology, seed)
    prediction = predict(plan, loads, topology, BF16)
    assert layout.step_seconds == pytest.approx(prediction.step_seconds, rel=1e-9)
    assert layout.used_bytes == pytest.approx(prediction.memory_bytes.sum(), rel=1e-9)
    for phase in prediction.phases.values():
        seconds = phase.sum(axis=0)
        assert seconds[layout.busiest_ranks].max() == pytest.approx(seconds.max(), rel=1e-9)


def test_no_place_where_there_is_no_room() -> None:
    (option,) = options_of(
        replace(SEQUENCE, shardings=("table_wise",), kernel="fused"), described("h100-80gb", 2), BF16
    )
    need = option.block_bytes
    for memory, holds in ((0.9 * need, 0), (1.9 * need, 1), (2.1 * need, 2)):
        layout = Layout(replace(described("h100-80gb", 1), device_memory=int(memory), reserved_fraction=0.0))
        for n in range(3):
            places = layout.best_places(option)
            if places is not None:
                layout.put(f"t{n}", Placed(option, places))
        assert len(layout.tables) == holds
        assert layout.fits


def test_a_host_holds_no_more_than_its_memory_for_all_its_ranks() -> None:
    topology = described("h100-80gb", 4, 2)
    (option,) = options_of(replace(SEQUENCE, shardings=("table_wise",), kernel="fused_uvm"), topology, BF16)
    layout = Layout(replace(topology, host_memory=int(1.5 * option.host_bytes)))
    hosts = []
    for n in range(3):
        places = layout.best_places(option)
        if places is not None:
            layout.put(f"t{n}", Placed(option, places))
            hosts.append(int(places[0]) // 2)
    assert sorted(hosts) == [0, 1]
