"""Entries of [model]: what the model receives, its encoder and attention, masking."""

from collections.abc import Iterator

from tests.settings.entry import Entry, Settings
from tests.settings.observations.models import (
    event_seconds,
    hidden_width,
    initial_weights,
    longest_history,
    loss,
    masked_last_only,
    masked_share,
    num_blocks,
    num_targets,
    request_seconds,
    saved_numbers,
    told,
    training_loss,
    whole_seconds_of_milliseconds,
)

EVENT_FEATURES = {
    "logs.features": {"colour": {"kind": "categorical"}, "number": {"kind": "numeric"}},
    "logs.users": {"path": "LOGS/users.parquet", "features": {"shade": {"kind": "categorical"}}},
}
BERT = {"model.encoder.kind": "bert4rec", "model.encoder.attention.num_heads": 2}
NOTHING: Settings = {}
HSTU_RANKER = {"model.kind": "hstu"}
TWO_BLOCKS = {"model.encoder.num_blocks": 2}
TRUNCATED = {**TWO_BLOCKS, "model.encoder.truncate_after": 1, "model.encoder.truncate_to": 4}
MERGED = {"model.encoder.merge_size": 2, "model.encoder.merge_recent": 2}

INPUTS = (
    Entry("model.max_history", 3, longest_history, 3),
    Entry("model.max_history", 1, loss, world="impressions"),
    Entry("model.later_targets", 2, loss),
    Entry(
        "model.later_targets",
        2,
        base={"train.catalogue_workers": 2},
        refused="exchanges the targets of the next events",
    ),
    Entry("model.later_targets", 1, base=BERT, refused="this model restores masked events"),
    Entry("model.later_weight", 0.1, loss, base={"model.later_targets": 2}),
    Entry("model.stochastic_length", 1.0, num_targets),
    Entry("model.stochastic_length", 1.0, base=BERT, refused="needs those around them"),
    Entry("model.stochastic_length", 0.01, longest_history, 1),
    Entry(
        "model.inputs.event_features",
        ["number"],
        told,
        {"events": ["number"], "users": ["shade"], "candidates": [], "time": []},
        base=EVENT_FEATURES,
    ),
    Entry("model.inputs.event_features", [], loss, base=EVENT_FEATURES),
    Entry(
        "model.inputs.user_features",
        [],
        told,
        {"events": ["colour", "number"], "users": [], "candidates": [], "time": []},
        base=EVENT_FEATURES,
    ),
    Entry("model.inputs.user_features", [], loss, base=EVENT_FEATURES),
    Entry(
        "model.inputs.candidate_features",
        ["colour"],
        told,
        {"events": ["colour", "number"], "users": ["shade"], "candidates": ["colour"], "time": []},
        base=EVENT_FEATURES,
        world="impressions",
    ),
    Entry("model.inputs.candidate_features", [], loss, base=EVENT_FEATURES, world="impressions"),
    Entry("model.inputs.time", ["gap", "hour"], loss),
    Entry(
        "model.inputs.time",
        ["hour", "weekday"],
        told,
        {"events": [], "users": [], "candidates": [], "time": ["hour", "weekday"]},
    ),
    Entry("model.inputs.request_time", True, request_seconds, base={"model.encoder.attention.bias": "time"}),
    Entry("model.inputs.request_time", True, loss, base={"model.encoder.attention.bias": "time"}),
    Entry(
        "model.inputs.time_unit",
        "milliseconds",
        event_seconds,
        formula=whole_seconds_of_milliseconds,
        base={"model.inputs.time": ["gap"]},
    ),
)

