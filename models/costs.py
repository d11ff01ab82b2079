"""Costs of a model, computed from its settings: FLOPs per part, parameters, activations, bytes moved. Imports no torch.

All figures are per input event, averaged over histories of given lengths. FLOPs of matrix products are those of the code that
runs: a pair of events that a mask hides costs as much as a visible one, and recomputation in the backward pass is counted. They
equal torch.utils.flop_counter exactly for histories padded to their own length (tests/models/test_costs.py). FLOPs of other
operations are estimates: one per number that is produced. Activations and bytes moved, in float32, are estimates too.

Symbols: D model width, H heads, L events of a history, C candidates or negatives, U looked-up items of a step.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.activations import saved_numbers
from models.attention.config import AttentionConfig, with_heads
from models.config import NextItemConfig
from models.dense_parameters import encoder_parameters, tower_parameters
from models.encoders.config import EncoderConfig, inner_encoder
from models.features.config import NUM_TIME_ROWS
from models.histories import Histories, expected_targets, later_shares, merged, newest
from models.objectives.config import FullSoftmaxConfig, ObjectiveConfig

FLOAT = 4  # bytes
# Numbers produced for each score: subtract, exponential, divide; sparse forms: about four rounds of three towards a threshold.
NORMALISATION = {"softmax": 3.0, "silu": 3.0, "sparsemax": 15.0, "entmax15": 16.0, "none": 1.0}
# Per dense weight and step: read forward and backward, its gradient written and read, weight and two moments read and written.
WEIGHT_TRAFFIC = 10
# A full softmax over more candidates than this forms its logits twice on CPUs (models/objectives/softmax.py).
TILED_FROM = 1 << 15


@dataclass(frozen=True)
class Projected:
    """A feature of items, events or users that is projected from its width to D."""

    owner: Literal["item", "event", "user"]
    width: int
    looked_up: bool  # a learned embedding, as opposed to numbers


@dataclass(frozen=True)
class Workload:
    """The input of a training step."""

    histories: Histories
    events_per_step: float  # of the global batch
    num_items: int  # of the training split
    targets_per_event: float | None = None  # learned targets; None: as many as the settings imply
    projected: tuple[Projected, ...] = ()  # features of another width than the model
    items_per_step: float | None = None  # looked-up items; None: as many as the settings imply


@dataclass(frozen=True)
class Flops:
    """The FLOPs of one part for one input event."""

    forward: float = 0.0  # matrix products
    backward: float = 0.0  # matrix products
    recomputed: float = 0.0  # matrix products
    pointwise: float = 0.0  # all other operations, forward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
            self.pointwise + other.pointwise,
        )

    def times(self, factor: float) -> "Flops":
        return Flops(*(factor * value for value in (self.forward, self.backward, self.recomputed, self.pointwise)))

    @property
    def matmul(self) -> float:
        """Return the FLOPs of the matrix products of a training step."""
        return self.forward + self.backward + self.recomputed

    @property
    def training(self) -> float:
        """Return the FLOPs of a training step. The backward pass of a pointwise operation counts twice its forward pass."""
        return self.matmul + 3.0 * self.pointwise


@dataclass(frozen=True)
class Costs:
    """The costs of one input event, with bytes in float32."""

    parts: dict[str, Flops]  # FLOPs by part of the model
    dense_parameters: int
    activation_bytes: float  # kept for the backward pass
    moved_bytes: float  # read and written in a training step

    @property
    def total(self) -> Flops:
        return sum(self.parts.values(), Flops())

    @property
    def forward(self) -> float:
        """Return the FLOPs of encoding an event and scoring it as in training."""
        return self.total.forward + self.total.pointwise

    @property
    def training(self) -> float:
        return self.total.training


def costs_of(model: NextItemConfig, width: int, workload: Workload) -> Costs:
    """Return the costs of one input event. `width`: D, of the item table. Tables count as look-ups, without their parameters."""
    encoder = model.encoder
    items_per_event = looked_up_items(model, workload) / workload.events_per_step
    whole = workload.histories
    kept = newest(encoder, whole)
    share = share_of(kept, whole)
    parts = added(*(_block(encoder, width, whole, number) for number in encoder.heads_of_blocks))
    parts |= _merge(encoder, width, whole)
    parts["pooling"] = _pooling(encoder, width, kept).times(share)
    parts["towers"] = tower(encoder.user_tower, width).times(share)
    parts["towers"] += tower(encoder.item_tower, width).times(items_per_event)
    parts["output head"] = output_head(encoder, width).times(share)
    parts["inputs"] = _inputs(model, width, workload, items_per_event)
    targets = workload.targets_per_event
    targets = share * expected_targets(model, whole) if targets is None else targets
    shares = later_shares(model, kept)
    parts["objective"] = _objective(model.objective, width, workload).times(targets * (1.0 + sum(shares)))
    parts["later targets"] = (linear(width, width) + Flops(pointwise=3.0 * width)).times(targets * sum(shares))
    dense = num_dense_parameters(model, width, workload.projected)
    activations = FLOAT * saved_numbers(encoder, width, share, share_of(merged(encoder, whole), whole))
    looked_up = (
        FLOAT * width * (5 * items_per_event + 2)
    )  # row read, written, its gradient twice, row updated; events gathered
    weights = FLOAT * WEIGHT_TRAFFIC * dense / workload.events_per_step
    return Costs(
        {name: work for name, work in parts.items() if work != Flops()},
        dense,
        activations,
        3 * activations + looked_up + weights,  # written, read, and a gradient of the same size
    )


def looked_up_items(model: NextItemConfig, workload: Workload) -> float:
    """Return the number of distinct items that a step looks up.

    For objectives with negatives it is the expected number if events were spread evenly over the catalogue, an upper bound.
    """
    if workload.items_per_step is not None:
        return workload.items_per_step
    if isinstance(model.objective, FullSoftmaxConfig):
        return workload.num_items + 1.0
    draws = workload.events_per_step * (1.0 + 1.0 / workload.histories.mean) + model.objective.num_negatives
    return float(workload.num_items * -np.expm1(draws * np.log1p(-1.0 / (workload.num_items + 1))))


def linear(width_in: float, width_out: float, bias: bool = False) -> Flops:
    """Return the FLOPs of a linear layer for one vector."""
    products = 2.0 * width_in * width_out
    return Flops(products, 2.0 * products, 0.0, width_out if bias else 0.0)


def _block(encoder: EncoderConfig, width: int, histories: Histories, number: int) -> dict[str, Flops]:
    """Return the FLOPs of a block per input event, whether it receives all events, their tokens, or the newest events."""
    heads = encoder.heads_of_blocks[number]
    kept = newest(encoder, histories)
    inputs = kept if encoder.is_truncated(number) else merged(encoder, histories)
    received = outputs = share_of(inputs, histories)
    pairs = received * pairs_per_event(encoder.attention, inputs)
    if number == encoder.last_whole_block and kept.num_events < inputs.num_events:
        outputs = share_of(kept, histories)
        pairs = float((kept.lengths * inputs.lengths * histories.counts).sum()) / histories.num_events
    into, behind = vector_work(encoder, width, heads)
    # Queries and gates are not computed for events without an output; keys and values are.
    query_width, _, _ = encoder.attention_widths(width, heads)
    left_out = {"projections": linear(width, query_width), "gates": into["gates"]}
    block = added(
        _scaled(into, received),
        _scaled(left_out, outputs - received),
        _scaled(behind, outputs),
        pair_work(encoder, width, pairs, recomputed_share(encoder), heads),
    )
    return {name: work + again(encoder, work) for name, work in block.items()}


def _merge(encoder: EncoderConfig, width: int, histories: Histories) -> dict[str, Flops]:
    """Return the FLOPs of token merge per input event. The inner transformer is not recomputed as a block is."""
    if encoder.merge_size is None or not histories.num_events:
        return {}
    size = encoder.merge_size
    older = histories.lengths - newest(encoder, histories).lengths
    groups = float((-(-older // size) * histories.counts).sum()) / histories.num_events
    work = linear(size * width, width).times(groups)
    if encoder.merge_form == "transformer":
        inner = inner_encoder(encoder)
        heads = inner.attention.num_heads
        share = float((older * histories.counts).sum()) / histories.num_events
        pairs = float(((older // size * size**2 + (older % size) ** 2) * histories.counts).sum()) / histories.num_events
        parts = (*vector_work(inner, width, heads), pair_work(inner, width, pairs, recomputed_share(inner), heads))
        for part, factor in zip(parts, (share, share, 1.0), strict=True):
            work += sum(part.values(), Flops()).times(factor)
    return {"token merge": work}


def share_of(histories: Histories, whole: Histories) -> float:
    """Return the number of events relative to that of whole histories; 1 if there are none."""
    return histories.num_events / whole.num_events if whole.num_events else 1.0


def _scaled(parts: dict[str, Flops], factor: float) -> dict[str, Flops]:
    return {name: work.times(factor) for name, work in parts.items()}


def again(encoder: EncoderConfig, work: Flops) -> Flops:
    """Return what a block recomputes in the backward pass apart from its attention, if `recompute` is set."""
    return Flops(recomputed=work.forward) if encoder.recompute else Flops()


def added(*parts: dict[str, Flops]) -> dict[str, Flops]:
    """Return the sums by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum((part.get(name, Flops()) for part in parts), Flops()) for name in names}


