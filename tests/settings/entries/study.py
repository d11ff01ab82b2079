"""Entries of a study."""

from typing import Any

from tests.settings.entry import Entry, Settings
from tests.settings.observations.studies import (
    best_point,
    checkpoints_left,
    coloured_by,
    drawn,
    events_per_history,
    in_range,
    integers_in_range,
    run_folders,
    seeds,
    splits_evaluated,
    table_parameters,
    training_flops,
    trials,
    trials_at_once,
)

WORLD = "study"
ONE_SEED: Settings = {"study.seeds": [1]}
CHOICE: Settings = {"model.max_history": {"choice": list(range(3, 99))}}


def random(ranges: Settings, **more: Any) -> Settings:
    """Return the settings of a study of random points, in place of a grid."""
    return {
        **ONE_SEED,
        "study.kind": "random",
        "study.grid": {},
        "study.random": {"points": 3, "ranges": ranges, **more},
    }


def of_range(kind: str, values: list[float]) -> Entry:
    """Return an entry of a kind of range, which is narrower than another in its base."""
    wide = {"train.learning_rate": {"uniform": [0.5, 0.9]}}
    narrow = {"train.learning_rate": {kind: values}}
    leaf = f"study.random.ranges.*.{kind}"
    return Entry(leaf, None, in_range, [True] * 3, base=random(wide), besides=random(narrow), leaf=leaf, world=WORLD)


VARIANTS = [
    {"name": "short", "settings": {"model.max_history": 3}},
    {"name": "long", "settings": {"model.max_history": 9}},
]
NAMED = [{**VARIANTS[0], "name": "brief"}, VARIANTS[1]]
CHANGED = [VARIANTS[0], {"name": "long", "settings": {"model.max_history": 12}}]
OF_VARIANTS: Settings = {**ONE_SEED, "study.grid": {}, "study.variants": VARIANTS}
OF_RANKERS: Settings = {
    "logs.labels": ["click"],
    "logs.history_label": "click",
    "split": {"kind": "global_time", "validation_time": 6, "test_time": 8},
}
SECOND = {"study.grid": {"model.max_history": [4, 6], "train.batch_size": [8, 9]}}

ENTRIES = (
    Entry("study.dir", "elsewhere", run_folders, {"elsewhere/trials"}, world=WORLD),
    Entry(
        "study.kind",
        "random",
        trials,
        [f"point-{number}-seed1" for number in (1, 2, 3)],
        base=ONE_SEED,
        besides=random(CHOICE),
        world=WORLD,
    ),
    Entry("study.seeds", [4, 7], seeds, {4, 7}, world=WORLD),
    Entry("study.metric", "mrr", best_point, 1, world=WORLD),
    Entry("study.test", False, splits_evaluated, {("validation",)}, world=WORLD),
    Entry("study.colour", "train.batch_size", coloured_by, "train.batch_size", base=SECOND, world=WORLD),
    Entry("study.max_trials", 5, trials, "study.max_trials", world=WORLD),
    Entry("study.max_concurrent", 2, trials_at_once, 2, world=WORLD),
    Entry("study.keep_checkpoints", False, checkpoints_left, False, world=WORLD),
    Entry("study.grid", {"model.max_history": [5]}, drawn, [5], world=WORLD),
    Entry(
        "study.variants.0.name",
        None,
        trials,
        ["brief-seed1", "long-seed1"],
        base=OF_VARIANTS,
        besides={"study.variants": NAMED},
        leaf="study.variants.*.name",
        world=WORLD,
    ),
    Entry(
        "study.variants.1.settings",
        None,
        drawn,
        [3, 12],
        base=OF_VARIANTS,
        besides={"study.variants": CHANGED},
        leaf="study.variants.*.settings",
        world=WORLD,
    ),
    Entry(
        "study.random",
        random(CHOICE)["study.random"],
        drawn,
        base=random({"model.max_history": {"integers": [100, 900]}}),
        world=WORLD,
    ),
    Entry("study.random.points", 2, drawn, lambda values: values[:2], base=random(CHOICE), world=WORLD),
    Entry("study.random.seed", 5, drawn, base=random({"model.max_history": {"integers": [1, 10**4]}}), world=WORLD),
    of_range("uniform", [0.2, 0.3]),
    of_range("log_uniform", [0.2, 0.3]),
    of_range("choice", [0.2 + 0.001 * number for number in range(99)]),
    Entry(
        "study.random.ranges.*.integers",
        None,
        integers_in_range,
        True,
        base=random(CHOICE),
        besides=random({"model.max_history": {"integers": [1001, 1999]}}),
        leaf="study.random.ranges.*.integers",
        world=WORLD,
    ),
    Entry("study.assumed.items", 99, table_parameters, 100 * 8, world=WORLD),
    Entry("study.assumed.history", 2, events_per_history, 2.0, world=WORLD),
    Entry("study.assumed.impressions", 30, training_flops, base=OF_RANKERS, world=WORLD),
)