ENCODER = (
    Entry("model.encoder.kind", "hstu", loss),
    Entry("model.encoder.num_blocks", 2, num_blocks, 2),
    Entry("model.encoder.num_blocks", 2, loss),
    Entry("model.encoder.heads_by_block", [1, 0], num_blocks, 1, base={"model.encoder.num_blocks": 2}),
    Entry("model.encoder.heads_by_block", [1], loss, base={"model.encoder.attention.num_heads": 2}),
    Entry("model.encoder.truncate_after", 1, loss, base=TWO_BLOCKS, besides={"model.encoder.truncate_to": 2}),
    Entry("model.encoder.truncate_after", 1, num_targets, base=TWO_BLOCKS, besides={"model.encoder.truncate_to": 2}),
    Entry("model.encoder.truncate_after", 2, loss, base={**TRUNCATED, "model.encoder.num_blocks": 3}),
    Entry("model.encoder.truncate_to", 2, loss, base=TRUNCATED),
    Entry("model.encoder.truncate_to", 6, base=TRUNCATED, refused="must be below max_history = 6"),
    Entry("model.encoder.truncate_after", 2, base=TRUNCATED, refused="leaves no deeper block of num_blocks = 2"),
    Entry("model.encoder.merge_size", 2, loss, besides={"model.encoder.merge_recent": 2}),
    Entry("model.encoder.merge_size", 3, loss, base=MERGED),
    Entry("model.encoder.merge_recent", 2, num_targets, besides={"model.encoder.merge_size": 2}),
    Entry("model.encoder.merge_recent", 1, loss, base=MERGED),
    Entry("model.encoder.merge_recent", 6, base=MERGED, refused="must be below max_history = 6"),
    Entry("model.encoder.merge_form", "transformer", loss, base=MERGED),
    Entry("model.encoder.merge_form", "transformer", refused="needs merge_size and merge_recent"),
    Entry("model.encoder.positions", "rotary", loss),
    Entry("model.encoder.positions", "none", loss),
    Entry("model.encoder.positions_from", "newest", loss),
    Entry("model.encoder.scale_inputs", True, loss),
    Entry("model.encoder.input_norm", True, loss),
    Entry("model.encoder.output_head", "gelu", loss),
    Entry("model.encoder.norm", "rms_norm", loss),
    Entry("model.encoder.norm_place", "post", loss),
    Entry("model.encoder.final_norm", False, loss),
    Entry("model.encoder.candidate_norms", True, loss, base=HSTU_RANKER, world="impressions"),
    Entry("model.encoder.candidate_norms", True, refused="encoder.candidate_norms = true is for rankers"),
    Entry(
        "model.encoder.candidate_norms",
        True,
        base={"model.kind": "din", "model.encoder.num_blocks": 1},
        world="impressions",
        refused="needs candidates that pass through the blocks",
    ),
    Entry("model.encoder.residual_gate", True, loss),
    Entry("model.encoder.feed_forward", "relu", loss),
    Entry("model.encoder.feed_forward_multiple", 2, hidden_width, 16),
    Entry("model.encoder.feed_forward_multiple", 2, loss),
    Entry("model.encoder.pooling", "attention", loss),
    Entry("model.encoder.user_tower", [2], loss),
    Entry("model.encoder.item_tower", [2], loss),
    Entry("model.encoder.dropout", 0.5, training_loss),
    Entry("model.encoder.feed_forward_dropout", 0.5, training_loss),
    Entry(
        "model.encoder.initial_std",
        0.1,
        initial_weights,
        lambda weights: {name: 5.0 * weight for name, weight in weights.items()},
    ),
    Entry(
        "model.encoder.recompute",
        True,
        saved_numbers,
        free="the same numbers are computed twice; fewer are kept in between",
    ),
)

MASKING = (
    Entry(
        "model.masking.probability", 1 - 1e-9, masked_share, 1.0, base={**BERT, "model.masking.last_probability": 0.0}
    ),
    Entry("model.masking.last_probability", 1.0, masked_last_only, True, base=BERT),
)


def attention(prefix: str, world: str = "events", base: Settings = NOTHING) -> Iterator[Entry]:
    """Yield entries of the parts that every attention has. prefix: of the keys."""

    def entry(name: str, value: object, **beside: object) -> Entry:
        given = {f"{prefix}.{key}": other for key, other in beside.items()}
        return Entry(f"{prefix}.{name}", value, loss, base={**base, **given}, world=world)

    yield entry("num_heads", 2)
    yield entry("num_key_value_heads", 1, num_heads=2)
    yield entry("normalisation", "sparsemax")
    yield entry("temperature", "learned")
    yield entry("temperature_factor", 0.5)
    yield entry("window", 2)
    yield entry("num_global", 1, window=1)
    yield entry("bias", "position")
    yield entry("bias_as", "channel", bias="position")
    yield entry("position_bias", "functional", bias="position")
    yield entry("time_bias", "functional", bias="time")
    yield entry("projection_activation", "silu")
    yield entry("output_norm", "layer_norm")
    yield entry("gate", True)
    yield entry("output_bias", False)
    for name, value in (("dropout", 0.5), ("penalty", 0.1)):
        yield Entry(f"{prefix}.{name}", value, training_loss, base=base, world=world)


ENTRIES = (
    *INPUTS,
    *ENCODER,
    *MASKING,
    *attention("model.encoder.attention"),
    Entry("model.encoder.attention.differential", True, loss),
    Entry("model.encoder.attention.mask", "bidirectional", loss),
)
