"""Explanation of one history in this process, as a table."""

import numpy as np
import pyarrow as pa

from trainer.errors import UserError
from trainer.explanation.explained import Explained, explained_model
from trainer.explanation.methods import METHODS, WITH_POOL, MethodOptions, explain
from trainer.explanation.questions import Questions, ask
from trainer.inference.requests import Histories
from trainer.inference.stored import StoredHistories
from trainer.inference.trained_model import TrainedModel

POOL = 256  # histories of the dataset for baselines


def explain_history(
    trained: TrainedModel, stored: StoredHistories, history: Histories, target: np.ndarray, method: str, seed: int = 0
) -> pa.Table:
    """Return the value of each event of one history, the newest first: position, item_id, time, value.

    Args:
        trained: a next-item model.
        stored: histories of its dataset, for baselines.
        history: one history with events.
        target: (1,) id of the item that is explained.
        method: name of the method.
        seed: seed of the draws.

    Raises:
        UserError: there is no such method.
    """
    chosen = next((name for name in METHODS if name == method), None)
    if chosen is None:
        raise UserError(f"method = {method!r}: there is no such method; choose one of {', '.join(METHODS)}")
    model = explained_model(trained)
    asked = _question(model, history, np.zeros(1, np.int64), target, np.full(1, -1))
    options = MethodOptions(pool=_pool(model, stored, seed) if chosen in WITH_POOL else None, seed=seed)
    values = explain(model, asked, chosen, options).values
    newest_first = np.argsort(-asked.places)
    first = int(history.lengths[0] - asked.lengths[0])
    ids = asked.items[newest_first].astype(np.int64)
    table = pa.table(
        {
            "position": pa.array((first + asked.places[newest_first] + 1).astype(np.int32)),
            "item_id": trained.item_values.take(pa.array(ids - 1, mask=ids == 0)),
            "value": pa.array(values[newest_first], pa.float32()),
        }
    )
    if asked.times is None:
        return table
    return table.add_column(2, "time", pa.array(asked.times[newest_first].astype(np.int64)))


def _question(model: Explained, given: Histories, rows: np.ndarray, targets: np.ndarray, keys: np.ndarray) -> Questions:
    at = None if given.packed.times is None else given.requested_at[rows]
    return ask(given.packed, rows, given.lengths[rows], targets, at, model.max_events, keys=keys)


def _pool(model: Explained, stored: StoredHistories, seed: int) -> Questions:
    """Return histories of the dataset, drawn by the seed."""
    users = stored.users
    rows = np.sort(np.random.default_rng(seed).choice(len(users), min(POOL, len(users)), replace=False))
    given = stored.read(users.take(pa.array(rows)), rows)
    filled = np.flatnonzero(given.lengths)
    return _question(model, given, filled, np.ones(filled.size, np.int64), rows[filled])
