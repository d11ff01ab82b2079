"""Entries of [run], [train] and [checkpoint]: batches, optimizer, step sizes, when training evaluates, saves and stops."""

from collections.abc import Callable

from tests.settings.entry import Entry, Settings
from tests.settings.logs import DAY, START
from tests.settings.observations.models import initial_weights, loss, masked_places
from tests.settings.observations.objectives import negatives as drawn_uniformly
from tests.settings.observations.recovery import ends_after_a_full_disk, writing_threads
from tests.settings.observations.tables import item_rows
from tests.settings.observations.training import (
    after_logs_were_appended,
    averaged_by_hand,
    batch_rows,
    best_metric,
    best_value,
    checkpoints_left,
    days_planned,
    dense_groups,
    dense_optimizer,
    dropout_seeds,
    evaluations_until_stopped,
    evaluations_until_stopped_and_resumed,
    events_trained,
    first_day,
    first_move,
    ids_sent_early,
    items_of_two_workers,
    kernels_asked,
    kinds_logged,
    largest_batch,
    largest_piece,
    largest_validated,
    layers_compiled,
    logged_at,
    losses,
    rates,
    rows_of_first_batch,
    saved_at,
    shares_of_four_workers,
    steps_in_sample_log,
    steps_trained,
    steps_until_given_up,
    streams_of_order,
    table_rates,
    tf32_in_a_step,
    validated_at,
    weights_evaluated,
)

# Twenty-four histories in batches of eight are three steps an epoch, and two epochs six.
STEPS = range(6)
RATE, TABLE_RATE = 1e-3, 0.05


def at(rate: float, factor: Callable[[int], float]) -> list[float]:
    """Return the step size at every step: a rate times a factor of the step's number."""
    return [rate * factor(step) for step in STEPS]


LINEAR: Settings = {"train.schedule": "linear"}
EPOCHS: Settings = {"train.epochs": 10}  # days take their place, so that they have to be at their default
BY_DAY: Settings = {**EPOCHS, "train.days": {"length": "1d"}}

FULL_SOFTMAX: Settings = {"model.objective": {"kind": "full_softmax"}}

BATCHES = (
    Entry("train.batch_size", 5, batch_rows, 5),
    Entry("train.batch_size", 5, batch_rows, 5, world="impressions"),
    Entry("train.batch_tokens", 15, largest_batch, 15),
    Entry("train.deal_by", "count", shares_of_four_workers, free="global batches stay the same"),
    Entry("train.deal_by", "flops", shares_of_four_workers, free="global batches stay the same"),
    Entry("train.deal_by", "count", refused="equal numbers of users", world="impressions"),
    Entry("train.deal_by", "count", refused="is for batch_size", base={"train.batch_tokens": 40}),
    Entry("train.micro_batch_tokens", 12, largest_piece, 12),
    Entry("train.micro_batch_tokens", 12, largest_piece, world="impressions"),
    Entry("train.streams", 2, streams_of_order, 2),
    Entry("train.catalogue_workers", 2, items_of_two_workers, lambda items: items - 500, base=FULL_SOFTMAX),
    Entry("train.long_histories", "windows", events_trained, 160 - 24, base={"model.max_history": 3}),
)

