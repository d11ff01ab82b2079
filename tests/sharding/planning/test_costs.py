"""The cost model against numbers worked out by hand: 4 ranks on 2 hosts, a table of 8 rows x 8 columns, 4 ids per rank."""

from dataclasses import replace

import numpy as np
import pytest

from sharding.config import CommunicationConfig, Kernel, Sharding, SparseOptimizer
from sharding.plan import Plan, TablePlan, shards_of
from sharding.planning.costs import phase_features, predict
from sharding.planning.load import TableLoad
from sharding.planning.prediction import Prediction
from sharding.planning.shares import shares_of
from sharding.planning.topology import CostConstants, Topology

# A second for each byte in a device, 10 within and 100 between hosts, 1,000 from host memory; a collective takes 10^6 seconds.
PLAIN = CostConstants(
    latency=0.0,
    network=1.0,
    seconds_per_input_id=0.0,
    lookup_read=1.0,
    lookup_write=0.0,
    seconds_per_lookup_id=0.0,
    copy=0.0,
    update_rows=1.0,
    update_gradients=0.0,
    seconds_per_update_id=0.0,
    host_access=1.0,
)
TOPOLOGY = Topology(
    "cuda",
    4,
    2,
    10**6,
    host_memory=10**6,
    device_bandwidth=1.0,
    host_bandwidth=1e-3,
    intra_host_bandwidth=0.1,
    inter_host_bandwidth=0.01,
    latency_seconds=1e6,
    constants=PLAIN,
)
SEQUENCE = TableLoad("t", 8, 8, pooled=False, ids_per_rank=4, vectors_per_rank=4, optimizer="sgd")
POOLED = replace(SEQUENCE, pooled=True, vectors_per_rank=2)
PEERS = 1 * 10 + 2 * 100  # seconds to send a byte to each other rank: one on the host, two on the other
SUMMED = (
    1 * 2 * 10 + 1 * 100
)  # the same, where the bags for both hosts are summed with the neighbour before one goes over


def predicted(
    load: TableLoad,
    sharding: Sharding,
    places: tuple[int, ...] = (),
    kernel: Kernel = "fused",
    topology: Topology = TOPOLOGY,
    communication: CommunicationConfig = CommunicationConfig(),  # noqa: B008
    num_ranks: int = 4,
) -> Prediction:
    plan = Plan(
        num_ranks, min(2, num_ranks), "cuda", {"t": TablePlan(sharding, kernel, load.num_rows, load.dim, places)}
    )
    return predict(plan, [load], replace(topology, num_devices=num_ranks), communication)


def test_table_wise_sequence() -> None:
    cost = predicted(SEQUENCE, "table_wise", (1,))
    assert cost.input_seconds[0].tolist() == [0, 4 * 8 * PEERS, 0, 0]
    assert cost.lookup_seconds[0].tolist() == [0, 16 * 8 * 4, 0, 0]  # 4 ids of 4 ranks, 8 numbers of 4 bytes
    assert cost.output_seconds[0].tolist() == [0, 4 * 8 * 4 * PEERS, 0, 0]
    assert cost.gradient_seconds.tolist() == cost.output_seconds.tolist()
    assert cost.update_seconds[0].tolist() == [0, 2 * 16 * 8 * 4, 0, 0]
    # Others send their ids and gradients, the owner what it looked up for the three others.
    assert cost.sent_bytes[0].tolist() == [4 * 8 + 4 * 32, 3 * 4 * 32, 4 * 8 + 4 * 32, 4 * 8 + 4 * 32]


def test_table_wise_bags_send_lengths_there_and_one_vector_per_bag_back() -> None:
    cost = predicted(POOLED, "table_wise", (1,))
    assert cost.input_seconds[0, 1] == (4 * 8 + 2 * 4) * PEERS
    assert cost.lookup_seconds[0, 1] == 16 * 8 * 4
    assert cost.output_seconds[0, 1] == 2 * 8 * 4 * PEERS
    assert cost.sent_bytes[0].tolist() == [40 + 64, 3 * 64, 40 + 64, 40 + 64]


