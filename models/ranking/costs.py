"""Costs of a ranker, computed from its settings, as in models/costs.py for next-item models. Imports no torch.

All figures are averages per impression. A history is encoded once for all impressions of its user, so the share of an
impression is the events of an average history divided by its impressions. FLOPs of matrix products are those of the code that
runs, for unpadded histories and rows of candidates (tests/models/ranking/test_costs.py). Other operations, activations and
bytes are estimates.

Symbols: D model width, H heads, F width of all fields, T labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.activations import saved_numbers
from models.attention.config import TargetAttentionConfig
from models.costs import (
    FLOAT,
    NORMALISATION,
    WEIGHT_TRAFFIC,
    Costs,
    Flops,
    added,
    again,
    linear,
    pair_work,
    pairs_per_event,
    pooled,
    pooling_work,
    recomputed_share,
    tower,
    vector_work,
)
from models.dense_parameters import encoder_parameters
from models.features.config import NUM_TIME_ROWS
from models.histories import Histories
from models.ranking.config import ExpertsConfig, RankingConfig
from models.ranking.dense_parameters import attention_parameters, crossing_parameters, expert_parameters, levels

ROW_SIZE = 8  # candidates of a history that share their keys (models/attention/candidates.py)
UNIT_KEPT = 1 << 24  # numbers of activation units that are kept for the backward pass (models/attention/tiled.py)
RankingOwner = Literal["item", "event", "user", "candidate"]


@dataclass(frozen=True)
class RankingFeature:
    """A feature that a ranker receives, from a table or as numbers."""

    name: str
    owner: RankingOwner
    width: int
    looked_up: bool


@dataclass(frozen=True)
class RankingWorkload:
    """The input of a training step of a ranker."""

    histories: Histories  # of the events that are gathered for the impressions of a user
    impressions: float  # of all these histories together
    pairs: float  # of a candidate and an event that are computed, of all impressions (candidate_pairs)
    impressions_per_step: float  # of the global batch
    num_items: int
    num_labels: int
    reach: int | None = None  # events that an event looks at, the most recent ones and itself; None for all before it
    features: tuple[RankingFeature, ...] = ()
    items_per_step: float | None = None  # looked up; None expects as many as there are likely to be

    @property
    def events(self) -> float:
        """Return the number of events of histories per impression."""
        return self.histories.num_events / self.impressions

    @property
    def users(self) -> float:
        """Return the number of histories per impression."""
        return float(self.histories.counts.sum()) / self.impressions


def candidate_pairs(counts: np.ndarray, history_end: np.ndarray, attended: int) -> float:
    """Return the pairs of candidates and events that are computed, hidden pairs included.

    Args:
        counts: impressions of each history, (B,).
        history_end: events of its history before each impression, ascending within a history, (M,).
        attended: events that a candidate attends to, the most recent ones.
    """
    if not history_end.size:
        return 0.0
    rows = -(-counts // ROW_SIZE)
    own = np.arange(history_end.size) - np.repeat(np.cumsum(counts) - counts, counts)
    row = np.repeat(np.cumsum(rows) - rows, counts) + own * np.repeat(rows, counts) // np.repeat(counts, counts)
    first = np.flatnonzero(np.diff(row, prepend=-1))
    sizes = np.diff(first, append=row.size)
    keys = np.maximum.reduceat(history_end, first) - np.maximum(0, np.minimum.reduceat(history_end, first) - attended)
    return float((sizes * keys).sum())


def ranking_costs_of(model: RankingConfig, width: int, workload: RankingWorkload) -> Costs:
    """Return the costs of one impression. `width`: D, of the item table. Tables count as look-ups."""
    fields = field_widths(model, width, workload.features)
    crossed = sum(fields) + model.crossing.rank * (model.crossing.kind == "fm")
    items = _looked_up_items(workload) / workload.impressions_per_step
    parts = _interest(model, width, workload)
    parts["inputs"] = _inputs(model, width, workload, items)
    parts["crossing"] = _crossing(model, width, workload.features)
    parts["experts"] = _experts(model.experts, crossed, workload.num_labels)
    parts["objective"] = Flops(pointwise=8.0 * workload.num_labels)
    dense = num_ranking_parameters(model, width, workload.num_labels, workload.features)
    activations = FLOAT * _saved(model, width, workload, sum(fields))
    # Rows read and written, their gradients twice, rows updated; events, candidates and features gathered.
    features = sum(feature.width for feature in workload.features if feature.looked_up)
    looked_up = FLOAT * (5.0 * width * items + 2.0 * width * (workload.events + 1.0) + 7.0 * features)
    weights = FLOAT * WEIGHT_TRAFFIC * dense / workload.impressions_per_step
    return Costs(
        {name: work for name, work in parts.items() if work != Flops()},
        dense,
        activations,
        3 * activations + looked_up + weights,
    )


def _looked_up_items(workload: RankingWorkload) -> float:
    """Return the expected number of distinct items of a step.

    It assumes that ids are spread evenly over the catalogue, so it is an upper bound.
    """
    if workload.items_per_step is not None:
        return workload.items_per_step
    draws = workload.impressions_per_step * (workload.events + 1.0)
    return float(workload.num_items * -np.expm1(draws * np.log1p(-1.0 / (workload.num_items + 1))))


def _interest(model: RankingConfig, width: int, workload: RankingWorkload) -> dict[str, Flops]:
    """Return the FLOPs of the encoder of histories and of the candidates' attention to its output."""
    encoder = model.encoder
    kind = model.interest.kind
    events = workload.events
    if kind == "none":
        return {}
    through_blocks = 1.0 if kind == "encoder" else 0.0  # candidates that pass through the blocks as well
    event_pairs = pairs_per_event(encoder.attention, workload.histories, workload.reach)
    parts: dict[str, Flops] = {}
    for number, heads in encoder.heads_of_blocks.items():
        into, behind = vector_work(encoder, width, heads)
        among_events = pair_work(encoder, width, event_pairs, recomputed_share(encoder), heads)
        of_candidate = pair_work(encoder, width, _pairs(model, workload), 1.0, heads) if through_blocks else {}
        # After the last block events are not used: it computes only their keys and values.
        is_last = number == max(encoder.heads_of_blocks)
        only_candidates = bool(through_blocks) and is_last and encoder.pooling == "last"
        behind_of = 1.0 if only_candidates else events + through_blocks
        block = added(
            _times(into, events + through_blocks),
            _times(behind, behind_of),
            {} if only_candidates else _times(among_events, events),
            of_candidate,
        )
        parts = added(parts, {name: work + again(encoder, work) for name, work in block.items()})
    if encoder.pooling == "attention":
        pairs = pairs_per_event(
            encoder.attention.model_copy(update={"window": None}), workload.histories, workload.reach
        )
        pooling = pooling_work(width).times(events + through_blocks) + pooled(encoder, width, pairs, 0.0).times(events)
        parts["pooling"] = pooling + pooled(encoder, width, workload.pairs / workload.impressions, 1.0).times(
            through_blocks
        )
    parts["towers"] = tower(encoder.user_tower, width).times(1.0 if through_blocks else events)
    if kind == "attention":
        parts["target attention"] = _target_attention(
            model.interest.attention, width, _pairs(model, workload), workload
        )
    elif kind == "mean":
        products = 2.0 * _pairs(model, workload) * (width + 1)
        parts["target attention"] = Flops(products, 2.0 * products, products, 2.0 * _pairs(model, workload))
    if model.interest.search.kind == "similarity":
        parts["search"] = Flops(forward=2.0 * width * workload.pairs / workload.impressions)
    return parts


