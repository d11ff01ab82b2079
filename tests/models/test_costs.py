"""The cost model against torch's own counter, on the code that it speaks of: matrix products and parameters exactly."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.attention.blocks import AttentionContext
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.jagged import layout_of
from models.config import NextItemConfig
from models.costs import Projected, Workload, costs_of, num_dense_parameters
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from models.features.catalogue import Catalogue
from models.features.config import InputsConfig
from models.features.inputs import EventInputs, ModelInputs
from models.features.time import Clock, time_rows
from models.features.values import InputFeature, id_values, number_values
from models.histories import Histories, expected_targets
from models.next_item.model import NextItemModel
from models.objectives.chunked_scores import CHUNK_ELEMENTS
from models.objectives.config import FullSoftmaxConfig
from models.objectives.softmax import MIN_ROWS
from models.tables import TableSpec
from trainer.data.stream.masking import masked_events

WIDTH, MAX_HISTORY, NUM_ITEMS = 16, 24, 29
KINDS = ["sasrec", "bert4rec", "hstu", "ligr", "fuxi_alpha", "two_tower"]
# Lengths of which each gets a bucket of its own, so that nothing is padded.
LENGTHS = np.asarray([24, 24, 7, 7, 7, 1])

FORMS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS},
    "shared keys": {"attention": {"num_heads": 4, "num_key_value_heads": 2}},
    "differential": {"attention": {"num_heads": 2, "differential": True}},
    "differential with bias": {"attention": {"num_heads": 2, "differential": True, "bias": "both"}},
    "sparsemax": {"attention": {"num_heads": 2, "normalisation": "sparsemax", "temperature": "learned"}},
    "entmax": {"attention": {"normalisation": "entmax15", "bias": "time", "time_bias": "functional"}},
    "bucketed": {"attention": {"num_heads": 2, "bias": "both", "position_bias": "bucketed"}},
    "channels": {"attention": {"num_heads": 2, "bias": "both", "bias_as": "channel", "position_bias": "functional"}},
    "bidirectional bias": {"attention": {"mask": "bidirectional", "bias": "position"}},
    "rotary": {"positions": "rotary", "attention": {"num_heads": 2}},
    "window": {"attention": {"num_heads": 2, "window": 5, "num_global": 3}},
    "wide window": {"attention": {"window": 12}},
    "bidirectional window": {"attention": {"window": 5, "mask": "bidirectional"}},
    "penalty": {"attention": {"penalty": 0.1}},
    "attention dropout": {"attention": {"dropout": 0.2}},
    # Without gates or dropout behind it torch leaves out a block's last product, of which nothing else depends.
    "recomputed": {"recompute": True, "kind": "ligr"},
    "recomputed with bias": {"recompute": True, "kind": "fuxi_alpha", "residual_gate": True},
    "no feed-forward": {"feed_forward": "none", "residual_gate": True, "norm": "rms_norm"},
    "towers": {"kind": "two_tower", "user_tower": [3, 2], "item_tower": [], "attention": {"num_heads": 2}},
    "no blocks": {"num_blocks": 0},
    "pruned": {
        "num_blocks": 3,
        "heads_by_block": [3, 0, 1],
        "attention": {"num_heads": 4, "output_norm": "layer_norm"},
    },
    "pruned shared keys": {
        "kind": "hstu",
        "heads_by_block": [4, 2],
        "attention": {"num_heads": 4, "num_key_value_heads": 2},
    },
    "pruned channels": {"kind": "fuxi_alpha", "heads_by_block": [1, 3], "attention": {"num_heads": 4}},
    "pruned differential": {
        "heads_by_block": [2, 1],
        "attention": {"num_heads": 2, "differential": True, "bias": "both"},
    },
    "all blocks pruned": {"heads_by_block": [0, 0]},
    "sasrec as published": {"positions_from": "newest", "feed_forward": "relu", "feed_forward_dropout": 0.3},
    "bert4rec as published": {"kind": "bert4rec", "input_norm": True, "output_head": "gelu"},
    "truncated": {"num_blocks": 3, "truncate_after": 1, "truncate_to": 5},
    "truncated in a window": {
        "kind": "hstu",
        "num_blocks": 3,
        "truncate_after": 2,
        "truncate_to": 13,
        "attention": {"window": 4, "num_global": 1},
    },
    "truncated and pooled": {
        "kind": "two_tower",
        "output_head": "gelu",
        "truncate_after": 1,
        "truncate_to": 5,
    },
    "truncated and recomputed": {"kind": "ligr", "recompute": True, "truncate_after": 1, "truncate_to": 5},
    "truncated, pruned": {"num_blocks": 3, "heads_by_block": [1, 0, 0], "truncate_after": 1, "truncate_to": 5},
    "merged": {"num_blocks": 3, "merge_size": 4, "merge_recent": 5},
    "merged in a window": {"kind": "hstu", "merge_size": 2, "merge_recent": 6, "attention": {"window": 4}},
    "merged by a transformer": {
        "positions": "rotary",
        "merge_size": 3,
        "merge_recent": 5,
        "merge_form": "transformer",
        "attention": {"num_heads": 2, "bias": "both"},
    },
    "merged and recomputed": {"kind": "ligr", "recompute": True, "merge_size": 2, "merge_recent": 1},
    "merged, pruned": {"num_blocks": 3, "heads_by_block": [1, 1, 0], "merge_size": 4, "merge_recent": 5},
    "dropout in swiglu": {"kind": "ligr", "feed_forward_dropout": 0.3, "output_head": "gelu"},
}


def model_config(given: dict[str, Any], objective: dict[str, Any] | None = None) -> NextItemConfig:
    values = {"max_history": MAX_HISTORY, "encoder": {"dropout": 0.0, **given}}
    return NextItemConfig.model_validate({**values, "objective": objective or {"kind": "full_softmax"}})


def context_of(lengths: np.ndarray) -> AttentionContext:
    times = torch.arange(int(lengths.sum()))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return AttentionContext(layout_of(offsets), times, times)


def workload(config: NextItemConfig, **given: Any) -> Workload:
    return replace(Workload(Histories.of(LENGTHS), float(LENGTHS.sum()), NUM_ITEMS), **given)


def products_in(work: Any) -> int:
    """Return matrix products of a step by torch's counter, which knows neither the in-place ones nor the CPU's fused attention."""

    def in_place(shape: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.replace(" ", "-"))
def test_matrix_products_of_an_encoder_are_those_that_torch_counts(form: str) -> None:
    config = model_config(FORMS[form])
    encoder = Encoder(WIDTH, MAX_HISTORY, config.encoder)
    encoder.initialize(torch.Generator().manual_seed(1))
    x_ND = torch.randn(int(LENGTHS.sum()), WIDTH, requires_grad=True)

    def step() -> None:
        encoded, penalty = encoder(x_ND, context_of(LENGTHS))
        (encoded.square().sum() + (0.0 if penalty is None else penalty)).backward()

    # Without its objective and the tower of items, which are not the encoder's to run.
    quiet = config.model_copy(update={"encoder": config.encoder.model_copy(update={"item_tower": []})})
    parts = costs_of(quiet, WIDTH, workload(quiet)).parts
    predicted = sum(work.matmul for name, work in parts.items() if name != "objective") * x_ND.shape[0]
    assert predicted == pytest.approx(products_in(step), rel=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.replace(" ", "-"))
def test_dense_parameters_are_those_of_the_model(form: str) -> None:
    config = model_config(FORMS[form])
    encoder = Encoder(WIDTH, MAX_HISTORY, config.encoder)
    mask_vector = WIDTH if config.masks_items else 0
    assert num_dense_parameters(config, WIDTH) == sum(p.numel() for p in encoder.parameters()) + mask_vector


@pytest.mark.parametrize("kind", ["two_tower", "bert4rec"])
def test_dense_parameters_are_those_of_a_whole_model_and_its_inputs(kind: str) -> None:
    config = model_config({"kind": kind}).model_copy(update={"inputs": InputsConfig(time=["gap", "weekday"])})
    numbers = (InputFeature("price", None, 1), InputFeature("vector", None, 3))
    inputs = ModelInputs(numbers, numbers[:1], Clock(1, ("gap", "weekday")))
    model = NextItemModel(config, [TableSpec("item", 9, WIDTH)], torch.device("cpu"), numbers, inputs)
    dense = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.tables.parameters())
    widths = (("item", 1), ("item", 3), ("event", 1), ("event", 3), ("user", 1))
    projected = tuple(Projected(owner, width, False) for owner, width in widths)
    assert num_dense_parameters(config, WIDTH, projected) == dense


def batch_of(lengths: np.ndarray, num_negatives: int) -> HistoryBatch:
    random = np.random.default_rng(3)
    num_events = int(lengths.sum())
    items, targets = random.integers(1, NUM_ITEMS + 1, (2, num_events))
    negatives = random.integers(1, NUM_ITEMS + 1, num_negatives)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    rows = np.arange(lengths.size)
    batch = build_batch(rows, offsets, items, targets, negatives, catalogue, whole_catalogue=not num_negatives)
    return replace(batch, times=torch.arange(num_events))


def test_masked_events_are_counted_as_they_are_drawn() -> None:
    config = model_config({"kind": "bert4rec"})
    lengths = np.tile(LENGTHS, 400)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    masked = masked_events(np.arange(lengths.size), offsets, config.masking, 1, 0)
    assert expected_targets(config, Histories.of(lengths)) == pytest.approx(masked.mean(), rel=0.05)


OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "bce", "num_negatives": 9},
    {"kind": "gbce", "num_negatives": 9},
    {"kind": "full_softmax"},
    {"kind": "full_softmax", "normalize": True, "temperature": 0.1},
    {"kind": "sampled_softmax", "num_negatives": 11},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("kind", ["sasrec", "two_tower"])
def test_matrix_products_of_a_whole_step_are_those_that_torch_counts(kind: str, objective: dict[str, Any]) -> None:
    config = model_config({"kind": kind}, objective)
    model = NextItemModel(config, [TableSpec("item", NUM_ITEMS + 1, WIDTH)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    batch = batch_of(LENGTHS, objective.get("num_negatives", 0))

    def step() -> None:
        model.loss(model.look_up(batch.items), batch).backward()

    costs = costs_of(config, WIDTH, workload(config, items_per_step=float(batch.lookup_ids.numel())))
    assert costs.total.matmul * LENGTHS.sum() == pytest.approx(products_in(step), rel=1e-12)


def test_projections_of_features_are_counted() -> None:
    config = model_config({}).model_copy(update={"inputs": InputsConfig(time=["gap", "hour", "weekday"])})
    clock = Clock(1, ("gap", "hour", "weekday"))
    events, users = (InputFeature("price", None, 3), InputFeature("page", "page", 6)), (InputFeature("age", None, 5),)
    inputs = EventInputs(WIDTH, ModelInputs(events, users, clock))
    num_events, num_users = int(LENGTHS.sum()), LENGTHS.size
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    rows = torch.randn(4, 6, requires_grad=True)
    items_ND = torch.randn(num_events, WIDTH, requires_grad=True)
    said = {
        "price": number_values(np.ones((num_events, 3), np.float32)),
        "page": id_values(np.arange(num_events) % 4, np.arange(num_events)),
    }
    ages = {"age": number_values(np.ones((num_users, 5), np.float32))}
    times = {name: torch.from_numpy(value) for name, value in time_rows(clock, np.arange(num_events), offsets).items()}

    def step() -> None:
        told_ND = inputs(items_ND, {"page": rows}, said, ages, torch.from_numpy(offsets), times)
        told_ND.square().sum().backward()

    projected = (Projected("event", 3, False), Projected("event", 6, True), Projected("user", 5, False))
    work = costs_of(config, WIDTH, workload(config, projected=projected)).parts["inputs"]
    assert work.matmul * num_events == pytest.approx(products_in(step), rel=1e-12)
    with_inputs, without = num_dense_parameters(config, WIDTH, projected), num_dense_parameters(model_config({}), WIDTH)
    assert with_inputs - without == sum(parameter.numel() for parameter in inputs.parameters())


def test_norms_dropout_and_heads_beside_the_blocks_are_counted() -> None:
    def pointwise_of(part: str, **given: Any) -> float:
        config = model_config(given)
        parts = costs_of(config, WIDTH, workload(config)).parts
        return parts[part].pointwise if part in parts else 0.0

    assert pointwise_of("inputs", input_norm=True) > pointwise_of("inputs")
    assert pointwise_of("feed-forward", feed_forward_dropout=0.1) > pointwise_of("feed-forward")
    assert pointwise_of("output head", output_head="gelu") > pointwise_of("output head") == 0.0


def test_parts_add_up_and_a_forward_pass_is_a_third_where_nothing_is_recomputed() -> None:
    config = model_config({})
    costs = costs_of(config, WIDTH, workload(config))
    assert costs.total.matmul == pytest.approx(sum(work.matmul for work in costs.parts.values()))
    assert costs.total.matmul == pytest.approx(3 * costs.total.forward)
    assert costs.training > costs.total.matmul > 0


def test_attention_grows_with_the_square_of_length_and_with_a_window_only_linearly() -> None:
    def attention_of(length: int, window: int | None) -> float:
        config = model_config({"attention": {"window": window}}).model_copy(update={"max_history": length})
        histories = Histories.of(np.asarray([length]))
        return costs_of(config, WIDTH, Workload(histories, length, NUM_ITEMS)).parts["attention"].matmul

    assert attention_of(4096, None) == pytest.approx(8 * attention_of(512, None))
    assert attention_of(4096, 64) == pytest.approx(attention_of(512, 64))


def test_a_sampled_objective_looks_up_fewer_items_than_there_are() -> None:
    sampled = model_config({"kind": "two_tower"}, {"kind": "sampled_softmax", "num_negatives": 4})
    full = model_config({"kind": "two_tower"})
    few, all_items = (costs_of(c, WIDTH, workload(c, num_items=10_000)).parts["towers"] for c in (sampled, full))
    assert few.forward < all_items.forward / 10


def test_constants_are_those_of_the_code() -> None:
    from models import costs, dense_parameters
    from models.attention import bias

    assert (dense_parameters.POSITION_BUCKETS, dense_parameters.TIME_BUCKETS) == (
        bias.NUM_POSITION_BUCKETS,
        bias.NUM_TIME_BUCKETS,
    )
    assert isinstance(model_config({}).objective, FullSoftmaxConfig)
    assert costs.TILED_FROM * MIN_ROWS == CHUNK_ELEMENTS
    assert isinstance(model_config({}).encoder, EncoderConfig)


@pytest.mark.parametrize(
    "form", [*KINDS, "sasrec as published", "bert4rec as published", "dropout in swiglu", "truncated", "merged"]
)
def test_activations_are_about_those_that_autograd_keeps(form: str) -> None:
    config = model_config({**FORMS[form], "num_blocks": 4})
    encoder = Encoder(WIDTH, MAX_HISTORY, config.encoder)
    lengths = np.full(64, MAX_HISTORY)
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_ND = torch.randn(int(lengths.sum()), WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(x_ND, context_of(lengths))
    estimated = costs_of(config, WIDTH, Workload(Histories.of(lengths), lengths.sum(), NUM_ITEMS)).activation_bytes
    assert estimated == pytest.approx(sum(kept.values()) / lengths.sum(), rel=0.1)
