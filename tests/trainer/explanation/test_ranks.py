"""Explanations with sharded tables: the same on one worker and on two, which have unequal numbers of questions."""

from pathlib import Path

import numpy as np
import pytest

from sharding.world import World
from tests.contracts.test_ranking import job_in
from tests.contracts.test_score_invariance import with_noise
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.packed import PackedHistories, joined
from trainer.data.stream.row_groups import RowGroupReader
from trainer.explanation.catalogue import Seen
from trainer.explanation.explained import Explained, ExplainedNextItem, explained_model
from trainer.explanation.methods import METHODS, MethodOptions, explain
from trainer.explanation.questions import Questions, ask
from trainer.explanation.smallest_set import smallest_sets
from trainer.explanation.top_items import catalogue_top
from trainer.inference.trained_model import TrainedModel
from trainer.loop.build import build_model

Values = dict[int, dict[str, list[float]]]  # by question and method


def questions(model: Explained, packed: PackedHistories) -> Questions:
    """Return a question for every row, or for every seventh impression."""
    if isinstance(model, ExplainedNextItem):
        rows = np.arange(packed.starts.size)
        low = packed.ends - packed.starts - 1
        targets = packed.items[packed.starts + low]
        return ask(packed, rows, low, np.maximum(targets, 1), None, model.max_events)
    shown = packed.impressions
    assert shown is not None
    chosen = np.arange(0, shown.items.size, 7)
    owner = np.repeat(np.arange(packed.starts.size), shown.ends - shown.starts)
    return ask(
        packed,
        owner[chosen],
        shown.history_end[chosen],
        shown.items[chosen],
        shown.times[chosen],
        model.max_events,
        keys=chosen,
    )


def explained_on_rank(world: World, job: Job) -> Values:
    """Return the values of all methods for this rank's questions. Collective."""
    manifest = read_manifest(job.dataset_dir)
    built = build_model(job, manifest, world)
    with_noise(built.model.encoder if manifest.task == "next_item" else built.model.interest)
    trained = TrainedModel(job, manifest, None, built.model, built.catalogue, built.dynamic)  # type: ignore[arg-type]
    model = explained_model(trained, world, None if manifest.task == "next_item" else "click")
    columns = columns_for(trained.catalogue)
    if manifest.task == "ranking":
        columns = type(columns)(**{**vars(columns), "impressions": True})
    reader = RowGroupReader(job.dataset_dir, manifest, columns)
    packed = joined([reader.read([group])[group] for group in range(len(reader.group_rows))])
    every = questions(model, packed)
    pool = every.part(0, 10)
    mine = np.arange(every.size)
    # The second rank has the last five questions only.
    cut = every.size if world.world_size == 1 else every.size - 5
    asked = every.take(mine[:cut] if world.rank == 0 else mine[cut:])
    options = MethodOptions(pool=pool, n_steps=10, num_samples=2, tolerance=None, internal_batch_size=60)
    result: Values = {key: {} for key in asked.keys.tolist()}
    for method in METHODS:
        attribution = explain(model, asked, method, options)
        for number, key in enumerate(asked.keys.tolist()):
            result[key][method] = [*attribution.of(number).tolist(), float(attribution.scores[number])]
    if isinstance(model, ExplainedNextItem):
        top = catalogue_top(model, Seen(asked.items.astype(np.int64), asked.offsets))
        sets = smallest_sets(top, asked, max_size=3, internal_batch_size=60)
        for number, key in enumerate(asked.keys.tolist()):
            events = slice(asked.offsets[number], asked.offsets[number + 1])
            result[key]["smallest set"] = [*sets.removed[events].tolist(), int(sets.top_before[number])]
    return result


@pytest.mark.parametrize("task", ["next_item", "ranking"])
def test_explanations_are_the_same_at_every_world_size(task: str, rank_pool: RankPool, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    if task == "next_item":
        tiny_dataset(dataset, num_users=25)
    else:
        write_world(dataset, random_shown(count=300))
    values: list[Values] = []
    for world_size in (1, 2):
        if task == "next_item":
            job = tiny_job(tmp_path / str(world_size), dataset)
        else:
            model = {"kind": "hstu", "encoder": {"dropout": 0.0}, "inputs": {"time_unit": "seconds"}}
            job = job_in(tmp_path / str(world_size), dataset, model)
        together: Values = {}
        for of_rank in rank_pool.run(world_size, explained_on_rank, job):
            together |= of_rank
        values.append(together)
    one, two = values
    assert one.keys() == two.keys()
    assert len(one) > 15
    for method in next(iter(one.values())):
        expected = np.concatenate([one[key][method] for key in one])
        actual = np.concatenate([two[key][method] for key in one])
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=method)