def _times(parts: dict[str, Flops], factor: float) -> dict[str, Flops]:
    return {name: work.times(factor) for name, work in parts.items()}


def _pairs(model: RankingConfig, workload: RankingWorkload) -> float:
    """Return the number of events that one candidate is compared with, hidden ones included."""
    search = model.interest.search
    return workload.pairs / workload.impressions if search.kind == "none" else float(search.num_found)


def _target_attention(attention: TargetAttentionConfig, width: int, pairs: float, workload: RankingWorkload) -> Flops:
    seen = attention.num_channels * width
    work = Flops()
    if attention.projection:
        key_width = attention.key_value_heads * (width // attention.num_heads)
        query_width = width + seen * attention.gate
        work += linear(width, query_width) + linear(width, 2 * key_width).times(workload.events)
        work += linear(seen, width, attention.output_bias)
    heads = attention.num_heads
    kept = False
    per_score = NORMALISATION[attention.normalisation] + 2.0 * (attention.uses_position + attention.uses_time)
    if attention.score == "activation_unit":
        hidden = attention.unit_hidden
        # The contributions of candidates and events to their pairs; then each pair's product, and the later layers.
        work += linear(width, hidden[0]).times(1.0 + workload.events)
        inner = heads * sum(a * b for a, b in itertools.pairwise(hidden))
        scored = 2.0 * pairs * (width * hidden[0] + inner)
        per_score += 2.0 * hidden[-1] + 4.0 * sum(hidden)
        numbers = workload.impressions_per_step * pairs * heads * sum(hidden)
        kept = numbers <= UNIT_KEPT
    else:
        scored = 2.0 * pairs * width
    products = scored + 2.0 * pairs * seen
    return work + Flops(products, 2.0 * products, 0.0 if kept else products, pairs * heads * per_score)


def _inputs(model: RankingConfig, width: int, workload: RankingWorkload, items: float) -> Flops:
    """Return the FLOPs of the vectors of items, events and candidates: features projected and added."""
    met = model.interest.kind != "none"
    candidate_features = {feature.name for feature in workload.features if feature.owner == "candidate"}
    total = Flops(pointwise=width * (workload.events + 1.0) * (1 + len(model.inputs.time)) * met)
    for feature in _projected(model, width, workload.features):
        # (by themselves, for candidates)
        each, of_candidates = {
            "item": (items, 0.0),
            "event": (workload.events, float(feature.name in candidate_features)),
            "user": (workload.users, workload.users),
        }[feature.owner]
        products = 2.0 * feature.width * width
        back = products * (2 if feature.looked_up else 1)
        total += Flops(products, back, 0.0, float(width)).times(each)
        # An average of events does not depend on the candidate, which then has no gradient.
        back *= model.interest.kind != "mean"
        total += Flops(products, back, 0.0, float(width)).times(of_candidates)
    return total


def _projected(model: RankingConfig, width: int, features: Sequence[RankingFeature]) -> list[RankingFeature]:
    """Return the features that are projected to the width of the model.

    These are the features of items, and other features if there are events to add them to.
    """
    owners = ("item",) if model.interest.kind == "none" else ("item", "event", "user")
    return [f for f in features if f.owner in owners and not (f.looked_up and f.width == width)]


def field_widths(model: RankingConfig, width: int, features: Sequence[RankingFeature]) -> list[int]:
    """Return the width of every field of an impression (models/ranking/fields.py)."""
    return [size for size, _ in _fields(model, width, features)]


def _fields(model: RankingConfig, width: int, features: Sequence[RankingFeature]) -> list[tuple[int, bool]]:
    """Return (width, whether it is learned) of every field."""
    attention = model.interest.attention
    met = {
        "attention": width if attention.projection else attention.num_channels * width,
        "encoder": width,
        "mean": width,
    }.get(model.interest.kind)
    fields = [] if met is None else [(met, True)]
    return [*fields, (width, True), *((f.width, f.looked_up) for f in features if f.owner != "event")]


def _crossing(model: RankingConfig, width: int, features: Sequence[RankingFeature]) -> Flops:
    crossing = model.crossing
    fields = _fields(model, width, features)
    whole = sum(size for size, _ in fields)
    match crossing.kind:
        case "none":
            return Flops()
        case "dcn_v2":
            rank = min(crossing.rank, whole)
            layer = linear(whole, rank) + linear(rank, whole, bias=True) + Flops(pointwise=2.0 * whole)
            return layer.times(crossing.num_layers)
        case "fm":
            products = [2.0 * size * crossing.rank for size, _ in fields]
            # Numeric features need no gradient.
            back = sum(work * (1 + learned) for work, (_, learned) in zip(products, fields, strict=True))
            return Flops(sum(products), back, 0.0, 4.0 * len(fields) * crossing.rank)


def _networks(count: int, widths: Sequence[int]) -> Flops:
    """Return the FLOPs of networks side by side."""
    layers = (linear(a, b, bias=True) + Flops(pointwise=2.0 * b) for a, b in itertools.pairwise(widths))
    return sum(layers, Flops()).times(float(count))


def _mixed(labels: int, experts: int, width: int) -> Flops:
    """Return the FLOPs of mixtures of experts, one for each label."""
    return linear(experts, width).times(float(labels)) + Flops(pointwise=3.0 * labels * experts)


def _experts(config: ExpertsConfig, width: int, num_labels: int) -> Flops:
    ends = config.hidden[-1] if config.hidden else width
    towers = _networks(num_labels, [ends, *config.tower, 1])
    match config.kind:
        case "shared_bottom":
            return towers + _networks(1, [width, *config.hidden])
        case "mmoe":
            gates = linear(width, config.num_experts).times(float(num_labels))
            return (
                towers
                + gates
                + _networks(config.num_experts, [width, *config.hidden])
                + _mixed(num_labels, config.num_experts, ends)
            )
        case "ple":
            return towers + sum(
                (_ple_level(config, entry, num_labels, last) for entry, last in levels(config, width)), Flops()
            )


def _ple_level(config: ExpertsConfig, width: int, num_labels: int, is_last: bool) -> Flops:
    own = num_labels * config.num_label_experts
    ends = config.hidden[-1]
    work = _networks(own + config.num_experts, [width, *config.hidden])
    work += linear(width, config.num_label_experts + config.num_experts).times(float(num_labels))
    work += _mixed(num_labels, config.num_experts, ends) + Flops(pointwise=2.0 * own * ends)
    if not is_last:
        work += linear(width, own + config.num_experts) + _mixed(1, own + config.num_experts, ends)
    return work


def num_ranking_parameters(
    model: RankingConfig, width: int, num_labels: int, features: Sequence[RankingFeature] = ()
) -> int:
    """Return the number of dense weights of a ranker: all parameters except the tables."""
    total = width * sum(feature.width for feature in _projected(model, width, features))
    if model.interest.kind != "none":
        total += encoder_parameters(model.encoder, model.max_history, width)
        total += width * sum(NUM_TIME_ROWS[part] for part in model.inputs.time)
    if model.interest.kind == "attention":
        total += attention_parameters(model.interest.attention, model.max_history, width)
    fields = field_widths(model, width, features)
    crossed = sum(fields) + model.crossing.rank * (model.crossing.kind == "fm")
    return total + crossing_parameters(model.crossing, fields) + expert_parameters(model.experts, crossed, num_labels)


def _saved(model: RankingConfig, width: int, workload: RankingWorkload, fields: int) -> float:
    """Return how many numbers per impression are kept for the backward pass."""
    experts = model.experts
    count = {"shared_bottom": 1, "mmoe": experts.num_experts, "ple": experts.num_experts + workload.num_labels}
    total = (
        2.0 * fields + 2.0 * count[experts.kind] * sum(experts.hidden) + 2.0 * workload.num_labels * sum(experts.tower)
    )
    if model.interest.kind == "none":
        return total
    vectors = workload.events + (model.interest.kind == "encoder")
    total += saved_numbers(model.encoder, width) * vectors + 4.0 * width
    if model.interest.kind == "attention" and model.interest.attention.score == "activation_unit":
        attention = model.interest.attention
        total += 4.0 * _pairs(model, workload) * attention.num_heads * sum(attention.unit_hidden)
    return total
