"""Entries of [evaluate]."""

from tests.settings.entry import Entry
from tests.settings.logs import DAY, START
from tests.settings.observations.evaluation import (
    baselines,
    batches_scored,
    items_scored_at_a_time,
    kernels_asked,
    list_lengths,
    metrics,
    queries,
    queries_by_hand,
    repeated_targets,
    sliced_values,
    sliced_values_by_hand,
    slices,
    targets_of_users,
)
from tests.settings.observations.training import validation_metrics

BY_TIME = {
    "split": {"kind": "global_time", "validation_time": START + 3 * DAY, "test_time": START + 4 * DAY},
    "train.max_steps": 1,
}
WITH_FEATURES = {
    "logs.features": {"colour": {"kind": "categorical"}},
    "logs.users": {
        "path": "LOGS/users.parquet",
        "features": {"shade": {"kind": "categorical"}, "colour": {"kind": "categorical"}},
    },
    "logs.items": {"path": "LOGS/items.parquet", "features": {"colour": {"kind": "categorical"}}},
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
    Entry(
        "evaluate.slices",
        ["impression.colour", "user.shade", "item.colour", "user_impressions"],
        slices,
        ["user_impressions", "impression.colour", "user.shade", "item.colour"],
        base=WITH_FEATURES,
        world="impressions",
    ),
    Entry(
        "evaluate.slices",
        ["impression.colour", "user.shade"],
        sliced_values,
        formula=sliced_values_by_hand,
        base=WITH_FEATURES,
        world="impressions",
    ),
    # Each of the held-out events is a query, and shows its own history.
    Entry("evaluate.targets", "each", queries, formula=queries_by_hand, base=BY_TIME),
    Entry("evaluate.repeats", "drop", repeated_targets, 0, base=BY_TIME),
    Entry(
        "evaluate.candidates",
        "LOGS/few.txt",
        list_lengths,
        lambda lengths: [3] * len(lengths),
        base={"evaluate.mask_seen": False},
    ),
    Entry("evaluate.compiled_kernels", True, kernels_asked, True, base={"model.encoder.num_blocks": 2}),
    Entry("evaluate.batch_size", 5, batches_scored, [5, 5, 5, 5, 4]),
    Entry(
        "evaluate.score_block_items",
        16,
        items_scored_at_a_time,
        16,
        free="a smaller block needs less memory; ranks do not depend on it",
    ),
)
