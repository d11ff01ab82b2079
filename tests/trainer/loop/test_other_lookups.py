"""Look-ups outside of steps: no optimizer counts them, and evaluation scores in float32 under every training precision."""

from typing import Any

import numpy as np
import torch

from sharding.tables.fused import fused_tables
from sharding.world import World
from tests.support.jobs import with_sections
from tests.trainer.loop.test_step import Rig, batch_of, job_with, poison, sequences_of
from trainer.config.job import Job
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items


def counted(world: World, job: Job) -> tuple[list[int], list[int], float]:
    """Take four steps, of which the second is not applied, and after each a look-up that trains nothing.

    Returns what fused tables count from in each step, what both of their counters are at last, and the number of updates.
    """
    rig = Rig.build(world, job)
    seen: list[int] = []
    tables = fused_tables(rig.built.sharded_model)
    model: Any = rig.built.model
    look_up = type(model).look_up

    def spy(request: Any, *sent: Any) -> Any:
        seen.extend(int(table.iter_cpu) for table in tables)
        return look_up(model, request, *sent)

    model.look_up = spy
    for number in range(4):
        mend = poison(rig, "loss is nan") if number == 1 else lambda: None
        rig.train(seed=number, number=number)
        mend()
        model.look_up(batch_of([[1, 2, 3]], job).items)
        seen.pop()
    final = [int(count) for table in tables for count in (table.iter, table.iter_cpu)]
    return seen, final, float(rig.step.optimizers.num_updates)


def test_fused_optimizers_receive_the_number_of_updates_before_each_step(rank_pool, tmp_path):
    """Neither look-ups that train nothing nor steps that are not applied count."""
    seen, final, num_updates = rank_pool.run(1, counted, job_with(tmp_path))[0]
    assert seen == [0, 1, 1, 2]
    assert final == [4, 4]  # two more than the last step found: the step's own look-up and one that trains nothing
    assert num_updates == 3


def evaluated_scores(world: World, job: Job) -> np.ndarray:
    """Return the scores of all items for some users after a step."""
    rig = Rig.build(world, job)
    rig.train(seed=1)
    model, batch = rig.built.model.eval(), batch_of(sequences_of(2), job)
    with torch.no_grad():
        rows = model.look_up(batch.items)
        users, items = model.user_vectors(rows, batch), model.item_vectors(rows, batch.items)[1:]
    none, offsets = np.zeros(0, np.int64), np.zeros(users.shape[0] + 1, np.int64)
    query = Query(users, none, offsets, none, offsets)
    return rank_items(query, ItemShard(items, 1), items.shape[0], False, 16, world).top_scores


def test_scores_of_an_evaluation_are_float32_for_any_training_precision(rank_pool, tmp_path):
    job = job_with(tmp_path)
    low = with_sections(job, train=job.config.train.model_copy(update={"precision": "bfloat16"}))
    scores = torch.from_numpy(rank_pool.run(1, evaluated_scores, low)[0])
    assert scores.dtype == torch.float32
    assert (scores == scores.bfloat16().float()).double().mean() < 0.05
