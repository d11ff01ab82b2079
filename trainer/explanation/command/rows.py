"""Explanations as Arrow tables: values of events, smallest sets, effects of heads."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from trainer.explanation.attribution import Attribution
from trainer.explanation.command.questions import Batch
from trainer.explanation.heads import HeadEffects
from trainer.explanation.smallest_set import SmallestSets
from trainer.inference.trained_model import TrainedModel


def event_rows(trained: TrainedModel, batch: Batch, attributions: Mapping[str, Attribution]) -> pa.Table:
    """Return a row per question, method and event.

    Columns: user_id, item_id (explained), rank (null for a given item), score, method, position (1 for the oldest event of the
    user), event_item_id (null for an unknown item), time, value.
    """
    return pa.concat_tables([_rows_of(trained, batch, name, one) for name, one in attributions.items()])


def _rows_of(trained: TrainedModel, batch: Batch, method: str, of_method: Attribution) -> pa.Table:
    asked = batch.asked
    owner = asked.owner
    positions = (batch.lengths - asked.lengths)[owner] + asked.places + 1
    return pa.table(
        {
            **_question_columns(trained, batch, owner),
            "score": pa.array(of_method.scores[owner], pa.float32()),
            "method": pa.array([method] * owner.size, pa.string()),
            "position": pa.array(positions.astype(np.int32)),
            "event_item_id": _values(trained, asked.items),
            "time": _times(trained, asked.times, owner.size),
            "value": pa.array(of_method.values, pa.float32()),
        }
    )


def head_rows(trained: TrainedModel, batch: Batch, effects: HeadEffects) -> pa.Table:
    """Return a row per question and head: user_id, item_id, rank, layer, head (from 1), effect (fall of the score)."""
    number = len(effects.layers)
    owner = np.repeat(np.arange(batch.asked.size), number)
    return pa.table(
        {
            **_question_columns(trained, batch, owner),
            "layer": pa.array(list(effects.layers) * batch.asked.size, pa.string()),
            "head": pa.array(np.tile(np.asarray(effects.heads, np.int32) + 1, batch.asked.size), pa.int32()),
            "effect": pa.array(effects.effects.reshape(-1), pa.float32()),
        }
    )


def set_rows(trained: TrainedModel, batch: Batch, questions: np.ndarray, sets: SmallestSets, largest: int) -> pa.Table:
    """Return a row per question of which the smallest set was searched.

    Columns: user_id, item_id, rank, is_changed, is_smallest, positions and event_item_ids of the removed events, new_item_id
    (the best item without them), most_removed (size of the largest sets that were tried).

    Args:
        trained: the model.
        batch: the questions of the batch.
        questions: numbers of the searched ones, ascending.
        sets: their sets.
        largest: size of the largest sets.
    """
    asked = batch.asked.take(questions)
    sizes = sets.sizes(asked)
    offsets = pa.array(np.concatenate(([0], np.cumsum(sizes))).astype(np.int32))
    first = batch.lengths[questions] - asked.lengths
    positions = (first[asked.owner] + asked.places + 1)[sets.removed].astype(np.int32)
    return pa.table(
        {
            **_question_columns(trained, batch, questions),
            "is_changed": pa.array(sets.found),
            "is_smallest": pa.array(sets.is_smallest),
            "positions": pa.ListArray.from_arrays(offsets, pa.array(positions)),
            "event_item_ids": pa.ListArray.from_arrays(offsets, _values(trained, asked.items[sets.removed])),
            "new_item_id": _values(trained, sets.top_after),
            "most_removed": pa.array(np.full(questions.size, largest, np.int32)),
        }
    )


def _question_columns(trained: TrainedModel, batch: Batch, owner: np.ndarray) -> dict[str, pa.Array]:
    """Return the columns that name a question, for rows of these questions."""
    asked = batch.asked
    ranks = batch.ranks[owner].astype(np.int32)
    return {
        "user_id": asked.users.take(pa.array(owner)),
        "item_id": _values(trained, asked.targets[owner]),
        "rank": pa.array(ranks, pa.int32(), mask=ranks == 0),
    }


def _values(trained: TrainedModel, ids: np.ndarray) -> pa.Array:
    """Return items as in the logs; null for an unknown item."""
    return trained.item_values.take(pa.array(ids.astype(np.int64) - 1, mask=ids == 0))


def _times(trained: TrainedModel, times: np.ndarray | None, number: int) -> pa.Array:
    """Return times as timestamps where the logs have timestamps, else as integers."""
    if times is None:
        return pa.nulls(number, pa.int64())
    values = pa.array(times.astype(np.int64))
    kind = trained.manifest.source.get("time", {}).get("kind")
    return values.cast(pa.timestamp("us")) if kind == "timestamp" else values