def test_row_wise_sequence_sends_each_row_once() -> None:
    cost = predicted(SEQUENCE, "row_wise")
    assert cost.input_seconds[0].tolist() == [1 * 8 * PEERS] * 4  # one id in four
    assert cost.lookup_seconds[0].tolist() == [4 * 8 * 4] * 4
    assert cost.output_seconds[0].tolist() == [1 * 8 * 4 * PEERS] * 4
    assert cost.update_seconds[0].tolist() == [2 * 4 * 8 * 4] * 4
    assert cost.sent_bytes[0].tolist() == [3 * 8 + 2 * 3 * 32] * 4


def test_row_wise_bags_are_summed_on_the_way() -> None:
    cost = predicted(POOLED, "row_wise")
    assert cost.input_seconds[0].tolist() == [(1 * 8 + 2 * 4) * PEERS] * 4
    assert cost.output_seconds[0].tolist() == [2 * 8 * 4 * SUMMED] * 4  # both bags of every rank, in part
    assert cost.gradient_seconds[0].tolist() == [2 * 8 * 4 * SUMMED] * 4
    assert cost.sent_bytes[0].tolist() == [3 * 16 + 2 * 3 * 64] * 4


@pytest.mark.parametrize("sharding", ["column_wise", "table_column_wise"])
def test_column_blocks_get_all_ids_and_give_a_part_of_each_row(sharding: Sharding) -> None:
    cost = predicted(SEQUENCE, sharding, (0, 1))
    assert cost.input_seconds[0].tolist() == [4 * 8 * PEERS] * 2 + [0, 0]
    assert cost.lookup_seconds[0].tolist() == [16 * 4 * 4] * 2 + [0, 0]
    assert cost.output_seconds[0].tolist() == [4 * 4 * 4 * PEERS] * 2 + [0, 0]
    assert cost.sent_bytes[0].tolist() == [32 + 3 * 64 + 64] * 2 + [2 * 32 + 2 * 64] * 2


def test_two_column_blocks_on_one_rank_count_twice() -> None:
    once, twice = predicted(SEQUENCE, "table_wise", (1,)), predicted(SEQUENCE, "column_wise", (1, 1))
    assert twice.input_seconds[0, 1] == 2 * once.input_seconds[0, 1]
    assert twice.lookup_seconds[0, 1] == once.lookup_seconds[0, 1]


def test_table_row_wise_bags_are_on_one_host() -> None:
    cost = predicted(POOLED, "table_row_wise", (1,))
    assert cost.input_seconds[0].tolist() == [0, 0] + [(2 * 8 + 2 * 4) * PEERS] * 2  # half of the ids each
    assert cost.lookup_seconds[0].tolist() == [0, 0] + [8 * 8 * 4] * 2
    assert cost.output_seconds[0].tolist() == [0, 0] + [2 * 8 * 4 * SUMMED] * 2
    # The other host's ranks send ids to both owners, gradients to the one in the same place; an owner what it looked up to
    # three, ids to one, and the gradients of both hosts to its neighbour.
    assert cost.sent_bytes[0].tolist() == [2 * 24 + 64] * 2 + [24 + 3 * 64 + 2 * 64] * 2


def test_grid_shard_is_table_row_wise_by_column_blocks() -> None:
    cost = predicted(POOLED, "grid_shard", (0, 1))
    assert cost.input_seconds[0].tolist() == [(2 * 8 + 2 * 4) * PEERS] * 4
    assert cost.lookup_seconds[0].tolist() == [8 * 4 * 4] * 4
    assert cost.output_seconds[0].tolist() == [2 * 4 * 4 * SUMMED] * 4


def test_data_parallel_sends_its_gradient_only() -> None:
    cost = predicted(SEQUENCE, "data_parallel", kernel="dense")
    assert cost.input_seconds.sum() == cost.output_seconds.sum() == 0
    assert cost.lookup_seconds[0].tolist() == [4 * 8 * 4] * 4
    # All-reduced in each host (2 x 1/2), and half of it with the other host (2 x 1/2 x 1/2).
    assert cost.gradient_seconds[0].tolist() == [256 * (1.0 * 10 + 0.5 * 100)] * 4
    assert (
        cost.update_seconds[0].tolist() == [256 * (2 + 3)] * 4
    )  # weights read and written; gradient zeroed, added to, read
    assert cost.sent_bytes[0].tolist() == [256 * 1.5] * 4