def vector_work(encoder: EncoderConfig, width: int, heads: int) -> tuple[dict[str, Flops], dict[str, Flops]]:
    """Return the FLOPs of a block per vector: the work up to queries, keys and values, and the work after the attention.

    heads: number of heads of the block.
    """
    attention = with_heads(encoder.attention, heads)
    query_width, key_width, seen = encoder.attention_widths(width, heads)
    sizes = query_width + 2 * key_width
    activated = (sizes + seen * attention.gate) * (attention.projection_activation == "silu") * 2.0
    norms = 4.0 * width * (1 if encoder.feed_forward == "none" else 2) + 4.0 * seen * (attention.output_norm != "none")
    gates = Flops(pointwise=float(seen * attention.gate))
    if encoder.residual_gate:
        sub_layers = 1 if encoder.feed_forward == "none" else 2
        gates += (linear(width, width, bias=True) + Flops(pointwise=2.0 * width)).times(sub_layers)
    into = {
        "projections": linear(width, sizes) + Flops(pointwise=activated),
        "gates": linear(width, seen).times(float(attention.gate)),
    }
    behind = {
        "projections": linear(seen, width, attention.output_bias),
        "gates": gates,
        "feed-forward": _feed_forward(encoder, width),
        "norms and residuals": Flops(pointwise=norms + 2.0 * width),
    }
    return into, behind


