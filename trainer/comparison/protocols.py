"""Conditions of a comparison: the same protocol, the same users and the same targets. A difference is refused by name."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.comparison.evaluations import StoredEvaluation
from trainer.errors import UserError
from trainer.settings import flatten

# Entries that say nothing about what is measured: how baselines are computed, the sentence that repeats the other entries, and what
# the training data of a model have of later logs. Users and targets are compared themselves.
_NOT_COMPARED = (
    *("baselines", "statement", "dataset", "base_dataset", "num_events", "num_rejected"),
    *("num_unknown_items", "num_unknown_item_events", "num_new_users"),
)
# The length of the history is a setting of a ranking model (model.max_history), in the same sentence as the protocol's part of it.
_LENGTH_OF_HISTORY = re.compile(r", the most recent \d+$")
_MISSING = "not stated"


def refuse_other_protocols(evaluations: Sequence[StoredEvaluation]) -> None:
    """Raise UserError that lists the entries in which the protocols of evaluations differ."""
    tasks = [{"task": evaluation.values["task"]} for evaluation in evaluations]
    # Protocols of different tasks have other entries, which would hide this one.
    lines = _differing(evaluations, tasks) or _differing(evaluations, [_compared(one) for one in evaluations])
    if lines:
        raise UserError(
            "compare: the protocols differ, so the figures cannot be compared:\n  "
            + "\n  ".join(lines)
            + "\nevaluate all runs by one protocol with this version of shoal (`shoal evaluate`), or compare others"
        )


def other_entries(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    """Return the entries of the protocols that differ and may differ, with their values; wording is not among them."""
    names = [name for name in _NOT_COMPARED if name not in ("baselines", "statement")]
    entries = [
        {name: value for name, value in evaluation.values["protocol"].items() if name in names}
        for evaluation in evaluations
    ]
    return _differing(evaluations, entries)


def _compared(evaluation: StoredEvaluation) -> dict[str, Any]:
    """Return the entries that must be equal besides the task, flat: the split, and those of the protocol."""
    protocol = {name: value for name, value in evaluation.values["protocol"].items() if name not in _NOT_COMPARED}
    if isinstance(protocol.get("history"), str):
        protocol["history"] = _LENGTH_OF_HISTORY.sub("", protocol["history"])
    return {"evaluated split": evaluation.values["split"], **flatten(protocol)}


def _differing(evaluations: Sequence[StoredEvaluation], entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each entry that evaluations have different values of."""
    lines = []
    for name in dict.fromkeys(name for of_one in entries for name in of_one):
        by_value: dict[str, list[str]] = {}
        for evaluation, of_one in zip(evaluations, entries, strict=True):
            by_value.setdefault(str(of_one.get(name, _MISSING)), []).append(evaluation.name)
        if len(by_value) > 1:
            lines.append(f"{name}: " + "; ".join(f"{value} in {', '.join(who)}" for value, who in by_value.items()))
    return lines


def with_common_users(
    evaluations: Sequence[StoredEvaluation], common_users: bool
) -> tuple[list[StoredEvaluation], int]:
    """Return the evaluations with the same users in the same order, and how many users were left out of them.

    Args:
        evaluations: the first one gives the order.
        common_users: whether users that some evaluation lacks are left out.

    Raises:
        UserError: users differ and are not to be left out, or none are in all evaluations.
    """
    first = evaluations[0]
    places = [_places(first, other) for other in evaluations[1:]]
    shared = np.ones(first.table.num_rows, np.bool_)
    for of_other in places:
        shared &= of_other.is_valid().to_numpy(zero_copy_only=False)
    num_shared = int(shared.sum())
    of_all = max(evaluation.table.num_rows for evaluation in evaluations)
    if num_shared == of_all and all(evaluation.table.num_rows == num_shared for evaluation in evaluations):
        left_out = 0
    else:
        counts = ", ".join(f"{evaluation.table.num_rows:,} in {evaluation.name}" for evaluation in evaluations)
        if not num_shared:
            raise UserError(f"compare: no user is in all evaluations ({counts}); compare runs on the same logs")
        if not common_users:
            raise UserError(
                f"compare: the users differ: {counts}, of which {num_shared:,} are in all; --common-users compares the models on "
                "these alone"
            )
        union = pa.concat_arrays([_comparable(evaluation.users) for evaluation in evaluations])
        left_out = int(pc.count_distinct(union).as_py()) - num_shared
    rows = pa.array(np.flatnonzero(shared))
    return [first.take(rows), *(e.take(p.take(rows)) for e, p in zip(evaluations[1:], places, strict=True))], left_out


def refuse_other_targets(evaluations: Sequence[StoredEvaluation]) -> None:
    """Raise UserError where the same users have other targets. The evaluations must have the same users in the same order."""
    first = evaluations[0]
    for other in evaluations[1:]:
        if first.values["task"] == "next_item":
            number = _num_other_lists(first.table.column("targets"), other.table.column("targets"))
            what = "targets"
        else:
            number, what = _num_other_counts(first, other), "impressions"
        if number:
            raise UserError(
                f"compare: the {what} of {number:,} of {first.table.num_rows:,} users differ between {first.name} and "
                f"{other.name}: these are other held-out events; evaluate both runs on the same logs and split"
            )


def _comparable(users: pa.Array) -> pa.Array:
    """Return users in one type, so that those of two evaluations can be compared."""
    return pc.cast(users, pa.int64()) if pa.types.is_integer(users.type) else pc.cast(users, pa.string())


def _places(first: StoredEvaluation, other: StoredEvaluation) -> pa.Array:
    """Return the row in `other` of each user of `first`, null where it has none."""
    wanted, known = _comparable(first.users), _comparable(other.users)
    if wanted.type != known.type:
        wanted, known = pc.cast(wanted, pa.string()), pc.cast(known, pa.string())
    return pc.index_in(wanted, value_set=known)


def _num_other_lists(first: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """Return how many users have other lists of targets. An unknown item, which is null, may be any."""
    lengths, other_lengths = (pc.list_value_length(column).to_numpy() for column in (first, other))
    same_length = lengths == other_lengths
    selected = pa.array(same_length)
    ours, others = (pc.list_flatten(column.filter(selected)) for column in (first, other))
    if ours.type != others.type:
        ours, others = (pc.cast(column, pa.string()) for column in (ours, others))
    differs = pc.fill_null(pc.not_equal(ours, others), False).to_numpy(zero_copy_only=False)
    users = np.repeat(np.flatnonzero(same_length), lengths[same_length])
    return int((~same_length).sum()) + int(np.unique(users[differs]).size)


def _num_other_counts(first: StoredEvaluation, other: StoredEvaluation) -> int:
    """Return how many users have other numbers of impressions, or of positives of a label that both models have."""
    labels = [label for label in first.labels if label in other.labels]
    differs = np.zeros(first.table.num_rows, np.bool_)
    pairs = [(first.table.column("impressions").to_numpy(), other.table.column("impressions").to_numpy())]
    pairs += [(first.column(f"positives/{label}"), other.column(f"positives/{label}")) for label in labels]
    for ours, others in pairs:
        differs |= ours != others
    return int(differs.sum())