def test_one_rank_sends_nothing_and_waits_for_no_collective() -> None:
    topology = replace(TOPOLOGY, constants=replace(PLAIN, latency=1.0))
    for load, sharding in ((SEQUENCE, "row_wise"), (POOLED, "row_wise"), (SEQUENCE, "table_wise")):
        cost = predicted(load, sharding, (0,) if sharding == "table_wise" else (), topology=topology, num_ranks=1)
        assert cost.input_seconds.sum() == cost.output_seconds.sum() == cost.gradient_seconds.sum() == 0
        assert cost.sent_bytes.sum() == 0


def test_precision_reduces_the_traffic_only() -> None:
    full = predicted(SEQUENCE, "row_wise")
    small = predicted(SEQUENCE, "row_wise", communication=CommunicationConfig(forward="bf16", backward="int8"))
    assert (2 * small.output_seconds == full.output_seconds).all()
    assert (4 * small.gradient_seconds == full.gradient_seconds).all()
    assert (small.input_seconds == full.input_seconds).all()
    assert small.sent_bytes[0, 0] == 3 * (8 + 16 + 8)


@pytest.mark.parametrize(
    ("optimizer", "state_bytes"),
    [
        ("sgd", 0),
        ("rowwise_adagrad", 8 * 4),
        ("adagrad", 256),
        ("adam", 512),
        ("lamb", 512),
        ("partial_rowwise_adam", 288),
    ],
)
def test_memory_of_weights_state_and_buffers(optimizer: SparseOptimizer, state_bytes: int) -> None:
    cost = predicted(replace(SEQUENCE, optimizer=optimizer), "table_wise", (1,))
    asking = 4 * 8 + 2 * 4 * 8 * 4  # ids, rows and their gradients of one rank
    buffers = 16 * 8 + 2 * 16 * 8 * 4
    assert cost.memory_bytes[0].tolist() == [asking, asking + 256 + state_bytes + buffers, asking, asking]
    assert cost.host_memory_bytes.sum() == 0


def test_state_is_moved_with_rows() -> None:
    per_row = predicted(replace(SEQUENCE, optimizer="rowwise_adagrad"), "table_wise", (1,))
    per_number = predicted(replace(SEQUENCE, optimizer="adam"), "table_wise", (1,))
    assert per_row.update_seconds[0, 1] == 2 * 16 * (8 + 1) * 4
    assert per_number.update_seconds[0, 1] == 2 * 16 * (8 + 16) * 4


def test_tables_in_host_memory() -> None:
    load = replace(SEQUENCE, optimizer="adagrad", cache_load_factor=0.25)
    fused = predicted(load, "table_wise", (1,))
    uvm = predicted(load, "table_wise", (1,), "fused_uvm")
    cached = predicted(load, "table_wise", (1,), "fused_uvm_caching")
    assert uvm.host_memory_bytes[0].tolist() == cached.host_memory_bytes[0].tolist() == [0, 512, 0, 0]
    assert fused.memory_bytes[0, 1] - uvm.memory_bytes[0, 1] == 512
    assert (
        cached.memory_bytes[0, 1] - uvm.memory_bytes[0, 1] == 64 + 8 * 4
    )  # a quarter of the weights, and the cache's index
    read = 16 * 8 * 4
    assert uvm.lookup_seconds[0, 1] - fused.lookup_seconds[0, 1] == 1000 * read
    assert cached.lookup_seconds[0, 1] - fused.lookup_seconds[0, 1] == 750 * read
    assert cached.update_seconds[0, 1] - fused.update_seconds[0, 1] == 2 * 750 * read


