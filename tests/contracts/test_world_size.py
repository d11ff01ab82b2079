"""A run does not depend on the number of workers: same order, same losses, same weights (DESIGN, "Order is a function")."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.config.job import SILENT, Job
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

STEPS = 20


def train(world: World, job: Job) -> dict[str, torch.Tensor]:
    """Train, and give the first rank all weights and optimizer slots."""
    torch.set_num_threads(1)
    training = Training(job, world, SILENT)
    training.run()
    whole = {}
    for name, value in training.built.sharded_model.state_dict().items():
        if isinstance(value, ShardedTensor):
            out = torch.zeros(value.size()) if world.is_first else None
            value.gather(0, out)
            whole[name] = out
        else:
            whole[name] = value.clone()
    if training.ema is not None:
        whole |= {f"ema.{name}": value.clone() for name, value in training.ema.values.items()}
    return whole


def global_batches(run_dir: Path, world_size: int) -> list[list[int]]:
    """Row ids of each global batch, over all ranks, without the empty stand-ins."""
    steps: dict[int, list[int]] = {}
    for rank in range(world_size):
        for line in (run_dir / "sample_log" / f"rank-{rank}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            steps.setdefault(entry["step"], []).extend(row for row in entry["row_ids"] if row >= 0)
    return [sorted(steps[step]) for step in sorted(steps)]


def losses(run_dir: Path) -> np.ndarray:
    return np.asarray([row["loss"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"])


def validation(run_dir: Path) -> list[float]:
    return [row["ndcg@10"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "validation"]


@pytest.mark.parametrize(
    ("dense", "sparse", "sharding", "objective", "world_sizes"),
    [
        ("sgd", "sgd", "row_wise", {"kind": "full_softmax"}, (1, 2, 3, 4)),
        ("adagrad", "adagrad", "row_wise", {"kind": "full_softmax", "normalize": True, "temperature": 0.1}, (1, 3)),
        ("adagrad", "rowwise_adagrad", "row_wise", {"kind": "sampled_softmax", "num_negatives": 16}, (1, 2, 3, 4)),
        ("adagrad", "adagrad", "column_wise", {"kind": "sampled_softmax", "num_negatives": 16}, (1, 2, 4)),
        ("adagrad", "adagrad", "table_wise", {"kind": "full_softmax"}, (1, 2)),
        ("adagrad", "adagrad", "data_parallel", {"kind": "full_softmax"}, (1, 4)),
        ("adagrad", "rowwise_adagrad", "data_parallel", {"kind": "sampled_softmax", "num_negatives": 16}, (1, 3)),
        ("adagrad", "adagrad", "row_wise", {"kind": "full_softmax", "label_smoothing": 0.1}, (1, 2)),
        ("adagrad", "adagrad", "row_wise", {"kind": "bce", "num_negatives": 16}, (1, 3)),
    ],
)
def test_order_losses_and_weights_agree_at_every_world_size(
    rank_pool, tmp_path, dense, sparse, sharding, objective, world_sizes
):
    tiny_dataset(tmp_path / "dataset")
    # Adagrad's first step moves every weight by its whole rate: a rate above the weights' own size (0.02) would make the
    # dynamics chaotic, and any rounding would grow.
    rate = 0.05 if dense == "sgd" else 0.01
    weights, order, loss, metric = {}, {}, {}, {}
    for world_size in world_sizes:
        run_dir = tmp_path / f"run-{world_size}"
        job = tiny_job(
            run_dir,
            tmp_path / "dataset",
            model={"objective": objective},
            tables={"item": {"dim": 16, "optimizer": sparse, "sharding": sharding, "learning_rate": rate}},
            train={"optimizer": dense, "learning_rate": rate, "max_steps": STEPS},
        )
        weights[world_size] = rank_pool.run(world_size, train, job)[0]
        order[world_size] = global_batches(run_dir, world_size)
        loss[world_size] = losses(run_dir)
        metric[world_size] = validation(run_dir)
    assert len(order[1]) == STEPS
    assert loss[1][-1] < loss[1][0]
    for world_size in world_sizes[1:]:
        assert order[world_size] == order[1]
        np.testing.assert_allclose(loss[world_size], loss[1], rtol=1e-5)
        np.testing.assert_allclose(metric[world_size], metric[1], atol=1e-6)
        for name, expected in weights[1].items():
            torch.testing.assert_close(weights[world_size][name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "sampled_softmax", "negatives": {"kind": "popularity"}, "logq": "counts"},
        {"kind": "sampled_softmax", "negatives": {"kind": "cross_rank"}, "logq": "streaming", "logq_rate": 0.1},
        {"kind": "gbce", "negatives": {"kind": "mixed"}, "normalize": True, "temperature": 0.2},
        {"kind": "bce", "negatives": {"kind": "mixed", "uniform_share": 0.25}, "logq": "streaming"},
        {"kind": "bce", "negatives": {"kind": "cross_rank"}, "logq": "counts"},
    ],
    ids=str,
)
def test_negatives_of_the_global_batch_are_the_same_at_every_world_size(rank_pool, tmp_path, objective):
    """So are the corrections, and the estimate that they come from."""
    tiny_dataset(tmp_path / "dataset")
    loss, weights = {}, {}
    for world_size in (1, 3):
        job = tiny_job(
            tmp_path / str(world_size),
            tmp_path / "dataset",
            model={"objective": {"num_negatives": 16, **objective}},
            tables={"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.01}},
            # Adagrad would turn the rounding of a gradient near zero into a step as large as any other.
            train={"optimizer": "sgd", "learning_rate": 0.03, "max_steps": STEPS},
        )
        weights[world_size] = rank_pool.run(world_size, train, job)[0]
        loss[world_size] = losses(tmp_path / str(world_size))
    assert len(loss[1]) == STEPS
    assert loss[1][-1] < loss[1][0]
    np.testing.assert_allclose(loss[3], loss[1], rtol=1e-5)
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[3][name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("logq", ["none", "streaming"])
def test_in_batch_negatives_where_ranks_have_no_share(rank_pool, tmp_path, logq):
    """They depend on the number of ranks, so only this is promised: it trains, and repeating it changes no bit.

    Of three users one has no target and one a single target, and the fourth rank has none of them.
    """
    tiny_dataset(tmp_path / "dataset", num_users=3, num_items=20, mean_events=15, num_parts=1)
    objective = {"kind": "sampled_softmax", "num_negatives": 8, "negatives": {"kind": "in_batch"}, "logq": logq}
    found = []
    for name in ("first", "second"):
        job = tiny_job(
            tmp_path / name,
            tmp_path / "dataset",
            model={"objective": objective},
            tables={"item": {"dim": 8, "sharding": "table_wise"}},
            train={"epochs": 6},
        )
        rank_pool.run(4, train, job)
        found.append(losses(tmp_path / name).tolist())
    assert found[0] == found[1]
    assert np.isfinite(found[0]).all()
    assert found[0][-1] < found[0][0]


@pytest.mark.parametrize(
    "objective",
    [{"kind": "full_softmax"}, {"kind": "gbce", "num_negatives": 16, "negatives": {"kind": "cross_rank"}}],
    ids=str,
)
def test_masked_items_are_the_same_at_every_world_size(rank_pool, tmp_path, objective):
    tiny_dataset(tmp_path / "dataset")
    encoder = {"kind": "bert4rec", "num_blocks": 1, "dropout": 0.0, "attention": {"dropout": 0.0}}
    loss, metric = {}, {}
    for world_size in (1, 3):
        job = tiny_job(
            tmp_path / str(world_size),
            tmp_path / "dataset",
            model={"objective": objective, "encoder": encoder},
            tables={"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.01}},
            train={"optimizer": "adagrad", "learning_rate": 0.01, "epochs": 3, "long_histories": "windows"},
        )
        rank_pool.run(world_size, train, job)
        loss[world_size] = losses(tmp_path / str(world_size))
        metric[world_size] = validation(tmp_path / str(world_size))
    assert len(loss[1]) > 20
    if objective["kind"] == "full_softmax":  # the other has learned nothing yet that its noise would not hide
        assert loss[1][-5:].mean() < loss[1][:5].mean()
    np.testing.assert_allclose(loss[3], loss[1], rtol=1e-5)
    np.testing.assert_allclose(metric[3], metric[1], atol=1e-6)


@pytest.mark.parametrize(
    "examples",
    [
        {"long_histories": "windows"},
        {"deal_by": "count"},
        {"deal_by": "flops"},
        {"batch_tokens": 60},
        {"long_histories": "windows", "batch_tokens": 60},
        {"batch_tokens": 60, "deal_by": "flops"},
    ],
    ids=[
        "windows",
        "dealt in equal numbers",
        "dealt by flops",
        "budget",
        "windows in a budget",
        "budget dealt by flops",
    ],
)
def test_windows_and_budgets_agree_at_every_world_size(rank_pool, tmp_path, examples):
    tiny_dataset(tmp_path / "dataset")
    order, loss, weights, imbalance = {}, {}, {}, {}
    for world_size in (1, 2, 4):
        job = tiny_job(
            tmp_path / str(world_size),
            tmp_path / "dataset",
            tables={"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.01}},
            train={"optimizer": "adagrad", "learning_rate": 0.01, "epochs": 2, **examples},
        )
        weights[world_size] = rank_pool.run(world_size, train, job)[0]
        order[world_size] = global_batches(tmp_path / str(world_size), world_size)
        loss[world_size] = losses(tmp_path / str(world_size))
        lines = read_metrics(tmp_path / str(world_size) / "metrics.jsonl")
        imbalance[world_size] = [row["imbalance"] for row in lines if row["kind"] == "train"]
    for world_size in (2, 4):
        assert order[world_size] == order[1]
        np.testing.assert_allclose(loss[world_size], loss[1], rtol=1e-5)
        for name, expected in weights[1].items():
            torch.testing.assert_close(weights[world_size][name], expected, rtol=1e-5, atol=1e-6, msg=name)
        assert all(1.0 <= value <= world_size for value in imbalance[world_size])
    assert set(imbalance[1]) == {1.0}
    if "batch_tokens" in examples and "deal_by" not in examples:  # imbalance counts events
        assert np.median(imbalance[4]) < 1.15  # the last batch of an epoch may be a single history


ENCODERS = {
    **{kind: {"kind": kind} for kind in ("sasrec", "bert4rec", "hstu", "ligr", "fuxi_alpha", "two_tower")},
    "differential in a window": {"attention": {"differential": True, "window": 3, "num_global": 1, "num_heads": 2}},
    "truncated": {"kind": "hstu", "truncate_after": 1, "truncate_to": 4},
    "merged": {"kind": "hstu", "merge_size": 2, "merge_recent": 4, "merge_form": "transformer"},
    "sparse, with a penalty": {
        "kind": "ligr",
        "attention": {"normalisation": "entmax15", "bias": "both", "penalty": 0.01},
    },
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_sharded_equals_unsharded(rank_pool, tmp_path, encoder):
    """The item table copied to a single worker, and in pieces on one and on two."""
    tiny_dataset(tmp_path / "dataset")
    attention = {"dropout": 0.0, **ENCODERS[encoder].get("attention", {})}
    settings = {"num_blocks": 2, "dropout": 0.0, **ENCODERS[encoder], "attention": attention}
    loss, weights, metric = [], [], []
    for number, (world_size, sharding) in enumerate([(1, "data_parallel"), (1, "row_wise"), (2, "row_wise")]):
        job = tiny_job(
            tmp_path / str(number),
            tmp_path / "dataset",
            model={"encoder": settings, "inputs": {"time_unit": "seconds"}},
            tables={"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.01, "sharding": sharding}},
            train={"optimizer": "adagrad", "learning_rate": 0.01, "max_steps": 10},
        )
        found = rank_pool.run(world_size, train, job)[0]
        # Collections are named after the placement of their tables.
        weights.append({name.replace("replicated", "sharded"): weight for name, weight in found.items()})
        loss.append(losses(tmp_path / str(number)))
        metric.append(validation(tmp_path / str(number)))
    for other in (1, 2):
        np.testing.assert_allclose(loss[other], loss[0], rtol=1e-5)
        np.testing.assert_allclose(metric[other], metric[0], atol=1e-6)
        assert weights[other].keys() == weights[0].keys()
        for name, expected in weights[0].items():
            torch.testing.assert_close(weights[other][name], expected, rtol=1e-4, atol=1e-5, msg=name)


CRAFT = {"averages": {"ema_decay": 0.8}, "micro-batches": {"micro_batch_tokens": 9}}


@pytest.mark.parametrize("craft", CRAFT)
def test_training_craft_agrees_at_every_world_size(rank_pool, tmp_path, craft):
    tiny_dataset(tmp_path / "dataset")
    settings = {"optimizer": "adagrad", "learning_rate": 0.01, "max_steps": STEPS}
    loss, weights, metric, order = {}, {}, {}, {}
    for world_size in (1, 2, 3):
        job = tiny_job(
            tmp_path / str(world_size),
            tmp_path / "dataset",
            tables={"item": {"dim": 16, "optimizer": "adagrad", "learning_rate": 0.01}},
            # A single worker does without micro-batches: they change the memory of a step, and nothing else.
            train={**settings, **(CRAFT[craft] if craft == "averages" or world_size > 1 else {})},
        )
        weights[world_size] = rank_pool.run(world_size, train, job)[0]
        loss[world_size] = losses(tmp_path / str(world_size))
        metric[world_size] = validation(tmp_path / str(world_size))
        order[world_size] = global_batches(tmp_path / str(world_size), world_size)
    for world_size in (2, 3):
        assert order[world_size] == order[1]
        np.testing.assert_allclose(loss[world_size], loss[1], rtol=1e-5)
        np.testing.assert_allclose(metric[world_size], metric[1], atol=1e-6)
        for name, expected in weights[1].items():
            torch.testing.assert_close(weights[world_size][name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_in_bfloat16_a_run_learns_as_well_as_in_float32_at_every_world_size(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset")
    loss, metric = {}, {}
    for world_size, precision in ((1, "float32"), (1, "bfloat16"), (2, "bfloat16")):
        run_dir = tmp_path / f"{precision}-{world_size}"
        job = tiny_job(
            run_dir,
            tmp_path / "dataset",
            tables={"item": {"dim": 16, "learning_rate": 0.03}},
            train={"learning_rate": 0.005, "epochs": 6, "precision": precision},
        )
        rank_pool.run(world_size, train, job)
        loss[precision, world_size], metric[precision, world_size] = losses(run_dir), validation(run_dir)
    full = loss["float32", 1]
    assert full[-8:].mean() < 0.8 * full[:8].mean()
    for world_size in (1, 2):
        np.testing.assert_allclose(loss["bfloat16", world_size], full, rtol=2e-2)
        assert metric["bfloat16", world_size][-1] == pytest.approx(metric["float32", 1][-1], abs=0.03)
    assert not np.array_equal(loss["bfloat16", 1], full)


def test_repeating_a_run_is_bit_identical_with_dropout(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset")
    runs = []
    for name in ("first", "second"):
        job = tiny_job(
            tmp_path / name,
            tmp_path / "dataset",
            model={"encoder": {"kind": "sasrec", "dropout": 0.3}},
            train={"max_steps": STEPS},
        )
        runs.append((rank_pool.run(2, train, job)[0], losses(tmp_path / name).tolist()))
    assert runs[0][1] == runs[1][1]
    for name, value in runs[0][0].items():
        assert torch.equal(value, runs[1][0][name]), name


@pytest.mark.parametrize("num_users", [1, 2])
def test_fewer_histories_than_workers(rank_pool, tmp_path, num_users):
    """Ranks without a share take part with empty histories, and the result is that of one worker."""
    tiny_dataset(tmp_path / "dataset", num_users=num_users, num_items=20, mean_events=15, num_parts=1)
    runs = {}
    for world_size in (1, 3):
        job = tiny_job(
            tmp_path / str(world_size),
            tmp_path / "dataset",
            tables={"item": {"dim": 8, "sharding": "table_wise"}},
            train={"epochs": 3, "optimizer": "sgd"},
        )
        runs[world_size] = rank_pool.run(world_size, train, job)[0]
        assert global_batches(tmp_path / str(world_size), world_size) == [list(range(num_users))] * 3
    np.testing.assert_allclose(losses(tmp_path / "3"), losses(tmp_path / "1"), rtol=1e-5)
    for name, expected in runs[1].items():
        torch.testing.assert_close(runs[3][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_placement_of_a_table_does_not_change_the_trained_model(rank_pool, tmp_path, world_size):
    """Its own optimizer updates it everywhere: sharded, or as a copy on every worker."""
    tiny_dataset(tmp_path / "dataset")
    weights, loss = {}, {}
    for sharding in ("row_wise", "table_wise", "data_parallel"):
        table = {"dim": 16, "optimizer": "rowwise_adagrad", "sharding": sharding, "learning_rate": 0.01}
        job = tiny_job(
            tmp_path / sharding,
            tmp_path / "dataset",
            tables={"item": table},
            train={"optimizer": "adagrad", "learning_rate": 0.01, "max_steps": STEPS, "schedule": "linear"},
        )
        whole = rank_pool.run(world_size, train, job)[0]
        weights[sharding] = {name.replace("replicated_", "sharded_"): value for name, value in whole.items()}
        loss[sharding] = losses(tmp_path / sharding)
    for sharding in ("table_wise", "data_parallel"):
        np.testing.assert_allclose(loss[sharding], loss["row_wise"], rtol=1e-5)
        for name, expected in weights["row_wise"].items():
            torch.testing.assert_close(weights[sharding][name], expected, rtol=1e-5, atol=1e-6, msg=name)


def first_weights(world: World, job: Job) -> torch.Tensor:
    built = Training(job, world, SILENT).built
    return next(v for n, v in built.sharded_model.state_dict().items() if n.endswith("item.weight")).clone()


def test_a_copied_table_is_trained(rank_pool, tmp_path):
    """Its gradient arises when the looked-up rows' gradients go back, after that of the dense part."""
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(
        tmp_path / "run",
        tmp_path / "dataset",
        tables={"item": {"dim": 16, "sharding": "data_parallel", "learning_rate": 0.05}},
        train={"max_steps": 3},
    )
    before = rank_pool.run(1, first_weights, job)[0]
    after = next(v for n, v in rank_pool.run(1, train, job)[0].items() if n.endswith("item.weight"))
    assert (after - before).abs().max() > 0.01
