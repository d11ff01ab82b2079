"""Entries of [tables] and [communication]: placement, look-up, update and ids of rows."""

from sharding.plan import Shard
from tests.settings.entry import Entry, Settings
from tests.settings.observations.logs import count
from tests.settings.observations.models import loss
from tests.settings.observations.tables import (
    cached_share,
    decayed_by_hand,
    device_bytes,
    first_update,
    ids_kind,
    ids_sum,
    ids_with_rows,
    in_load,
    in_plan,
    item_rows,
    looked_up_as_bags,
    most_ids,
    num_rows,
    optimizer_numbers,
    rows_sent,
    shard_widths,
    shards,
    update_sent,
    updates,
    widths,
)

ITEM, COLOUR = "tables.item", "tables.colour"
FREE = "apart from the order of sums, results do not depend on the placement of rows"
CACHED: Settings = {"cluster.gpus_per_worker": 1, f"{ITEM}.kernel": "fused_uvm_caching"}
FOUR: Settings = {"cluster.num_workers": 4}
# Shades are seven values, so that six rows are too few for all.
EVENTS: Settings = {"logs.features": {"colour": {"kind": "categorical", "column": "shade"}}}
WORDS: Settings = {"logs.features": {"colour": {"kind": "categorical", "column": "words", "separator": "|"}}}
DYNAMIC: Settings = {**EVENTS, COLOUR: {"ids": {"kind": "dynamic", "num_rows": 8, "admit_after": 1}}}
FULL: Settings = {
    "logs.features": {"colour": {"kind": "categorical", "column": "tally"}},
    COLOUR: {"ids": {"kind": "dynamic", "num_rows": 4, "admit_after": 1, "max_age_steps": 1}},
}

PLAIN_UPDATES: Settings = {f"{ITEM}.optimizer": "sgd", f"{ITEM}.learning_rate": 100.0}

PLACEMENT = (
    Entry(f"{ITEM}.dim", 12, widths, {"item": 12}),
    Entry(f"{ITEM}.sharding", "table_wise", in_plan("sharding"), "table_wise", free=FREE),
    Entry(
        f"{ITEM}.kernel",
        "fused",
        in_plan("kernel"),
        "fused",
        base={"cluster.gpus_per_worker": 1, f"{ITEM}.kernel": "fused_uvm"},
        free=FREE,
    ),
    Entry(
        f"{ITEM}.ranks",
        [2],
        shards,
        [Shard(2, 0, 0, 17, 8)],
        base={**FOUR, f"{ITEM}.sharding": "table_wise"},
        free=FREE,
    ),
    Entry(
        f"{ITEM}.min_partition",
        8,
        shard_widths,
        {8},
        base={
            **FOUR,
            f"{ITEM}.dim": 16,
            f"{ITEM}.sharding": "column_wise",
            f"{ITEM}.optimizer": "adagrad",
            f"{ITEM}.min_partition": 4,
        },
        free=FREE,
    ),
    # Eight histories of a batch.
    Entry(f"{ITEM}.pooling_factor", 3.0, in_load("ids_per_rank"), 24.0, free="for the plan alone"),
    Entry(
        f"{ITEM}.cache_load_factor",
        0.25,
        cached_share,
        0.25,
        base=CACHED,
        free=FREE,
    ),
    Entry(f"{ITEM}.cache_load_factor", 0.25, device_bytes, base={**CACHED, f"{ITEM}.cache_load_factor": 1.0}),
    Entry(f"{COLOUR}.lookup", "bags", looked_up_as_bags, base=WORDS, free=FREE),
)

UPDATES = (
    Entry(f"{ITEM}.optimizer", "adagrad", optimizer_numbers, lambda per_row: 8 * per_row),
    Entry(f"{ITEM}.optimizer", "sgd", updates),
    # Row-wise Adagrad begins with a step of the whole rate.
    Entry(f"{ITEM}.learning_rate", 0.2, first_update, lambda moved: 4.0 * moved),
    Entry(f"{ITEM}.eps", 0.5, first_update),
    Entry(f"{ITEM}.weight_decay", 0.3, first_update, formula=decayed_by_hand(0.3)),
    Entry(f"{ITEM}.init_std", 1.5, item_rows, lambda rows: 3.0 * rows),
    Entry(f"{COLOUR}.pooling", "sum", loss, base=WORDS),
)

IDS = (
    Entry(
        f"{COLOUR}.ids.kind",
        "vocabulary",
        ids_kind,
        "vocabulary",
        base={**EVENTS, f"{COLOUR}.ids": {"kind": "hash", "num_rows": 5}},
        besides={f"{COLOUR}.ids": {}},
    ),
    Entry(f"{COLOUR}.ids.kind", "hash", ids_kind, "hash", base=EVENTS, besides={f"{COLOUR}.ids.num_rows": 5}),
    Entry(f"{COLOUR}.ids.kind", "dynamic", ids_kind, "dynamic", base=EVENTS, besides={f"{COLOUR}.ids.num_rows": 5}),
    Entry(f"{ITEM}.ids.min_count", 12, count("rare_items")),
    Entry(f"{ITEM}.ids.num_rows", 7, num_rows("item"), 7, base={f"{ITEM}.ids": {"kind": "hash", "num_rows": 5}}),
    Entry(f"{COLOUR}.ids.num_rows", 6, num_rows("colour"), 6, base=DYNAMIC),
    Entry(f"{COLOUR}.ids.num_rows", 6, most_ids("rows_used"), base=DYNAMIC),
    Entry(f"{COLOUR}.ids.admit_after", 10**6, ids_sum("admitted"), 0, base=DYNAMIC),
    Entry(f"{COLOUR}.ids.evict", "use", ids_with_rows, base={**FULL, f"{COLOUR}.ids.max_age_steps": 1000}),
    Entry(f"{COLOUR}.ids.max_age_steps", 1000, ids_sum("evicted"), 0, base=FULL),
    Entry(
        f"{COLOUR}.ids.half_life_steps",
        1,
        ids_with_rows,
        base={**FULL, f"{COLOUR}.ids.evict": "use", "train.epochs": 4},
    ),
    Entry(
        f"{COLOUR}.ids.max_candidates",
        2,
        most_ids("candidates"),
        2,
        base={**DYNAMIC, f"{COLOUR}.ids.admit_after": 10**6},
    ),
)

COMMUNICATION = (
    Entry("communication.forward", "fp16", rows_sent, lambda rows: rows.half().float()),
    Entry("communication.backward", "fp16", update_sent, base=PLAIN_UPDATES),
)

ENTRIES = (*PLACEMENT, *UPDATES, *IDS, *COMMUNICATION)