def test_tables_of_one_sharding_share_their_collectives() -> None:
    topology = replace(TOPOLOGY, constants=replace(PLAIN, network=0.0, latency=1.0))
    tables = {
        "a": TablePlan("row_wise", "fused", 8, 8),
        "b": TablePlan("row_wise", "fused", 8, 8),
        "c": TablePlan("data_parallel", "dense", 8, 8),
        "d": TablePlan("table_row_wise", "fused", 8, 8, (0,)),
    }
    loads = [replace(POOLED if name == "d" else SEQUENCE, name=name) for name in tables]
    cost = predict(Plan(4, 2, "cuda", tables), loads, topology)
    assert cost.input_seconds[:, 3].tolist() == [1.5e6, 1.5e6, 0, 3e6]
    assert cost.output_seconds[:, 3].tolist() == [0.5e6, 0.5e6, 0, 2e6]
    assert cost.gradient_seconds[:, 3].tolist() == [0.5e6, 0.5e6, 1e6, 2e6]


def test_replica_groups_each_hold_all_tables() -> None:
    tables = {"t": TablePlan("row_wise", "fused", 8, 8)}
    one = predict(Plan(2, 2, "cuda", tables), [SEQUENCE], replace(TOPOLOGY, num_devices=2))
    two = predict(Plan(4, 2, "cuda", tables, replica_groups=2), [SEQUENCE], TOPOLOGY)
    assert two.input_seconds[0].tolist() == [*one.input_seconds[0].tolist()] * 2
    assert two.memory_bytes[0].tolist() == [*one.memory_bytes[0].tolist()] * 2


def test_prediction_is_linear_in_the_constants() -> None:
    rng = np.random.default_rng(0)
    constants = CostConstants(*rng.uniform(0.5, 2.0, 11))
    topology = replace(TOPOLOGY, constants=constants)
    tables = {
        "a": TablePlan("row_wise", "fused", 8, 8),
        "b": TablePlan("column_wise", "fused_uvm_caching", 8, 8, (3, 0)),
        "c": TablePlan("data_parallel", "dense", 8, 8),
        "d": TablePlan("grid_shard", "fused", 8, 8, (1, 0)),
    }
    loads = [replace(POOLED if name in "ad" else SEQUENCE, name=name) for name in tables]
    plan = Plan(4, 2, "cuda", tables)
    phases = predict(plan, loads, topology).phases
    designs = phase_features(plan, loads, topology)
    assert designs.keys() == phases.keys()
    for phase, (features, names) in designs.items():
        product = features @ np.array([getattr(constants, name) for name in names])
        np.testing.assert_allclose(product, phases[phase], rtol=1e-12)
        doubled = replace(topology, constants=CostConstants(*(2 * value for value in vars(constants).values())))
        np.testing.assert_allclose(predict(plan, loads, doubled).phases[phase], 2 * phases[phase], rtol=1e-12)


@pytest.mark.parametrize(
    ("sharding", "places"),
    [
        ("data_parallel", ()),
        ("row_wise", ()),
        ("table_wise", (4,)),
        ("column_wise", (5, 0, 0)),
        ("table_row_wise", (1,)),
        ("grid_shard", (1, 0, 1)),
    ],
)
def test_shares_are_sums_over_shards(sharding: Sharding, places: tuple[int, ...]) -> None:
    table = TablePlan(sharding, "fused", 100, 12, places)
    shares = shares_of([table], 6, 3)
    expected = np.zeros((6, 6))
    for shard in shards_of(table, 6, 3):
        part = shard.num_rows / 100
        numbers = shard.num_rows * shard.num_columns
        expected[:, shard.rank] += [1, numbers, shard.num_rows, part, part * shard.num_columns, shard.num_columns]
    actual = [shares.blocks, shares.numbers, shares.rows, shares.routed, shares.width, shares.columns]
    np.testing.assert_allclose(np.concatenate(actual), expected)


def test_ids_of_averaged_bags_travel_with_their_weights():
    topology = Topology("cpu", 2, 2, 10**9)
    plan = Plan(2, 2, "cpu", {"t": TablePlan("row_wise", "fused", 8, 8)})
    plain, weighted = (
        predict(plan, [replace(POOLED, weighted=is_weighted)], topology) for is_weighted in (False, True)
    )
    # Of 4 ids a rank sends half to the other one.
    assert (weighted.sent_bytes - plain.sent_bytes).tolist() == [[2 * 4, 2 * 4]]
    assert (weighted.memory_bytes > plain.memory_bytes).all()