def pair_work(encoder: EncoderConfig, width: int, pairs: float, share: float, heads: int) -> dict[str, Flops]:
    """Return the FLOPs of a block for the pairs of one query.

    Args:
        encoder: the settings.
        width: of the model.
        pairs: number of keys.
        share: of the products, recomputed backward.
        heads: number of heads of the block.
    """
    query_width, _, _ = encoder.attention_widths(width, heads)
    attention = with_heads(encoder.attention, heads)
    among_pairs = _attention(attention, encoder.positions == "rotary", query_width, pairs, share)
    return {"attention": among_pairs, "bias": _bias(attention, pairs)}


def recomputed_share(encoder: EncoderConfig) -> float:
    """Return the share of the products of attention that the backward pass computes again.

    It is 0 for scaled_dot_product_attention. For SiLU weights without dropout and penalty it is that of the scores.
    """
    attention = encoder.attention
    if attention.penalty or attention.dropout * 256 >= 0.5:  # models/layers/dropout.py drops in steps of 1/256
        return 1.0
    if attention.normalisation == "silu":
        return 0.5 if attention.bias_as == "score" else 1.0
    plain = attention.normalisation == "softmax" and attention.bias == "none"
    return 0.0 if plain and attention.mask == "causal" and attention.window is None else 1.0


def pairs_per_event(attention: AttentionConfig, histories: Histories, reach: int | None = None) -> float:
    """Return the query-key pairs that are computed for an average event, hidden pairs included.

    `reach` limits the events that an event attends to, the most recent ones and itself, in addition to the window.
    """
    if not histories.lengths.size:
        return 0.0
    lengths = histories.lengths.astype(np.float64)
    window = min((size for size in (attention.window, reach) if size is not None), default=None)
    if window is None or lengths.max() <= 2 * window:
        pairs = lengths**2
    else:
        keys = window * (2 if attention.mask == "causal" else 3) + attention.num_global
        pairs = np.ceil(lengths / window) * window * keys
    return float((pairs * histories.counts).sum()) / histories.num_events


def _attention(attention: AttentionConfig, rotary: bool, width: int, pairs: float, share: float) -> Flops:
    """Return the FLOPs of scores, normalisation and weighted sums of values. Each map and each channel has its own sum."""
    maps = 2 if attention.differential else 1
    products = 2.0 * pairs * width * (1 + maps + (attention.num_channels - 1))
    per_score = NORMALISATION[attention.normalisation] + (attention.dropout > 0)
    rotated = 3.0 * 2 * width * rotary
    combined = 6.0 * width * attention.differential
    pointwise = pairs * maps * attention.num_heads * per_score + rotated + combined
    return Flops(products, 2.0 * products, share * products, pointwise)


