"""Train 2N steps equals train N, stop, resume N more: bit for bit at equal world size, exact in order at any other."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sharding.world import World
from tests.contracts.test_world_size import global_batches, losses, validation
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job, with_sections
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import SILENT, Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.examples import examples_of
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import CheckpointError
from trainer.evaluation.next_item.evaluate import make_evaluator
from trainer.loop.build import build_model, load_for_evaluation
from trainer.loop.train import Training


def fingerprint(training: Training) -> str:
    """sha256 over every local weight and optimizer tensor, all other state, and the position."""
    digest = hashlib.sha256(f"{training.state.step} {training.state.position}".encode())
    built = training.built
    state = tensors_of(built.sharded_model, built.tables, training.optimizers, built.state(), training.ema)
    for name, value in sorted(state.items()):
        shards = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
        for tensor in shards:
            digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(world: World, job: Job, stop_after: int | None = None) -> tuple[Outcome, str]:
    """Train; if asked, request a stop so that it happens at step `stop_after`."""
    asked = []

    def stop_requested() -> bool:
        asked.append(None)
        return stop_after is not None and len(asked) >= stop_after

    training = Training(job, world, Channel(send=SILENT.send, stop_requested=stop_requested))
    outcome = training.run()
    return outcome, fingerprint(training)


def job_in(run_dir: Path, tmp_path: Path, dataset: str = "dataset", **sections: Any) -> Job:
    early = {"early_stopping": {"metric": "ndcg@10", "patience": 50}, "evaluate_every_epochs": 1}
    train = {**early, "epochs": 2, "warmup_steps": 7, **sections.pop("train", {})}
    model = sections.pop("model", {"encoder": {"kind": "sasrec", "num_blocks": 2, "dropout": 0.25}})
    return tiny_job(run_dir, tmp_path / dataset, model=model, train=train, **sections)


@pytest.fixture
def dataset(tmp_path):
    tiny_dataset(tmp_path / "dataset")
    return tmp_path


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stopped_and_resumed_run_is_bit_identical(rank_pool, dataset, world_size):
    whole = rank_pool.run(world_size, train, job_in(dataset / "whole", dataset))
    assert whole[0][0].reason == "finished"
    for number, stops in enumerate([[11], [8], [3, 9]]):  # inside an epoch; at its boundary (8 steps); stopped twice
        run_dir, done = dataset / f"pieces-{number}", 0
        pieces = job_in(run_dir, dataset)
        for stop in stops:
            outcome = rank_pool.run(world_size, train, pieces, stop - done)[0][0]
            assert (outcome.reason, outcome.step) == ("stopped", stop)
            done = stop
        resumed = rank_pool.run(world_size, train, pieces)
        assert [state for _, state in resumed] == [state for _, state in whole]
        assert resumed[0][0] == whole[0][0]
        assert losses(run_dir).tolist() == losses(dataset / "whole").tolist()
        assert global_batches(run_dir, world_size) == global_batches(dataset / "whole", world_size)


STREAMING = {
    "kind": "sampled_softmax",
    "num_negatives": 16,
    "negatives": {"kind": "mixed"},
    "logq": "streaming",
    "logq_rate": 0.2,
}


def test_an_estimate_of_frequencies_is_resumed_bit_identically(rank_pool, dataset):
    settings = {"model": {"encoder": {"kind": "sasrec", "dropout": 0.25}, "objective": STREAMING}}
    whole = rank_pool.run(2, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(2, train, pieces, 11)
    assert rank_pool.run(2, train, pieces) == whole
    assert losses(dataset / "pieces").tolist() == losses(dataset / "whole").tolist()


def test_masked_items_are_resumed_bit_identically(rank_pool, dataset):
    settings = {"model": {"encoder": {"kind": "bert4rec", "num_blocks": 1, "dropout": 0.25}}}
    whole = rank_pool.run(2, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(2, train, pieces, 11)
    assert rank_pool.run(2, train, pieces) == whole
    assert losses(dataset / "pieces").tolist() == losses(dataset / "whole").tolist()


def test_an_estimate_of_frequencies_is_resumed_on_another_number_of_workers(rank_pool, dataset):
    train_settings = {"optimizer": "adagrad", "learning_rate": 0.05, "epochs": 3}
    settings = {
        "model": {"encoder": {"kind": "sasrec", "dropout": 0.0}, "objective": STREAMING},
        "train": train_settings,
    }
    rank_pool.run(1, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(3, train, pieces, 10)
    rank_pool.run(2, train, pieces)
    torch.testing.assert_close(
        torch.tensor(losses(dataset / "pieces")), torch.tensor(losses(dataset / "whole")), rtol=1e-5, atol=0.0
    )


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
def test_resuming_on_another_number_of_workers_loses_and_repeats_nothing(rank_pool, dataset, before, after):
    settings = {
        "model": {"encoder": {"kind": "sasrec", "dropout": 0.0}},
        "train": {"optimizer": "adagrad", "learning_rate": 0.05, "epochs": 3, "ema_decay": 0.9},
    }
    rank_pool.run(1, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(before, train, pieces, 10)
    first = global_batches(dataset / "pieces", before)
    shutil.rmtree(dataset / "pieces" / "sample_log")
    rank_pool.run(after, train, pieces)
    assert first + global_batches(dataset / "pieces", after) == global_batches(dataset / "whole", 1)
    torch.testing.assert_close(
        torch.tensor(losses(dataset / "pieces")), torch.tensor(losses(dataset / "whole")), rtol=1e-5, atol=0.0
    )
    # Of the averages, which only evaluation uses.
    assert validation(dataset / "pieces") == pytest.approx(validation(dataset / "whole"), abs=1e-6)


EXAMPLES = {
    "windows": {"long_histories": "windows"},
    "token budget": {"batch_tokens": 70},
    "windows in a token budget": {"long_histories": "windows", "batch_tokens": 70},
}


@pytest.mark.parametrize("examples", EXAMPLES)
def test_windows_and_budgets_are_resumed_bit_identically(rank_pool, dataset, examples):
    settings = {"train": EXAMPLES[examples]}
    whole = rank_pool.run(2, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(2, train, pieces, 5)
    assert rank_pool.run(2, train, pieces) == whole
    assert losses(dataset / "pieces").tolist() == losses(dataset / "whole").tolist()
    assert global_batches(dataset / "pieces", 2) == global_batches(dataset / "whole", 2)


CRAFT = {
    "lion": {"optimizer": "lion", "learning_rate": 1e-3, "weight_decay": 0.1, "schedule": "warmup_stable_decay"},
    "adamw": {"weight_decay": 0.1, "betas": [0.8, 0.95], "schedule": "inverse_sqrt", "schedule_tables": False},
    "ema": {"ema_decay": 0.9},
    "bfloat16": {"precision": "bfloat16"},
    "micro-batches": {"micro_batch_tokens": 9, "clip_norm": 0.1},
}


@pytest.mark.parametrize("craft", CRAFT)
def test_optimizer_schedule_and_averages_resume_bit_identically(rank_pool, dataset, craft):
    settings = {"train": {"max_steps": 14, **CRAFT[craft]}}
    whole = rank_pool.run(2, train, job_in(dataset / "whole", dataset, **settings))
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(2, train, pieces, 5)
    assert rank_pool.run(2, train, pieces) == whole
    assert losses(dataset / "pieces").tolist() == losses(dataset / "whole").tolist()
    assert validation(dataset / "pieces") == validation(dataset / "whole")


def evaluate(world: World, job: Job, step: int) -> dict[str, float]:
    """Return the validation metrics of a checkpoint, loaded as `shoal evaluate` does."""
    manifest = read_manifest(job.dataset_dir)
    built = build_model(job, manifest, world)
    folder = job.checkpoints_dir / checkpoint_folder.name_of(step)
    load_for_evaluation(StoredCheckpoint(folder, checkpoint_folder.verify(folder)), built)
    made = make_evaluator(
        job.dataset_dir, manifest, built.catalogue, "validation", job.config.evaluate, 8, world, built.dynamic
    )
    return made.mean_metrics(built.model)


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_the_best_checkpoint_of_an_early_stop_is_the_evaluated_one_resumed_or_not(rank_pool, dataset, ema_decay):
    settings = {
        "train": {
            "epochs": 30,
            "ema_decay": ema_decay,
            "learning_rate": 0.02,
            "early_stopping": {"metric": "ndcg@10", "patience": 2},
        },
        "checkpoint": {"keep": 1},
    }
    whole = job_in(dataset / "whole", dataset, **settings)
    outcome, state = rank_pool.run(2, train, whole)[0]
    assert outcome.reason == "early"
    assert outcome.best_step < outcome.step  # so the best is kept although newer ones are
    assert evaluate_in(rank_pool, 2, whole, outcome.best_step) == outcome.best_value
    assert evaluate_in(rank_pool, 1, whole, outcome.best_step) == pytest.approx(outcome.best_value, abs=1e-6)
    assert max(validation(dataset / "whole")) == outcome.best_value
    pieces = job_in(dataset / "pieces", dataset, **settings)
    rank_pool.run(2, train, pieces, outcome.best_step + 1)  # stopped while it waits for something better
    assert rank_pool.run(2, train, pieces)[0] == (outcome, state)
    best = [json.loads((dataset / run / "checkpoints" / "best.json").read_text()) for run in ("whole", "pieces")]
    assert best[0] == best[1] == {"step": outcome.best_step, "metric": "ndcg@10", "value": outcome.best_value}


def evaluate_in(rank_pool: Any, world_size: int, job: Job, step: int) -> float:
    return rank_pool.run(world_size, evaluate, job, step)[0]["ndcg@10"]


@pytest.mark.parametrize("examples", ["recent", *EXAMPLES])
def test_resumed_and_resized_over_epochs_each_example_is_trained_once_per_epoch(rank_pool, dataset, examples):
    """The sample log shows it, over a change of the number of ranks within an epoch and one at its end."""
    epochs = 3
    job = job_in(dataset / "run", dataset, train={"epochs": epochs, **EXAMPLES.get(examples, {})})
    rank_pool.run(1, train, job_in(dataset / "whole", dataset, train={"epochs": epochs, **EXAMPLES.get(examples, {})}))
    whole = global_batches(dataset / "whole", 1)
    per_epoch = len(whole) // epochs  # about: under a budget epochs need not have equally many steps
    batches: list[list[int]] = []
    for world_size, steps in ((2, 3), (3, per_epoch), (1, None)):
        rank_pool.run(world_size, train, job, steps)
        batches += global_batches(dataset / "run", world_size)
        shutil.rmtree(dataset / "run" / "sample_log")
    assert batches == whole
    manifest = read_manifest(dataset / "dataset")
    reader = RowGroupReader(dataset / "dataset", manifest)
    mode = EXAMPLES.get(examples, {}).get("long_histories", "recent")
    num_examples = examples_of(reader, job.config.model.max_history, mode, with_lengths=False).num_examples
    counts = Counter(number for batch in batches for number in batch)
    assert len(counts) == num_examples
    assert set(counts.values()) == {epochs}


def test_running_a_finished_run_again_changes_nothing(rank_pool, dataset):
    job = job_in(dataset / "run", dataset, train={"max_steps": 5})
    first = rank_pool.run(2, train, job)
    assert rank_pool.run(2, train, job) == first


def test_a_corrupt_newest_checkpoint_is_left_for_the_one_before(rank_pool, dataset):
    job = job_in(dataset / "run", dataset, checkpoint={"every_steps": 3, "keep": 3}, train={"max_steps": 9})
    whole = rank_pool.run(2, train, job)
    newest = checkpoint_folder.committed(dataset / "run" / "checkpoints")[0]
    shard = next(newest.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found, complaints = checkpoint_folder.newest(dataset / "run" / "checkpoints")
    assert found is not None
    assert found.manifest.step < 9
    assert shard.name in complaints[0]
    assert rank_pool.run(2, train, job) == whole


def test_another_config_is_refused_by_name(rank_pool, dataset):
    rank_pool.run(1, train, job_in(dataset / "run", dataset, train={"max_steps": 3}))
    changed = job_in(
        dataset / "run",
        dataset,
        train={"max_steps": 6, "batch_size": 4},
        tables={"item": {"dim": 16, "learning_rate": 0.1}},
    )
    with pytest.raises(CheckpointError, match=r"tables\.item\.dim: was 8, is 16\n  +train\.batch_size: was 8, is 4"):
        rank_pool.run(1, train, changed)


def test_a_checkpoint_may_lack_a_newer_setting_only_if_that_is_at_its_default(rank_pool, dataset):
    whole = rank_pool.run(1, train, job_in(dataset / "whole", dataset, train={"max_steps": 6}))
    earlier = job_in(dataset / "run", dataset, train={"max_steps": 3})
    known = {name: value for name, value in earlier.identity.items() if name != "model.encoder.scale_inputs"}
    rank_pool.run(1, train, replace(earlier, identity=known))

    encoder = {"kind": "sasrec", "num_blocks": 2, "dropout": 0.25, "scale_inputs": True}
    other = job_in(dataset / "run", dataset, model={"encoder": encoder}, train={"max_steps": 6})
    with pytest.raises(CheckpointError, match=r"model\.encoder\.scale_inputs: was None, is True"):
        rank_pool.run(1, train, other)
    assert rank_pool.run(1, train, job_in(dataset / "run", dataset, train={"max_steps": 6})) == whole


def test_another_dataset_is_refused(rank_pool, dataset):
    rank_pool.run(1, train, job_in(dataset / "run", dataset, train={"max_steps": 3}))
    tiny_dataset(dataset / "other", seed=9)
    other = job_in(dataset / "run", dataset, "other", train={"max_steps": 6})
    with pytest.raises(CheckpointError, match="another dataset"):
        rank_pool.run(1, train, other)


def test_the_manifest_describes_the_checkpoint(rank_pool, dataset):
    rank_pool.run(2, train, job_in(dataset / "run", dataset, train={"max_steps": 9}))
    found, _ = checkpoint_folder.newest(dataset / "run" / "checkpoints")
    assert found is not None
    assert (found.manifest.step, found.manifest.position) == (9, 60 + 8)
    assert found.manifest.plan["tables"]["item"]["sharding"] == "row_wise"
    assert json.dumps(found.manifest.config)
    assert set(found.manifest.files) == {p.name for p in found.path.iterdir()} - {"manifest.json"}


def train_with_rank_dependent_seed(world: World, job: Job) -> None:
    run = job.config.run.model_copy(update={"seed": world.rank})
    Training(with_sections(job, run=run), world, SILENT)


def test_ranks_that_disagree_stop_with_the_difference(rank_pool, dataset):
    with pytest.raises(Exception, match=r"config differs: rank 0 has .*, rank 1 has"):
        rank_pool.run(2, train_with_rank_dependent_seed, job_in(dataset / "run", dataset))
