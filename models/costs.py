"""What a model costs, by formulas over its settings alone: FLOPs by part, parameters, activations, bytes moved. No torch.

Of each input event, on average over histories of given lengths. FLOPs of matrix products are those of the code as it runs: a pair
of events that a mask hides costs as much as one that it shows, and what is computed again in the backward pass is counted
again. They equal torch.utils.flop_counter exactly, for histories padded to their own length (tests/models/test_costs.py).
Other operations are estimates: one for each number that is produced. So are activations and bytes moved, in float32.

Symbols: D model width, H heads, K head width, L events of a history, C candidates or negatives, U looked-up items of a step.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.attention.config import AttentionConfig
from models.config import NextItemConfig
from models.dense_parameters import encoder_parameters, tower_parameters
from models.encoders.config import EncoderConfig
from models.features.config import NUM_TIME_ROWS
from models.objectives.config import FullSoftmaxConfig, ObjectiveConfig

FLOAT = 4  # bytes
# Numbers produced for each score: subtract, exponential, divide; for the sparse ones some four rounds of three towards a threshold.
NORMALISATION = {"softmax": 3.0, "silu": 3.0, "sparsemax": 15.0, "entmax15": 16.0, "none": 1.0}
# Of a dense weight and step: read forward and backward, its gradient written and read, weight and two moments read and written.
WEIGHT_TRAFFIC = 10
# A full softmax over more candidates than this forms its logits twice on CPUs (models/objectives/softmax.py).
TILED_FROM = 1 << 15


@dataclass(frozen=True)
class Histories:
    """How many histories there are of each length; lengths (n,) int64 of 1 and more, counts (n,)."""

    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Histories":
        """From the length of every history; empty ones cost nothing."""
        return cls(*np.unique(lengths[lengths > 0], return_counts=True))

    @property
    def num_events(self) -> float:
        return float((self.lengths * self.counts).sum())

    @property
    def mean(self) -> float:
        """Events of a history that is not empty; 0 where all are."""
        return self.num_events / max(1.0, float(self.counts.sum()))


@dataclass(frozen=True)
class Projected:
    """A feature of items, events or users that is projected from its width to D. looked_up: not given as numbers, but learned."""

    owner: Literal["item", "event", "user"]
    width: int
    looked_up: bool


@dataclass(frozen=True)
class Workload:
    """What a training step is given.

    events_per_step: of the global batch; num_items: that the training part knows; projected: features that are not as wide as
    the model; targets_per_event, items_per_step: what is learned and looked up, none expects as many as the settings say.
    """

    histories: Histories
    events_per_step: float
    num_items: int
    targets_per_event: float | None = None
    projected: tuple[Projected, ...] = ()
    items_per_step: float | None = None


@dataclass(frozen=True)
class Flops:
    """Of one part and one input event. forward, backward, recomputed: matrix products; pointwise: all else, forward."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0
    pointwise: float = 0.0

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
        """Matrix products of a training step."""
        return self.forward + self.backward + self.recomputed

    @property
    def training(self) -> float:
        """Of a training step. The backward pass of a pointwise operation is taken for two of them."""
        return self.matmul + 3.0 * self.pointwise


@dataclass(frozen=True)
class Costs:
    """parts: FLOPs of one input event by part of the model; bytes: of one input event of a training step, in float32."""

    parts: dict[str, Flops]
    dense_parameters: int
    activation_bytes: float
    moved_bytes: float

    @property
    def total(self) -> Flops:
        return sum(self.parts.values(), Flops())

    @property
    def forward(self) -> float:
        """Of encoding an event and scoring it as in training."""
        return self.total.forward + self.total.pointwise

    @property
    def training(self) -> float:
        return self.total.training


def costs_of(model: NextItemConfig, width: int, workload: Workload) -> Costs:
    """width: D, of the item table. Tables count as look-ups; their parameters are not the model's."""
    encoder = model.encoder
    items_per_event = looked_up_items(model, workload) / workload.events_per_step
    parts = {name: work.times(encoder.num_blocks) for name, work in _block(encoder, width, workload)}
    parts["pooling"] = _pooling(encoder, width, workload.histories)
    parts["towers"] = tower(encoder.user_tower, width) + tower(encoder.item_tower, width).times(items_per_event)
    parts["output head"] = output_head(encoder, width)
    parts["inputs"] = _inputs(model, width, workload, items_per_event)
    targets = workload.targets_per_event
    targets = expected_targets(model, workload.histories) if targets is None else targets
    parts["objective"] = _objective(model.objective, width, workload).times(targets)
    dense = num_dense_parameters(model, width, workload.projected)
    activations = FLOAT * saved_numbers(encoder, width)
    looked_up = (
        FLOAT * width * (5 * items_per_event + 2)
    )  # row read, written, its gradient twice, row updated; events gathered
    weights = FLOAT * WEIGHT_TRAFFIC * dense / workload.events_per_step
    return Costs(
        {name: work for name, work in parts.items() if work != Flops()},
        dense,
        activations,
        3 * activations + looked_up + weights,  # written, read, and a gradient as large
    )


