"""Entries of [evaluate]."""

from tests.settings.entry import Entry
from tests.settings.logs import DAY, START
from tests.settings.observations.evaluation import (
    batches_scored,
    items_scored_at_a_time,
    list_lengths,
    metrics,
    targets_of_users,
)
from tests.settings.observations.training import validation_metrics

BY_TIME = {
    "split": {"kind": "global_time", "validation_time": START + 3 * DAY, "test_time": START + 4 * DAY},
    "train.max_steps": 1,
}

ENTRIES = (
    Entry(
        "evaluate.ks",
        [3, 10],
        metrics,
        ["coverage@10", "coverage@3", "hr@10", "hr@3", "mrr", "ndcg@10", "ndcg@3"],
    ),
    Entry("evaluate.ks", [3, 10], validation_metrics, ["hr@10", "hr@3", "mrr", "ndcg@10", "ndcg@3"]),
    # Of sixteen items a list of fifteen has room for those of the history only.
    Entry(
        "evaluate.mask_seen", False, list_lengths, lambda lengths: [15] * len(lengths), base={"evaluate.ks": [10, 15]}
    ),
    Entry("evaluate.targets", "first", targets_of_users, lambda numbers: [1] * len(numbers), base=BY_TIME),
    Entry("evaluate.batch_size", 5, batches_scored, [5, 5, 5, 5, 4]),
    Entry(
        "evaluate.score_block_items",
        16,
        items_scored_at_a_time,
        16,
        free="a smaller block needs less memory; ranks do not depend on it",
    ),
)
