"""From settings and model to ranks per user: what is evaluated, the baseline next to it, and the mode that the model is left in."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
)

from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job, with_sections
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.next_item.test_results import LastItemNext
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.evaluation.next_item.baselines.build import build_baselines
from trainer.evaluation.next_item.evaluate import Evaluator, write_user_rows
from trainer.evaluation.next_item.merged_rows import merge_parts
from trainer.evaluation.next_item.metrics import METRICS
from trainer.evaluation.next_item.read_similarity import read_similarity
from trainer.evaluation.next_item.results import Evaluated, summarize
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.tasks.next_item.task import NextItemTask

ALONE = World(0, 1, torch.device("cpu"))
KS = [2, 5]


def job_in(tmp_path: Path, **sections: dict[str, Any]) -> Job:
    if not (tmp_path / "dataset").exists():
        tiny_dataset(tmp_path / "dataset", mean_events=8)
    evaluate = {"ks": KS, **sections.pop("evaluate", {})}
    return tiny_job(tmp_path / "run", tmp_path / "dataset", evaluate=evaluate, **sections)


def evaluator_of(job: Job, world: World = ALONE, split: Any = "test") -> Evaluator:
    """As both the loop and the evaluate stage ask for it."""
    manifest = read_manifest(job.dataset_dir)
    assert isinstance(job.config.model, NextItemConfig)
    catalogue = read_catalogue(job.dataset_dir, manifest, job.config.tables, job.config.model)
    task = NextItemTask(job, job.config.model, manifest, catalogue)
    return task.evaluator(split, world, DynamicTables({}, (), seed=0))


class Walk(LastItemNext):
    """Next is the item after the last. Knows its mode, as a module does."""

    def __init__(self, num_item_rows: int) -> None:
        super().__init__(num_item_rows)
        self.training = True

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def user_vectors(self, by_table: dict[str, Tensor], batch: HistoryBatch) -> Tensor:
        assert not self.training
        return super().user_vectors(by_table, batch)


def written(tmp_path: Path, job: Job) -> list[dict[str, Any]]:
    """Return the rows that the stage writes per user, with the user's history."""
    manifest = read_manifest(job.dataset_dir)
    model: Any = Walk(manifest.num_item_rows)
    train_events = read_vocabulary(job.dataset_dir, manifest).train_events
    assert isinstance(job.config.model, NextItemConfig)
    evaluate = job.config.evaluate
    baselines = build_baselines(
        job.dataset_dir, manifest, train_events, job.config.model, evaluate, unknown=False, world=ALONE
    )
    write_user_rows(evaluator_of(job), model, baselines, tmp_path / "parts", lambda done, total: None)
    rows = [row for part in manifest.parts for row in pq.read_table(job.dataset_dir / part.path).to_pylist()]
    found = merge_parts(tmp_path / "parts").to_table().to_pylist()
    return [{**user, "row": rows[user["row_id"]]} for user in found]


@pytest.mark.parametrize("mask_seen", [True, False])
def test_the_popularity_baseline_ranks_items_by_their_training_events(tmp_path: Path, mask_seen: bool) -> None:
    job = job_in(tmp_path, evaluate={"mask_seen": mask_seen})
    train_events = read_vocabulary(job.dataset_dir, read_manifest(job.dataset_dir)).train_events
    assert len(set(train_events.tolist())) > 3
    users = written(tmp_path, job)
    assert len(users) > 20
    for user in users:
        seen = set(user["row"]["item"][:-1]) if mask_seen else set()
        by_popularity = sorted(range(1, train_events.size + 1), key=lambda item: (-train_events[item - 1], item))
        order = [item for item in by_popularity if item not in seen]
        assert user["popularity_top_items"] == order[: max(KS)]
        assert user["popularity_ranks"] == [0 if t in seen else order.index(t) + 1 for t in user["targets"]]


def test_model_and_baseline_are_not_exchanged(tmp_path: Path) -> None:
    num_items = read_manifest(job_in(tmp_path).dataset_dir).counts.num_items
    for user in written(tmp_path, job_in(tmp_path)):
        *history, target = user["row"]["item"]
        expected = history[-1] % num_items + 1
        if history[-1] < num_items and expected not in history:
            assert user["top_items"][0] == expected
            assert (user["ranks"] == [1]) == (target == expected)