OPTIMIZER = (
    *(
        Entry("train.optimizer", value, dense_optimizer, name)
        for value, name in (("lion", "Lion"), ("adagrad", "Adagrad"), ("sgd", "SGD"))
    ),
    Entry("train.learning_rate", 0.03, rates, at(0.03, lambda _: 1.0)),
    Entry("train.betas", [0.7, 0.8], dense_groups, lambda groups: [{**g, "betas": (0.7, 0.8)} for g in groups]),
    Entry("train.eps", 0.5, dense_groups, lambda groups: [{**g, "eps": 0.5} for g in groups]),
    Entry(
        "train.weight_decay",
        0.1,
        dense_groups,
        lambda groups: [{**g, "weight_decay": 0.1 if g["dims"] == [2] else 0.0} for g in groups],
    ),
    Entry("train.schedule", "linear", rates, at(RATE, lambda step: 1 - step / 6)),
    Entry("train.schedule", "linear", table_rates, at(TABLE_RATE, lambda step: 1 - step / 6)),
    Entry("train.schedule_floor", 0.6, rates, at(RATE, lambda step: max(0.6, 1 - step / 6)), base=LINEAR),
    Entry(
        "train.decay_share",
        0.5,
        rates,
        at(RATE, lambda step: 0.02 + 0.98 * min(1.0, (6 - step) / 3)),
        base={"train.schedule": "warmup_stable_decay"},
    ),
    Entry("train.schedule_tables", False, table_rates, at(TABLE_RATE, lambda _: 1.0), base=LINEAR),
    Entry("train.warmup_steps", 3, rates, at(RATE, lambda step: min(1.0, (step + 1) / 4))),
    Entry("train.warmup_steps", 3, table_rates, at(TABLE_RATE, lambda step: min(1.0, (step + 1) / 4))),
    # With plain gradient descent at a rate of one the weights move by the gradient.
    Entry(
        "train.clip_norm",
        0.01,
        first_move,
        0.01,
        base={
            "train.optimizer": "sgd",
            "train.learning_rate": 1.0,
            "tables.item.optimizer": "sgd",
            "tables.item.learning_rate": 1.0,
        },
    ),
    Entry("train.precision", "bfloat16", losses),
    Entry("train.send_ids_early", True, ids_sent_early, True, free="ids are the same whenever they are sent"),
    Entry("train.compiled_kernels", True, kernels_asked, True, base={"model.objective": {"kind": "full_softmax"}}),
    Entry("train.compiled_kernels", True, kernels_asked, True, base={"model.objective": {"kind": "sampled_softmax"}}),
    Entry("train.tf32", True, tf32_in_a_step, True, base={"cluster.gpus_per_worker": 1}),
    Entry("train.tf32", True, tf32_in_a_step, refused="is for GPUs, and workers have none"),
    Entry("train.torch_compile", True, layers_compiled, 1),
    Entry("train.ema_decay", 0.15, weights_evaluated, formula=averaged_by_hand(0.15)),
)

LOOP = (
    Entry("train.epochs", 3, steps_trained, 9),
    Entry("train.max_steps", 4, steps_trained, 4),
    Entry("train.max_nonfinite_steps", 2, steps_until_given_up, 3, base={"train.epochs": 9}),
    Entry("train.evaluate_every_epochs", 2, validated_at, [6]),
    Entry("train.early_stopping", None, best_value, None),
    Entry("train.early_stopping.metric", "mrr", best_metric, "mrr"),
    Entry("train.early_stopping.metric", "mrr", best_value, formula=largest_validated("mrr")),
    Entry("train.early_stopping.patience", 2, evaluations_until_stopped, 3, base={"train.epochs": 9}),
    Entry("train.early_stopping.patience", 2, evaluations_until_stopped_and_resumed, 3, base={"train.epochs": 9}),
    Entry("train.log_every_steps", 4, logged_at, [4, 6]),
    Entry("train.sample_log", True, steps_in_sample_log, 6),
    Entry("checkpoint.every_steps", 2, saved_at, [2, 3, 4, 6]),
    Entry(
        "checkpoint.background",
        False,
        writing_threads,
        {True},
        free="the files are equal (tests/trainer/checkpoint/test_background.py)",
    ),
    Entry("checkpoint.on_error", "continue", ends_after_a_full_disk, "finished", base={"checkpoint.every_steps": 1}),
    Entry("checkpoint.keep", 1, checkpoints_left, ["step_000000006"], base={"train.early_stopping": None}),
)

DAYS = (
    Entry("train.days", {"length": "2d"}, days_planned, [0, 3, 6, 9], base=EPOCHS, world="impressions"),
    Entry("train.days.length", "3d", days_planned, [0, 3, 6], base=BY_DAY, world="impressions"),
    Entry("train.days.start", START + DAY, first_day, "2024-10-09", base=BY_DAY, world="impressions"),
    Entry(
        "train.days.evaluate_next",
        False,
        kinds_logged,
        ["checkpoint", "train", "validation"],
        base=BY_DAY,
        world="impressions",
    ),
)

SEED = (
    Entry("run.new_logs", "continue", after_logs_were_appended, "resumed"),
    Entry("run.seed", 2, initial_weights),
    Entry("run.seed", 2, loss),
    Entry("run.seed", 2, rows_of_first_batch),
    Entry("run.seed", 2, item_rows),
    Entry("run.seed", 2, dropout_seeds),
    # All histories in one batch, in the order of their rows.
    Entry("run.seed", 2, masked_places, base={"model.encoder.kind": "bert4rec", "train.batch_size": 24}),
    *(
        Entry("run.seed", 2, drawn_uniformly, base={"model.objective.kind": kind, "train.batch_size": 24})
        for kind in ("sampled_softmax", "bce", "gbce")
    ),
)

ENTRIES = (*BATCHES, *OPTIMIZER, *LOOP, *DAYS, *SEED)