def expected_targets(model: NextItemConfig, histories: Histories) -> float:
    """Of an input event: one, or the share of events that are masked (trainer/data/stream/masking.py), at least one per history."""
    if not model.masks_items:
        return 1.0
    masking = model.masking
    lengths = histories.lengths
    masked = lengths * masking.probability + (1.0 - masking.probability) ** lengths
    masked = (1.0 - masking.last_probability) * masked + masking.last_probability
    return float((masked * histories.counts).sum()) / histories.num_events


def looked_up_items(model: NextItemConfig, workload: Workload) -> float:
    """Distinct items of a step: all, or how many are expected if events were spread evenly over the catalogue (an upper bound)."""
    if workload.items_per_step is not None:
        return workload.items_per_step
    if isinstance(model.objective, FullSoftmaxConfig):
        return workload.num_items + 1.0
    draws = workload.events_per_step * (1.0 + 1.0 / workload.histories.mean) + model.objective.num_negatives
    return float(workload.num_items * -np.expm1(draws * np.log1p(-1.0 / (workload.num_items + 1))))


def linear(width_in: float, width_out: float, bias: bool = False) -> Flops:
    """A linear layer, of one vector."""
    products = 2.0 * width_in * width_out
    return Flops(products, 2.0 * products, 0.0, width_out if bias else 0.0)


def _block(encoder: EncoderConfig, width: int, workload: Workload) -> Iterator[tuple[str, Flops]]:
    pairs = pairs_per_event(encoder.attention, workload.histories)
    into, behind = vector_work(encoder, width)
    for name, work in added(into, behind, pair_work(encoder, width, pairs, not is_plain(encoder))).items():
        yield name, work + again(encoder, work)


def again(encoder: EncoderConfig, work: Flops) -> Flops:
    """What a block computes again in the backward pass beside its attention, if it is told to keep nothing."""
    return Flops(recomputed=work.forward) if encoder.recompute else Flops()


def added(*parts: dict[str, Flops]) -> dict[str, Flops]:
    """The sum by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum((part.get(name, Flops()) for part in parts), Flops()) for name in names}


def vector_work(encoder: EncoderConfig, width: int) -> tuple[dict[str, Flops], dict[str, Flops]]:
    """What a block does to each vector on its own: (up to queries, keys and values, behind the attention)."""
    attention = encoder.attention
    seen = attention.num_channels * width
    key_width = attention.key_value_heads * (width // attention.num_heads)
    sizes = width + 2 * key_width
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


def pair_work(encoder: EncoderConfig, width: int, pairs: float, in_pieces: bool) -> dict[str, Flops]:
    """What a block does with the pairs of one query. in_pieces: whether the backward pass computes them again."""
    attention = encoder.attention
    return {"attention": _attention(encoder, width, pairs, in_pieces), "bias": _bias(attention, pairs)}


def is_plain(encoder: EncoderConfig) -> bool:
    """Whether training goes through scaled_dot_product_attention; any other form is computed again in the backward pass."""
    attention = encoder.attention
    return (
        attention.normalisation == "softmax"
        and attention.mask == "causal"
        and attention.window is None
        and attention.bias == "none"
        and attention.dropout * 256 < 0.5  # models/layers/dropout.py drops in steps of 1/256
        and attention.penalty == 0.0
    )


def pairs_per_event(attention: AttentionConfig, histories: Histories, reach: int | None = None) -> float:
    """Pairs of a query and a key that are computed, hidden ones too, for an average event.

    reach: how many events an event looks at, the most recent ones and itself, where that is limited beside the window.
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


def _attention(encoder: EncoderConfig, width: int, pairs: float, in_pieces: bool) -> Flops:
    """Scores, their normalisation, and the weighted sums of values, which each map and each channel has of its own."""
    attention = encoder.attention
    maps = 2 if attention.differential else 1
    products = 2.0 * pairs * width * (1 + maps + (attention.num_channels - 1))
    recomputed = products if in_pieces else 0.0
    per_score = NORMALISATION[attention.normalisation] + (attention.dropout > 0)
    rotated = 3.0 * 2 * width * (encoder.positions == "rotary")
    combined = 6.0 * width * attention.differential
    pointwise = pairs * maps * attention.num_heads * per_score + rotated + combined
    return Flops(products, 2.0 * products, recomputed, pointwise)


def _bias(attention: AttentionConfig, pairs: float) -> Flops:
    """Each bias: looked up or computed for every pair and head, and added."""
    biases = attention.uses_position + attention.uses_time
    maps = 2 if attention.differential else 1
    return Flops(pointwise=2.0 * pairs * maps * attention.num_heads * biases)


def _feed_forward(encoder: EncoderConfig, width: int) -> Flops:
    hidden = width * encoder.feed_forward_multiple
    match encoder.feed_forward:
        case "none":
            return Flops()
        case "swiglu":
            products, pointwise = linear(width, 2 * hidden) + linear(hidden, width), 3.0 * hidden
        case _:
            products, pointwise = linear(width, hidden, bias=True) + linear(hidden, width, bias=True), 2.0 * hidden
    return products + Flops(pointwise=pointwise + hidden * (encoder.feed_forward_dropout > 0))


