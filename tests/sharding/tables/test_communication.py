"""16-bit numbers between ranks: a little less exact, by as much as fp16 is, and never in silence something else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.tables import EmbeddingTables, TableSpec
from sharding.config import CommunicationConfig, TableConfig
from sharding.errors import PlacementError
from sharding.plan import Plan, TablePlan
from sharding.support import codec_reason
from sharding.tables.apply_plan import shard_tables
from sharding.world import World
from tests.sharding.tables.parity import Combination, train_sharded, train_whole
from tests.sharding.tables.test_parity import WORKING, name_of

FP16 = CommunicationConfig(forward="fp16", backward="fp16")
# Every sharding that sends rows, once: the optimizer plays no part.
SENDING = [
    replace(next(c for c in WORKING if (c.pooled, c.wide) == kind and c.optimizer == "adagrad"), communication=way)
    for kind in sorted({(c.pooled, c.wide) for c in WORKING if c.wide != "data_parallel"})
    for way in (FP16, CommunicationConfig(forward="fp16"), CommunicationConfig(backward="fp16"))
]
HALF_ULP = 2.0**-11  # the largest relative error of a number rounded to fp16


def identify(combination: Combination) -> str:
    return f"{name_of(combination)} {combination.communication.forward} {combination.communication.backward}"


@pytest.fixture(scope="module")
def trained(rank_pool):
    """Return the results of two runs, by combination."""
    return [rank_pool.run(4, train_sharded, SENDING, 2, deadline=180.0)[0] for _ in range(2)]


@pytest.mark.parametrize("combination", SENDING, ids=identify)
def test_training_differs_by_no_more_than_rounding_and_is_repeatable(trained, combination):
    (_, first), (_, second) = (run[combination] for run in trained)
    _, exact = train_whole(combination)
    for table in exact:
        assert torch.equal(first[table], second[table])
        assert not torch.allclose(first[table], exact[table], rtol=1e-6, atol=1e-7)
        # Five steps of 0.05 at most, each from numbers that are wrong by half a unit in their last place.
        torch.testing.assert_close(first[table], exact[table], rtol=0.0, atol=2 * 5 * 0.05 * HALF_ULP)


def look_up_and_back(world: World, communication: CommunicationConfig, gradient: float) -> tuple[torch.Tensor, ...]:
    """Return (rows as looked up, rows as they are, what a step of rate 1 took from them) of ids that the other rank holds."""
    config = TableConfig(dim=8, sharding="table_wise", optimizer="sgd", learning_rate=1.0, init_std=1e-6)
    model = nn.Module()
    model.tables = EmbeddingTables([TableSpec("item", 50, 8)], torch.device("meta"))
    plan = Plan(2, 2, "cpu", {"item": TablePlan("table_wise", "fused", 50, 8, (1,))})
    shard_tables(model, {"item": config}, plan, world, seed=1, communication=communication)
    exact = nn.Module()
    exact.tables = EmbeddingTables([TableSpec("item", 50, 8)], torch.device("meta"))
    shard_tables(exact, {"item": config}, plan, world, seed=1)
    ids = {"item": torch.arange(20) if world.is_first else torch.zeros(0, dtype=torch.int64)}
    rows = model.tables(ids)["item"]
    before = exact.tables(ids)["item"].detach().clone()
    rows.backward(torch.full_like(rows, gradient))
    with torch.no_grad():
        # Through the same codec, but from rows that are known: what arrives is rounded once more.
        after = model.tables(ids)["item"]
    return rows.detach(), before, rows.detach() - after


def test_looked_up_rows_are_rounded_to_fp16(rank_pool):
    rows, exact, _ = rank_pool.run(2, look_up_and_back, CommunicationConfig(forward="fp16"), 0.0)[0]
    assert not torch.equal(rows, exact)
    assert torch.equal(rows, exact.half().float())


@pytest.mark.parametrize("gradient", [3e-8, 1e-3, 0.3])
def test_small_gradients_survive_fp16(rank_pool, gradient):
    """3e-8 is below the least number of fp16, 6e-8: without a scale it would arrive as nothing, or as twice as much."""
    _, _, taken = rank_pool.run(2, look_up_and_back, CommunicationConfig(backward="fp16"), gradient)[0]
    torch.testing.assert_close(taken, torch.full_like(taken, gradient), rtol=4e-3, atol=0.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8", "int8"])
def test_unsupported_precisions_are_refused_by_name(rank_pool, precision, device):
    works = precision in ("fp32", "fp16") or (precision, device) == ("bf16", "cuda")
    for way in ("forward", "backward"):
        reason = codec_reason(CommunicationConfig(**{way: precision}), device)
        if works:
            assert reason is None
        else:
            assert f"communication.{way} = {precision}" in reason
            assert "choose fp16" in reason


def test_a_placement_refuses_it_too(rank_pool):
    with pytest.raises(PlacementError, match=r"communication\.forward = bf16: TorchRec sends fp16 in its place"):
        rank_pool.run(2, look_up_and_back, CommunicationConfig(forward="bf16"), 0.0)