def test_the_model_is_evaluated_without_dropout_and_keeps_its_mode(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    model: Any = Walk(read_manifest(job.dataset_dir).num_item_rows)
    for mode in (True, False):
        model.train(mode)
        evaluator_of(job).mean_metrics(model)
        assert model.training == mode


@pytest.mark.parametrize("targets", ["all", "first"])
def test_the_setting_chooses_the_evaluated_targets(tmp_path: Path, targets: str) -> None:
    assert evaluator_of(job_in(tmp_path, evaluate={"targets": targets})).held_out.targets == targets


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
def test_a_model_of_masked_items_is_asked_for_a_masked_event_behind_each_history(tmp_path: Path, kind: str) -> None:
    job = job_in(tmp_path, model={"encoder": {"kind": kind, "num_blocks": 1, "dropout": 0.0}})
    for held in evaluator_of(job).held_out.batches():
        batch, masked = held.batch, held.batch.masked
        if kind == "sasrec":
            assert masked is None
            continue
        assert masked is not None
        assert np.flatnonzero(masked.numpy()).tolist() == (batch.layout.offsets[1:] - 1).tolist()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_split_that_is_asked_for_is_evaluated(tmp_path: Path, split: str) -> None:
    job = job_in(tmp_path)
    rows = [
        row
        for part in read_manifest(job.dataset_dir).parts
        for row in pq.read_table(job.dataset_dir / part.path).to_pylist()
    ]
    found = {
        int(row): targets.tolist()
        for held in evaluator_of(job, split=split).held_out.batches()
        for row, targets in zip(held.row_ids, np.split(held.targets, held.target_offsets[1:-1]), strict=True)
        if held.row_ids.size
    }
    place = -2 if split == "validation" else -1
    assert found == {n: [row["item"][place]] for n, row in enumerate(rows) if len(row["item"]) >= 3}


def means(world: World, job: Job) -> dict[str, float]:
    model: Any = Walk(read_manifest(job.dataset_dir).num_item_rows)
    return evaluator_of(job, world).mean_metrics(model)


def test_means_while_training_are_those_of_all_ranks(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path)
    alone = means(ALONE, job)
    assert 0.1 < alone["hr@2"] < 0.9
    for of_rank in rank_pool.run(2, means, job):
        assert of_rank == pytest.approx(alone)
    first_only = with_sections(job, evaluate=job.config.evaluate.model_copy(update={"ks": [1]}))
    assert set(means(ALONE, first_only)) == {metric.value_name(1) for metric in METRICS if metric.of_users is not None}


def write_parts(world: World, job: Job, folder: Path) -> None:
    manifest = read_manifest(job.dataset_dir)
    model: Any = Walk(manifest.num_item_rows)
    events = read_vocabulary(job.dataset_dir, manifest).train_events
    assert isinstance(job.config.model, NextItemConfig)
    evaluate = job.config.evaluate.model_copy(update={"baselines": ["popularity"]})
    baselines = build_baselines(
        job.dataset_dir, manifest, events, job.config.model, evaluate, unknown=False, world=world
    )
    write_user_rows(evaluator_of(job, world), model, baselines, folder, lambda done, total: None)


def test_no_metric_depends_on_ranks_and_batches_and_all_equal_those_of_torchmetrics(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    job = job_in(tmp_path)
    manifest = read_manifest(job.dataset_dir)
    events = read_vocabulary(job.dataset_dir, manifest).train_events
    similarity = read_similarity(job.dataset_dir, manifest, events.size)
    results = []
    for world_size, batch_size in ((1, 512), (1, 5), (2, 16), (4, 7)):
        parts = tmp_path / f"parts-{world_size}-{batch_size}"
        of_size = with_sections(job, evaluate=job.config.evaluate.model_copy(update={"batch_size": batch_size}))
        rank_pool.run(world_size, write_parts, of_size, parts)
        merged = merge_parts(parts)
        evaluated = Evaluated("test", "step", job.config.evaluate, manifest, events, "all", similarity=similarity)
        results.append(summarize(merged, evaluated)[0])
    assert all(other == results[0] for other in results[1:])
    assert {name.partition("@")[0] for name in results[0].metrics} == {metric.name for metric in METRICS}

    # The same predictions as scores: the place of each user's target counted from the end of the catalogue.
    ranks = torch.tensor([row[0] for row in merged.to_table().column("ranks").to_pylist()])
    places = torch.arange(1, events.size + 1).repeat(len(ranks), 1)
    preds, target, indexes = (
        -places.float(),
        places == ranks[:, None],
        torch.arange(len(ranks))[:, None].expand_as(places),
    )
    for k in KS:
        for name, of_library in (
            ("hr", RetrievalHitRate),
            ("ndcg", RetrievalNormalizedDCG),
            ("recall", RetrievalRecall),
            ("precision", RetrievalPrecision),
            ("map", RetrievalMAP),
        ):
            value = of_library(top_k=k)(preds.flatten(), target.flatten(), indexes=indexes.flatten()).item()
            assert results[0].metrics[f"{name}@{k}"] == pytest.approx(value, rel=1e-5), name
    value = RetrievalMRR()(preds.flatten(), target.flatten(), indexes=indexes.flatten()).item()
    assert results[0].metrics["mrr"] == pytest.approx(value, rel=1e-5)