def _bias(attention: AttentionConfig, pairs: float) -> Flops:
    """Return the FLOPs of the biases. Each is looked up or computed for every pair and head, and added."""
    biases = attention.uses_position + attention.uses_time
    maps = 2 if attention.differential else 1
    return Flops(pointwise=2.0 * pairs * maps * attention.num_heads * biases)


def _feed_forward(encoder: EncoderConfig, width: int) -> Flops:
    hidden = width * encoder.feed_forward_multiple
    match encoder.feed_forward:
        case "none":
            return Flops()
        case "swiglu":
            products = linear(width, 2 * hidden) + linear(hidden, width)
            pointwise = 3.0 * hidden
        case _:
            products = linear(width, hidden, bias=True) + linear(hidden, width, bias=True)
            pointwise = 2.0 * hidden
    return products + Flops(pointwise=pointwise + hidden * (encoder.feed_forward_dropout > 0))


def output_head(encoder: EncoderConfig, width: int) -> Flops:
    """Return the FLOPs of the output head for one vector."""
    if encoder.output_head == "none":
        return Flops()
    return linear(width, width, bias=True) + Flops(pointwise=2.0 * width + 4.0 * width)  # GELU, and the norm


def _pooling(encoder: EncoderConfig, width: int, histories: Histories) -> Flops:
    if encoder.pooling == "last":
        return Flops()
    pairs = pairs_per_event(pooling_attention(encoder), histories)
    share = recomputed_share(EncoderConfig(attention=pooling_attention(encoder)))
    return pooling_work(width) + pooled(encoder, width, pairs, share)


def pooling_attention(encoder: EncoderConfig) -> AttentionConfig:
    """Return the settings of the attention that pools a history."""
    return AttentionConfig(num_heads=encoder.attention.num_heads, mask=encoder.attention.mask)


def pooling_work(width: int) -> Flops:
    """Return the FLOPs of the pooling for each vector by itself."""
    return linear(width, 2 * width) + linear(width, width, bias=True)


def pooled(encoder: EncoderConfig, width: int, pairs: float, share: float) -> Flops:
    """Return the FLOPs of the pooling for the pairs of one query."""
    return _attention(pooling_attention(encoder), False, width, pairs, share)


def tower(hidden: list[int], width: int) -> Flops:
    """Return the FLOPs of a tower for one vector."""
    widths = [width, *(width * multiple for multiple in hidden), width] if hidden else []
    layers = (linear(a, b, bias=True) + Flops(pointwise=2.0 * b) for a, b in itertools.pairwise(widths))
    return sum(layers, Flops())


def _inputs(model: NextItemConfig, width: int, workload: Workload, items_per_event: float) -> Flops:
    """Return the FLOPs of adding positions and times, and of projecting features. Numeric features need no gradient."""
    each = {"item": items_per_event, "event": 1.0, "user": 1.0 / workload.histories.mean}
    vectors = 1 + (model.encoder.positions == "learned") + len(model.inputs.time)
    total = Flops(pointwise=float(width * (vectors + 4 * model.encoder.input_norm)))
    for feature in workload.projected:
        products = 2.0 * feature.width * width
        work = Flops(products, products * (2 if feature.looked_up else 1), 0.0, float(width))
        total += work.times(each[feature.owner])
    return total


def _objective(objective: ObjectiveConfig, width: int, workload: Workload) -> Flops:
    """Return the FLOPs of one target: its scores against C vectors, both gradients, and about one exponential per score."""
    scores_all = isinstance(objective, FullSoftmaxConfig)
    compared = workload.num_items if scores_all else objective.num_negatives  # type: ignore[union-attr]
    products = 2.0 * compared * width
    again = products if scores_all and compared > TILED_FROM else 0.0
    return Flops(products, 2.0 * products, again, 4.0 * compared + 2.0 * width)


def num_dense_parameters(model: NextItemConfig, width: int, projected: tuple[Projected, ...] = ()) -> int:
    """Return the number of dense weights: all parameters except the tables."""
    total = encoder_parameters(model.encoder, model.max_history, width)
    # The last layer of the items' tower has no bias.
    total += tower_parameters(model.encoder.item_tower, width) - width * bool(model.encoder.item_tower)
    total += width * model.masks_items
    total += width * sum(NUM_TIME_ROWS[part] for part in model.inputs.time)
    total += model.later_targets * width * width
    return total + width * sum(feature.width for feature in projected)
