"""Entries of [evaluate]."""

from tests.settings.entry import Entry
from tests.settings.logs import DAY, START
from tests.settings.observations.evaluation import (
    baselines,
    batches_scored,
    items_scored_at_a_time,
    list_lengths,
    metrics,
    slices,
    targets_of_users,
)
from tests.settings.observations.training import validation_metrics

BY_TIME = {
    "split": {"kind": "global_time", "validation_time": START + 3 * DAY, "test_time": START + 4 * DAY},
    "train.max_steps": 1,
}


def at_3_and_10(names: list[str]) -> list[str]:
    """Return the names of metrics with every length of lists replaced by 3 and 10."""
    stems = {name.partition("@")[0] for name in names if "@" in name}
    return sorted([name for name in names if "@" not in name] + [f"{stem}@{k}" for stem in stems for k in (3, 10)])


ENTRIES = (
    Entry("evaluate.ks", [3, 10], metrics, at_3_and_10),
    Entry("evaluate.ks", [3, 10], validation_metrics, at_3_and_10),
    # Of sixteen items a list of fifteen has room for those of the history only.
    Entry(
        "evaluate.mask_seen", False, list_lengths, lambda lengths: [15] * len(lengths), base={"evaluate.ks": [10, 15]}
    ),
    Entry("evaluate.targets", "first", targets_of_users, lambda numbers: [1] * len(numbers), base=BY_TIME),
    Entry(
        "evaluate.baselines",
        ["ease", "popularity"],
        baselines,
        ["popularity", "ease"],
    ),
    Entry(
        "evaluate.slices",
        ["user.shade", "history_length"],
        slices,
        ["history_length", "user.shade"],
        base={"logs.users": {"path": "LOGS/users.parquet", "features": {"shade": {"kind": "categorical"}}}},
    ),
    Entry("evaluate.batch_size", 5, batches_scored, [5, 5, 5, 5, 4]),
    Entry(
        "evaluate.score_block_items",
        16,
        items_scored_at_a_time,
        16,
        free="a smaller block needs less memory; ranks do not depend on it",
    ),
)
