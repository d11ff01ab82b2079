"""Explanation of one history in this process, as a table."""

import numpy as np
import pyarrow as pa

from trainer.data.stream.columns import take_all
from trainer.data.stream.packed import PackedHistories
from trainer.errors import UserError
from trainer.explanation.explained import Explained, explained_model
from trainer.explanation.methods import METHODS, WITH_POOL, Method, MethodOptions, explain
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
    chosen = method_called(method)
    model = explained_model(trained)
    at = None if history.packed.times is None else history.requested_at
    rows = np.zeros(1, np.int64)
    asked = ask(history.packed, rows, history.lengths, target, at, model.max_events, keys=np.full(1, -1))
    return _values(model, stored, asked, int(history.lengths[0]), chosen, seed)


def explain_impression(
    trained: TrainedModel, stored: StoredHistories, packed: PackedHistories, label: str | None, method: str, seed: int
) -> pa.Table:
    """Return the value of each event of one history for the logit of a label, as `explain_history` does.

    Args:
        trained: a ranker.
        stored: histories of its dataset, for baselines.
        packed: one history with one impression.
        label: the label; None: the only one.
        method: name of the method.
        seed: seed of the draws.

    Raises:
        UserError: there is no such method or label, or no event is before the impression.
    """
    chosen = method_called(method)
    model = explained_model(trained, label=label)
    shown = packed.impressions
    assert shown is not None
    low = shown.history_end
    if not low[0]:
        raise UserError("history: has no event before the time of the impression, so there is nothing to explain")
    rows = np.zeros(1, np.int64)
    asked = ask(
        packed, rows, low, shown.items, shown.times, model.max_events, take_all(shown.features, rows), np.full(1, -1)
    )
    return _values(model, stored, asked, int(low[0]), chosen, seed)


def method_called(name: str) -> Method:
    """Return the method with a name. Raises UserError if there is none."""
    chosen = next((method for method in METHODS if method == name), None)
    if chosen is None:
        raise UserError(f"method = {name!r}: there is no such method; choose one of {', '.join(METHODS)}")
    return chosen


def _values(
    model: Explained, stored: StoredHistories, asked: Questions, length: int, method: Method, seed: int
) -> pa.Table:
    """Return the value of each event of one question. `length`: events before the request, of which the question has the last."""
    options = MethodOptions(pool=_pool(model, stored, asked, seed) if method in WITH_POOL else None, seed=seed)
    values = explain(model, asked, method, options).values
    newest_first = np.argsort(-asked.places)
    first = length - int(asked.lengths[0])
    ids = asked.items[newest_first].astype(np.int64)
    table = pa.table(
        {
            "position": pa.array((first + asked.places[newest_first] + 1).astype(np.int32)),
            "item_id": model.trained.item_values.take(pa.array(ids - 1, mask=ids == 0)),
            "value": pa.array(values[newest_first], pa.float32()),
        }
    )
    if asked.times is None:
        return table
    return table.add_column(2, "time", pa.array(asked.times[newest_first].astype(np.int64)))


def _pool(model: Explained, stored: StoredHistories, asked: Questions, seed: int) -> Questions:
    """Return histories of the dataset, drawn by the seed, with the target of the question."""
    users = stored.users
    drawn = np.sort(np.random.default_rng(seed).choice(len(users), min(POOL, len(users)), replace=False))
    given = stored.read(users.take(pa.array(drawn)), drawn)
    rows = np.flatnonzero(given.lengths)
    same = np.zeros(rows.size, np.int64)
    at = None if given.packed.times is None else given.requested_at[rows]
    features = take_all(asked.target_features, same)
    return ask(
        given.packed, rows, given.lengths[rows], asked.targets[same], at, model.max_events, features, drawn[rows]
    )
