"""Tables with dynamic ids in runs: equal to a trainer written by hand with dicts, on any number of workers, stopped or not."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cluster.config.run_config import check_config, job_of
from cluster.data.prepare import prepare
from models.batches.history_batch import HistoryBatch
from sharding.world import World
from tests.support.dict_trainer import train_by_hand
from tests.support.rank_pool import RankPool
from tests.support.shared_runs import shared
from tests.support.steps import observe_steps
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import SILENT, Channel, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.evaluation.next_item.evaluate import make_evaluator
from trainer.loop.build import build_model, load_checkpoint
from trainer.loop.step_result import StepResult
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

NUM_ITEMS, NUM_USERS, DIM = 40, 36, 8
BY_AGE = {"kind": "dynamic", "num_rows": 9, "admit_after": 3, "evict": "age", "max_age_steps": 2, "max_candidates": 10}
BY_USE = {
    "kind": "dynamic",
    "num_rows": 9,
    "admit_after": 3,
    "evict": "use",
    "half_life_steps": 4,
    "max_candidates": 10,
}
SAMPLED = {"kind": "sampled_softmax", "num_negatives": 8}
FULL = {"kind": "full_softmax"}


def write_logs(folder: Path) -> None:
    """Items have a brand (some have none) and tags, out of more values than the table will have rows."""
    random = np.random.default_rng(3)
    rows = []
    for user in range(NUM_USERS):
        start = int(random.integers(NUM_ITEMS))
        rows += [
            (user, (start + int(random.integers(6))) % NUM_ITEMS, 10 * time)
            for time in range(int(random.integers(4, 12)))
        ]
    users, items, times = zip(*rows, strict=True)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), folder / "events.parquet")
    brands = [None if item % 7 == 0 else 10**12 * (item % 13 - 6) for item in range(NUM_ITEMS)]
    tags = [random.integers(100, 120, size=random.integers(0, 4)).tolist() for _ in range(NUM_ITEMS)]
    table = {"item_id": list(range(NUM_ITEMS)), "brand": pa.array(brands, pa.int64()), "tags": tags}
    pq.write_table(pa.table(table), folder / "items.parquet")


def job_at(
    folder: Path,
    run: str,
    ids: dict[str, Any] = BY_AGE,
    sharding: str = "row_wise",
    objective: dict[str, Any] = SAMPLED,
    dropout: float = 0.0,
    **train: Any,
) -> Job:
    # Adagrad's first step moves every weight by its whole rate: larger ones would let any rounding grow.
    table = {"optimizer": "adagrad", "learning_rate": 0.01, "init_std": 0.1}
    features = {name: {"kind": "categorical", "table": "label"} for name in ("brand", "tags")}
    values = {
        "run": {"dir": str(folder / run), "dataset": str(folder / "dataset"), "seed": 5},
        "logs": {
            "path": str(folder / "logs/events.parquet"),
            "items": {"path": str(folder / "logs/items.parquet"), "features": features},
        },
        "model": {"max_history": 6, "objective": objective, "encoder": {"num_blocks": 1, "dropout": dropout}},
        "tables": {
            "item": {"dim": 2 * DIM, "sharding": "row_wise", **table},
            "label": {"dim": DIM, "sharding": sharding, "ids": ids, **table},
        },
        "train": {
            "epochs": 3, "batch_size": 4, "optimizer": "adagrad", "learning_rate": 0.01, "log_every_steps": 1,
            "evaluate_every_epochs": 3, "early_stopping": None, **train,
        },
        "plan": {"measure": False},
        "evaluate": {"ks": [5, 10]},
    }  # fmt: skip
    return job_of(check_config(values, "test"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    path = tmp_path_factory.mktemp("dynamic")
    write_logs(path / "logs")
    prepare(check_config(job_at(path, "none").config, "test"), lambda _: None)
    return path


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """Return the dataset, in a folder for runs of this test alone."""
    return linked(dataset, tmp_path)


def linked(dataset: Path, folder: Path) -> Path:
    """Link logs and dataset into a folder, and return it."""
    for name in ("logs", "dataset"):
        (folder / name).symlink_to(dataset / name)
    return folder


Metrics = list[dict[str, Any]]


@pytest.fixture(scope="module")
def finished(
    dataset: Path, rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[list["Trained"], Metrics]]:
    """Return the function that gives the results of a finished run by rank, and its metrics; each is run once."""

    def run(world_size: int, ids: Any, sharding: str, objective: Any) -> tuple[list[Trained], Metrics]:
        folder = linked(dataset, tmp_path_factory.mktemp("finished"))
        return rank_pool.run(world_size, train, job_at(folder, "run", ids, sharding, objective)), lines(folder, "run")

    return shared(run)


@pytest.fixture(scope="module")
def by_hand(dataset: Path, rank_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return the function that gives the results of the trainer with dicts, which knows no sharding; each is run once."""

    def run(ids: Any, objective: Any) -> Any:
        folder = linked(dataset, tmp_path_factory.mktemp("by-hand"))
        return rank_pool.run(1, train_by_hand, job_at(folder, "run", ids, objective=objective))[0]

    return shared(run)


