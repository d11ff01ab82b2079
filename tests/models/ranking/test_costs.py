"""The cost model of rankers against torch's own counter and the parameters of the model, for every preset and part."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.attention.candidates import ROW_SIZE, lay_out_candidates
from models.attention.tiled import UNIT_KEPT
from models.histories import Histories
from models.ranking import costs
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.costs import (
    RankingFeature,
    RankingWorkload,
    candidate_pairs,
    field_widths,
    num_ranking_parameters,
    ranking_costs_of,
)
from models.ranking.interest import interest_of
from models.ranking.model import RankingModel
from tests.models.ranking.test_model import INPUTS, ITEM_FEATURES, LABELS, NUM_ITEMS, TABLES, WIDTH, User, batch_of
from tests.models.test_costs import products_in

NUM_USERS, NUM_EVENTS, NUM_SHOWN, MAX_HISTORY = 3, 10, 4, 20
TWO_HEADS = {"attention": {"num_heads": 2}}
TIMES = {"time": ["gap", "hour"]}
FORMS: dict[str, dict[str, Any]] = {
    "logistic": {"kind": "logistic"},
    "pooled": {"kind": "pooled", "experts": {"hidden": [6]}},
    "din": {"kind": "din", "experts": {"hidden": [6, 5]}},
    "deep unit": {
        "kind": "din",
        "interest": {"attention": {"unit_hidden": [7, 5], "unit_activation": "prelu", "num_heads": 2}},
    },
    "bst": {"kind": "bst", "encoder": TWO_HEADS},
    "two blocks of bst": {"kind": "bst", "encoder": {**TWO_HEADS, "num_blocks": 2}},
    "hstu": {"kind": "hstu", "encoder": TWO_HEADS},
    "sim": {"kind": "sim", "interest": {**TWO_HEADS, "search": {"num_found": 3}}},
    "category": {
        "kind": "sim",
        "interest": {**TWO_HEADS, "search": {"kind": "category", "feature": "tag", "num_found": 3}},
    },
    "encoded events": {
        "kind": "sim",
        "encoder": {**TWO_HEADS, "num_blocks": 2, "final_norm": True},
        "interest": {
            "search": {"kind": "none"},
            "attention": {"gate": True, "bias": "both", "output_norm": "rms_norm", "projection_activation": "silu"},
        },
    },
    "shared keys": {
        "kind": "sim",
        "encoder": {"num_blocks": 1, "attention": {"num_heads": 2, "normalisation": "sparsemax"}},
        "interest": {
            "search": {"kind": "none"},
            "attention": {"num_heads": 2, "num_key_value_heads": 1, "temperature": "learned"},
        },
    },
    "pooled encoder": {"kind": "hstu", "encoder": {**TWO_HEADS, "pooling": "attention", "user_tower": [2]}},
    "norms of candidates": {"kind": "hstu", "encoder": {**TWO_HEADS, "candidate_norms": True, "num_blocks": 2}},
    "norms of candidates of bst": {"kind": "bst", "encoder": {**TWO_HEADS, "candidate_norms": True}},
    "norm of inputs": {"kind": "bst", "encoder": {**TWO_HEADS, "input_norm": True}},
    "dcn": {"kind": "pooled", "crossing": {"kind": "dcn_v2", "rank": 3, "num_layers": 2}},
    "fm": {"kind": "pooled", "crossing": {"kind": "fm", "rank": 3}},
    "mmoe": {"kind": "pooled", "experts": {"kind": "mmoe", "hidden": [6, 5], "num_experts": 3, "tower": [4]}},
    "ple": {
        "kind": "pooled",
        "experts": {
            "kind": "ple",
            "hidden": [6, 5],
            "num_experts": 2,
            "num_label_experts": 2,
            "num_levels": 2,
            "activation": "dice",
        },
    },
}
FEATURES = (
    RankingFeature("tag", "item", WIDTH, True),
    RankingFeature("price", "item", 1, False),
    RankingFeature("tab", "event", 2, True),
    RankingFeature("city", "user", 3, True),
    RankingFeature("age", "user", 1, False),
    RankingFeature("tab", "candidate", 2, True),
    RankingFeature("slot", "candidate", 1, False),
    RankingFeature("seed", "candidate", WIDTH, True),
)


def config_of(form: str) -> RankingConfig:
    given = {"max_history": MAX_HISTORY, **FORMS[form]}
    if given["kind"] != "logistic":
        given["encoder"] = {"dropout": 0.0, **given.get("encoder", {})}
    return RankingConfig.model_validate({**given, "inputs": TIMES})


def model_of(config: RankingConfig) -> RankingModel:
    interest = interest_of(WIDTH, MAX_HISTORY, config.encoder, config.interest)
    labels = learned_labels(config, LABELS)
    model = RankingModel(config, labels, TABLES, torch.device("cpu"), interest, ITEM_FEATURES, INPUTS)
    model.initialize(torch.Generator().manual_seed(1))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            nn.init.normal_(parameter)
    return model


def users() -> list[User]:
    """Return equal histories and rows of candidates, so that nothing is padded."""
    random = np.random.default_rng(1)
    events = tuple((1 + k, 10 * k, k % 4) for k in range(NUM_EVENTS))
    shown = tuple((1 + k, 1000 + k, k % 4, 0.5, k, k % 2, 0) for k in range(NUM_SHOWN))
    return [User(events, shown, int(random.integers(0, 5)), 0.1) for _ in range(NUM_USERS)]


def workload(items_per_step: float | None = None) -> RankingWorkload:
    impressions = NUM_USERS * NUM_SHOWN
    counts, ends = np.full(NUM_USERS, NUM_SHOWN), np.full(impressions, NUM_EVENTS)
    pairs = candidate_pairs(counts, ends, MAX_HISTORY)
    assert pairs == impressions * NUM_EVENTS
    histories = Histories.of(np.full(NUM_USERS, NUM_EVENTS))
    return RankingWorkload(
        histories,
        impressions,
        pairs,
        impressions,
        NUM_ITEMS,
        len(LABELS),
        features=FEATURES,
        items_per_step=items_per_step,
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.replace(" ", "-"))
def test_matrix_products_of_a_step_are_those_that_torch_counts(form: str) -> None:
    config = config_of(form)
    model, batch = model_of(config), batch_of(users())

    def step() -> None:
        rows = {name: value.detach().requires_grad_() for name, value in model.look_up(batch.items).items()}
        model.loss(rows, batch).backward()

    expected = ranking_costs_of(config, WIDTH, workload(float(batch.lookup_ids.numel())))
    assert expected.total.matmul * NUM_USERS * NUM_SHOWN == pytest.approx(products_in(step), rel=1e-12)
    assert expected.training > expected.total.matmul > 0
    assert expected.forward < expected.training
    assert min(expected.activation_bytes, expected.moved_bytes) > 0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.replace(" ", "-"))
def test_dense_parameters_are_those_of_the_model(form: str) -> None:
    config = config_of(form)
    model = model_of(config)
    dense = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.tables.parameters())
    assert num_ranking_parameters(config, WIDTH, len(LABELS), FEATURES) == dense
    assert field_widths(config, WIDTH, FEATURES) == list(model.fields.widths.values())


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_candidates_are_those_of_the_layout(seed: int) -> None:
    """Rows of candidates count before they are padded to the others of the batch."""
    random = np.random.default_rng(seed)
    counts, lengths, attended = random.integers(0, 20, 12), random.integers(0, 30, 12), int(random.integers(1, 20))
    ends = [np.sort(random.integers(0, length + 1, count)) for length, count in zip(lengths, counts, strict=True)]
    history_end = np.concatenate(ends).astype(np.int64)
    offsets, candidates = (np.concatenate(([0], np.cumsum(sizes))) for sizes in (lengths, counts))
    layout = lay_out_candidates(offsets, candidates, history_end, attended)
    plain = 0
    for block in layout.blocks:
        real_keys = (block.key_place < (1 << 30)).sum(dim=1)
        is_query = torch.zeros(block.query_gather.numel(), dtype=torch.bool).index_fill_(0, block.block_index, True)
        plain += int((is_query.view_as(block.query_gather).sum(dim=1) * real_keys).sum())
    assert candidate_pairs(counts, history_end, attended) == plain


def test_long_histories_of_events_within_reach_cost_only_linearly_more() -> None:
    config = config_of("encoded events")

    def attention_of(length: int, reach: int | None) -> float:
        histories = Histories.of(np.asarray([length]))
        given = RankingWorkload(histories, 1.0, 10.0, 100.0, NUM_ITEMS, 1, reach)
        return ranking_costs_of(config, WIDTH, given).parts["attention"].matmul

    assert attention_of(4096, 64) == pytest.approx(8 * attention_of(512, 64))
    assert attention_of(4096, None) == pytest.approx(64 * attention_of(512, None))


def test_constants_are_those_of_the_code() -> None:
    assert (costs.ROW_SIZE, costs.UNIT_KEPT) == (ROW_SIZE, UNIT_KEPT)