def output_head(encoder: EncoderConfig, width: int) -> Flops:
    """The layer behind the encoder, of one vector."""
    if encoder.output_head == "none":
        return Flops()
    return linear(width, width, bias=True) + Flops(pointwise=2.0 * width + 4.0 * width)  # GELU, and the norm


def _pooling(encoder: EncoderConfig, width: int, histories: Histories) -> Flops:
    if encoder.pooling == "last":
        return Flops()
    pairs = pairs_per_event(pooling_attention(encoder), histories)
    return pooling_work(width) + pooled(
        encoder, width, pairs, not is_plain(EncoderConfig(attention=pooling_attention(encoder)))
    )


def pooling_attention(encoder: EncoderConfig) -> AttentionConfig:
    """The attention of the pooling."""
    return AttentionConfig(num_heads=encoder.attention.num_heads, mask=encoder.attention.mask)


def pooling_work(width: int) -> Flops:
    """What the pooling does to each vector on its own."""
    return linear(width, 2 * width) + linear(width, width, bias=True)


def pooled(encoder: EncoderConfig, width: int, pairs: float, in_pieces: bool) -> Flops:
    """What the pooling does with the pairs of one query."""
    return _attention(EncoderConfig(attention=pooling_attention(encoder)), width, pairs, in_pieces)


def tower(hidden: list[int], width: int) -> Flops:
    """The layers of a tower, of one vector."""
    widths = [width, *(width * multiple for multiple in hidden), width] if hidden else []
    layers = (linear(a, b, bias=True) + Flops(pointwise=2.0 * b) for a, b in itertools.pairwise(widths))
    return sum(layers, Flops())


def _inputs(model: NextItemConfig, width: int, workload: Workload, items_per_event: float) -> Flops:
    """Positions and times added; features projected, of which those that are numbers need no gradient of their own."""
    each = {"item": items_per_event, "event": 1.0, "user": 1.0 / workload.histories.mean}
    vectors = 1 + (model.encoder.positions == "learned") + len(model.inputs.time)
    found = Flops(pointwise=float(width * (vectors + 4 * model.encoder.input_norm)))
    for feature in workload.projected:
        products = 2.0 * feature.width * width
        work = Flops(products, products * (2 if feature.looked_up else 1), 0.0, float(width))
        found += work.times(each[feature.owner])
    return found


def _objective(objective: ObjectiveConfig, width: int, workload: Workload) -> Flops:
    """Of one target: its score against C vectors, and the gradients of both sides; one exponential or so for each score."""
    scores_all = isinstance(objective, FullSoftmaxConfig)
    compared = workload.num_items if scores_all else objective.num_negatives  # type: ignore[union-attr]
    products = 2.0 * compared * width
    again = products if scores_all and compared > TILED_FROM else 0.0
    return Flops(products, 2.0 * products, again, 4.0 * compared + 2.0 * width)


def num_dense_parameters(model: NextItemConfig, width: int, projected: tuple[Projected, ...] = ()) -> int:
    """Of everything but the tables."""
    total = encoder_parameters(model.encoder, model.max_history, width)
    # The last layer of the items' tower has no bias.
    total += tower_parameters(model.encoder.item_tower, width) - width * bool(model.encoder.item_tower)
    total += width * model.masks_items
    total += width * sum(NUM_TIME_ROWS[part] for part in model.inputs.time)
    return total + width * sum(feature.width for feature in projected)


def saved_numbers(encoder: EncoderConfig, width: int) -> float:
    """Numbers of one event that the backward pass needs: what goes into matrix products, norms and activations."""
    attention = encoder.attention
    seen = attention.num_channels * width
    key_width = attention.key_value_heads * (width // attention.num_heads)
    maps = 2 if attention.differential else 1
    projected = width + 2 * key_width + seen * attention.gate
    rms = encoder.norm == "rms_norm"  # torch keeps what it scales by besides
    block = (2.0 + rms) * width  # the norm's input and output
    block += projected * (attention.projection_activation == "silu") * (1 + attention.gate)
    block += (2 + maps) * width + seen * maps  # queries, keys, and values by map, as rows; what was seen
    block += seen * (attention.gate + {"none": 0, "layer_norm": 1, "rms_norm": 2}[attention.output_norm])
    beside = 3.0 * width * encoder.residual_gate + width * (encoder.dropout > 0)
    block += beside
    if encoder.feed_forward != "none":
        hidden = width * encoder.feed_forward_multiple
        block += (2.0 + rms) * width + hidden * (4 if encoder.feed_forward == "swiglu" else 2) + beside
        block += hidden * (encoder.feed_forward_dropout > 0)  # which are dropped
    if encoder.recompute:
        block = (encoder.num_blocks * width + block) / max(1, encoder.num_blocks)
    pooling = 6.0 * width * (encoder.pooling == "attention")
    towers = width * (1.0 + 2.0 * sum(encoder.user_tower)) if encoder.user_tower else 0.0
    ends = (1.0 + rms) * width * encoder.input_norm + (3.0 + rms) * width * (encoder.output_head != "none")
    return encoder.num_blocks * block + 4.0 * width + pooling + ends + towers