@dataclass(frozen=True)
class Trained:
    """tensors: all that a checkpoint has; local, mapping: hashes of what this rank holds of it, and of the whole mapping.

    sizes: bytes of the mapping after each step; rows: of the table, by id.
    """

    tensors: dict[str, Tensor]
    local: str
    mapping: str
    sizes: list[int]
    rows: dict[int, int]


def everything(training: Training) -> dict[str, Any]:
    built = training.built
    return tensors_of(built.sharded_model, built.tables, training.optimizers, built.dynamic.tensors())


Piece = tuple[tuple[int, ...], tuple[int, ...], Tensor]


def pieces_of(value: Any) -> list[Piece]:
    """Return this rank's parts of a tensor: the size of the whole, the offsets, the numbers."""
    if isinstance(value, ShardedTensor):
        return [(tuple(value.size()), tuple(s.metadata.shard_offsets), s.tensor.detach()) for s in value.local_shards()]
    plain = torch.as_tensor(value).detach()
    return [(tuple(plain.shape), (0,) * plain.dim(), plain)]


def whole(tensors: dict[str, Any], world: World) -> dict[str, Tensor]:
    """All tensors put together. A rank without a shard of a table has no state of its optimizer either."""
    found: dict[str, Tensor] = {}
    everywhere: list[Any] = world.gather_objects({name: pieces_of(value) for name, value in tensors.items()})
    for name, pieces in (entry for held in everywhere for entry in held.items()):
        for size, offsets, numbers in pieces:
            into = found.setdefault(name, torch.zeros(size, dtype=numbers.dtype))
            into[tuple(slice(o, o + n) for o, n in zip(offsets, numbers.shape, strict=True))] = numbers
    return found


def local_hash(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        pieces = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
        for piece in pieces:
            digest.update(name.encode() + torch.as_tensor(piece).detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(world: World, job: Job, stop_after: int | None = None, poisoned: tuple[int, ...] = ()) -> Trained:
    """Train, or until `stop_after` steps of this call; at steps `poisoned` the loss is not a number."""
    torch.set_num_threads(1)
    asked = itertools.count(1)
    channel = Channel(SILENT.send, lambda: stop_after is not None and next(asked) >= stop_after)
    training = Training(job, world, channel)
    sizes = []
    model = training.built.model
    loss: Callable[..., torch.Tensor] = model.loss

    def poison(batch: HistoryBatch, number: int) -> None:
        model.loss = (lambda *given: loss(*given) * float("nan")) if number in poisoned else loss  # type: ignore[method-assign]

    def check(batch: HistoryBatch, number: int, result: StepResult) -> None:
        assert result.applied == (number not in poisoned)
        if training.built.tables["label"].lookup == "bags":  # each bag asks for its own rows
            assert any(bags.table == "label" for bags in batch.items.bags.values())
        else:
            assert len(set(batch.items.rows["label"].tolist())) == batch.items.rows["label"].numel()
        sizes.append(training.built.dynamic.states["label"].entries.num_bytes)

    observe_steps(training, check, poison)
    training.run()
    tensors = everything(training)
    every = whole(tensors, world)
    mapping = {name: value for name, value in every.items() if name.startswith("state.ids.label.")}
    assert len(mapping) == 8
    num_rows = training.built.dynamic.states["label"].config.num_rows
    ids, counts = (mapping[f"state.ids.label.{name}"].tolist()[:num_rows] for name in ("ids", "counts"))
    rows = {ids[row]: row for row in range(num_rows) if counts[row]}
    return Trained(every, local_hash(tensors), local_hash(mapping), sizes, rows)


def lines(folder: Path, run: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / run / "metrics.jsonl") if row["kind"] == "train"]


# By hand


@pytest.mark.parametrize(
    ("world_size", "sharding", "objective"),
    [
        (1, "row_wise", SAMPLED),
        (1, "row_wise", FULL),
        (3, "row_wise", SAMPLED),
        (2, "table_wise", FULL),
        (2, "column_wise", SAMPLED),
        (2, "data_parallel", FULL),
    ],
    ids=str,
)
@pytest.mark.parametrize("ids", [BY_AGE, BY_USE], ids=lambda value: value["evict"])
def test_a_run_equals_one_that_keeps_a_dict_of_rows(
    finished: Callable[..., Any], by_hand: Callable[..., Any], world_size: int, sharding: str, objective: Any, ids: Any
) -> None:
    losses, rows, items, num_evicted = by_hand(ids, objective)
    (trained, *_), log = finished(world_size, ids, sharding, objective)
    assert num_evicted > 10
    np.testing.assert_allclose([line["loss"] for line in log], losses, rtol=1e-5)
    assert trained.rows.keys() == rows.keys() - {None}
    for name, part in (("weight", "weights"), ("accumulator", "accumulator")):
        table = trained.tensors[f"table.label.{name}"]
        for id_, row in rows.items():
            place = 0 if id_ is None else trained.rows[id_]
            torch.testing.assert_close(table[place], getattr(row, part), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained.tensors["table.item.weight"], items, rtol=1e-4, atol=1e-6)


# Any number of workers, however the table is sharded


@pytest.mark.parametrize(
    ("sharding", "ids", "objective"),
    [
        ("row_wise", BY_AGE, SAMPLED),
        ("row_wise", BY_USE, FULL),
        ("table_wise", BY_AGE, FULL),
        ("column_wise", BY_USE, SAMPLED),
        ("data_parallel", BY_AGE, SAMPLED),
        ("row_wise", BY_AGE, {**SAMPLED, "negatives": {"kind": "mixed"}, "logq": "streaming"}),
    ],
    ids=str,
)
def test_mapping_and_weights_agree_at_every_world_size(
    finished: Callable[..., Any], sharding: str, ids: dict[str, Any], objective: dict[str, Any]
) -> None:
    (alone,), log = finished(1, ids, sharding, objective)
    assert len(alone.rows) == ids["num_rows"] - 1
    counted = counts_of_ids(log)
    assert sum(line["ids.label.evicted"] for line in counted) > 10
    for size in (2, 3):
        trained, log = finished(size, ids, sharding, objective)
        assert [rank.mapping for rank in trained] == [alone.mapping] * size
        for name, expected in alone.tensors.items():
            torch.testing.assert_close(trained[0].tensors[name], expected, rtol=1e-5, atol=1e-6, msg=name)
        assert counts_of_ids(log) == counted


def counts_of_ids(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what lines of metrics count of ids."""
    return [{name: value for name, value in line.items() if name.startswith("ids.")} for line in log]


def test_the_clipped_gradient_is_that_of_the_rows(folder: Path, rank_pool: RankPool) -> None:
    """Ranks ask for the same rows, by different ids too: unknown ones share a row."""
    alone, several = (
        rank_pool.run(size, train, job_at(folder, f"run-{size}", clip_norm=0.1, max_steps=15))[0] for size in (1, 3)
    )
    norms = [[line["grad_norm"] for line in lines(folder, f"run-{size}")] for size in (1, 3)]
    assert max(norms[0]) > 0.1
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    for name, expected in alone.tensors.items():
        torch.testing.assert_close(several.tensors[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_memory_is_bounded_and_changes_of_rows_are_logged(folder: Path, rank_pool: RankPool) -> None:
    trained = rank_pool.run(1, train, job_at(folder, "run", log_every_steps=4))[0]
    assert len(trained.sizes) > 20
    assert len(set(trained.sizes)) == 1
    assert trained.tensors["table.label.weight"].shape == (BY_AGE["num_rows"], DIM)
    log = lines(folder, "run")
    of = {name: [line[f"ids.label.{name}"] for line in log] for name in ("admitted", "evicted", "rows_used", "unknown")}
    assert sum(of["admitted"]) - sum(of["evicted"]) == of["rows_used"][-1] - 1 == BY_AGE["num_rows"] - 1
    assert all(0.0 < value < 1.0 for value in of["unknown"])
    for name in ("waiting", "forgotten"):
        assert sum(line[f"ids.label.{name}"] for line in log) > 0
    assert all(line["ids.label.candidates"] <= BY_AGE["max_candidates"] for line in log)


# Stopping and going on


@pytest.mark.parametrize(
    ("world_size", "sharding", "ids"), [(1, "row_wise", BY_USE), (2, "row_wise", BY_AGE), (2, "data_parallel", BY_USE)]
)
def test_a_run_stopped_every_few_steps_is_bit_identical(
    folder: Path, rank_pool: RankPool, world_size: int, sharding: str, ids: dict[str, Any]
) -> None:
    settings = {"ids": ids, "sharding": sharding, "dropout": 0.25, "max_steps": 21}
    uninterrupted = rank_pool.run(world_size, train, job_at(folder, "whole", **settings))
    pieces = job_at(folder, "pieces", **settings)
    for steps in (1, 2, 3, 4, 5):
        rank_pool.run(world_size, train, pieces, steps)
    resumed = rank_pool.run(world_size, train, pieces)
    assert [found.local for found in resumed] == [found.local for found in uninterrupted]
    assert resumed[0].mapping == uninterrupted[0].mapping
    losses = [[line["loss"] for line in lines(folder, run)] for run in ("whole", "pieces")]
    assert losses[0] == losses[1]


def test_resuming_on_other_numbers_of_workers_keeps_the_mapping(
    folder: Path, rank_pool: RankPool, finished: Callable[..., Any]
) -> None:
    (uninterrupted,), _ = finished(1, BY_AGE, "row_wise", SAMPLED)
    pieces = job_at(folder, "pieces")
    for world_size, steps in ((2, 7), (3, 6)):
        rank_pool.run(world_size, train, pieces, steps)
    (resumed,) = rank_pool.run(1, train, pieces)
    assert resumed.mapping == uninterrupted.mapping
    for name, expected in uninterrupted.tensors.items():
        torch.testing.assert_close(resumed.tensors[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_observations_of_a_step_that_is_not_applied_are_kept(folder: Path, rank_pool: RankPool) -> None:
    plain = rank_pool.run(2, train, job_at(folder, "plain", max_steps=12))
    poisoned = rank_pool.run(2, train, job_at(folder, "poisoned", max_steps=12), None, (3, 7))
    assert [found.mapping for found in poisoned] == [found.mapping for found in plain]
    assert poisoned[0].local != plain[0].local


# What evaluation sees


def evaluate_checkpoint(world: World, job: Job) -> dict[str, float]:
    manifest = read_manifest(job.dataset_dir)
    built = build_model(job, manifest, world)
    found, _ = checkpoint_folder.newest(job.checkpoints_dir)
    assert found is not None
    load_checkpoint(found, built, None)
    before = local_hash(built.dynamic.tensors())
    evaluator = make_evaluator(
        job.dataset_dir, manifest, built.catalogue, "validation", job.config.evaluate, 6, world, built.dynamic
    )
    metrics = evaluator.mean_metrics(built.model)
    assert local_hash(built.dynamic.tensors()) == before
    return metrics


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_uses_the_mapping_of_the_checkpoint(folder: Path, rank_pool: RankPool, world_size: int) -> None:
    job = job_at(folder, "run")
    rank_pool.run(1, train, job)
    logged = [row for row in read_metrics(folder / "run" / "metrics.jsonl") if row["kind"] == "validation"][-1]
    for metrics in rank_pool.run(world_size, evaluate_checkpoint, job):
        assert metrics == pytest.approx({name: logged[name] for name in metrics}, abs=1e-6)


# What it is good for
