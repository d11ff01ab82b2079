"""A ranking batch in pieces: together they are the batch, none is larger than allowed, losses and gradients add up to its own."""

from dataclasses import fields
from itertools import chain

import pytest
import torch
from torch import Tensor

from models.layers.running_statistics import sums_of
from models.ranking.batch import RankingBatch
from models.ranking.config import RankingConfig, learned_labels
from models.ranking.interest import interest_of
from models.ranking.micro_batches import ALONG, SHARED, parts_of, with_cuts
from models.ranking.model import RankingModel
from sharding.tables.initialize import initialize_tables
from tests.models.ranking.test_model import (
    INPUTS,
    ITEM_FEATURES,
    LABELS,
    TABLES,
    WIDTH,
    batch_of,
    doubled,
    looked_up,
    random_users,
)

MAX_HISTORY = 20
COUNTS = ((6, 4), (0, 2), (3, 0), (1, 5), (9, 3), (0, 0), (2, 2), (8, 1))
CATEGORY = {"kind": "category", "feature": "tag", "num_found": 2}
RANKERS = {
    "din": {"kind": "din", "labels": {"click": {"loss": "pairwise"}}},
    "bst": {"kind": "bst", "encoder": {"attention": {"num_heads": 2}, "dropout": 0.0}, "experts": {"hidden": [6]}},
    "hstu": {
        "kind": "hstu",
        "encoder": {"dropout": 0.0, "attention": {"num_heads": 2}},
        "experts": {"kind": "mmoe", "hidden": [6]},
    },
    "sim": {"kind": "sim", "interest": {"attention": {"num_heads": 2}, "search": CATEGORY}},
    "pooled": {"kind": "pooled", "labels": {"click": {"loss": "listwise"}}},
    "logistic": {"kind": "logistic"},
}


def ranker(kind: str) -> RankingModel:
    config = RankingConfig.model_validate({**RANKERS[kind], "max_history": MAX_HISTORY})
    interest = interest_of(WIDTH, MAX_HISTORY, config.encoder, config.interest)
    labels = learned_labels(config, LABELS)
    model = RankingModel(config, labels, TABLES, torch.device("cpu"), interest, ITEM_FEATURES, INPUTS)
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {table.name: 1.0 for table in TABLES})
    return model.double()


def outcome(model: RankingModel, batch: RankingBatch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return loss, gradients by name of what was looked up and of weights, and what moving statistics counted."""
    rows = {table: value.detach().requires_grad_() for table, value in looked_up(model, batch).items()}
    total = torch.zeros((), dtype=torch.float64)
    for part in parts_of(batch):
        loss = model.loss(rows, part)
        loss.backward()
        total += loss.detach()
    leaves = chain(rows.items(), ((n, p) for n, p in model.named_parameters() if not n.startswith("tables")))
    return total, {name: leaf.grad for name, leaf in leaves if leaf.grad is not None}, sums_of(model)


def test_every_field_of_a_batch_is_cut_or_shared():
    other = {"layout", "candidate_layout", "candidate_offsets", "history_of", "items", "cuts"}
    assert {field.name for field in fields(RankingBatch)} == {*ALONG, *SHARED, *other}


@pytest.mark.parametrize("most", [1, 7, 12, 40])
def test_pieces_are_whole_histories_within_bounds(most):
    whole = batch_of(random_users(4, COUNTS))
    parts = list(parts_of(with_cuts(whole, most)))
    assert torch.cat([part.row_ids for part in parts]).equal(whole.row_ids)
    for name, along in ALONG.items():
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], Tensor):
            assert torch.cat(values).equal(getattr(whole, name)), (name, along)
    for part in parts:
        assert part.layout.num_events + part.num_targets <= most or part.num_histories == 1
        assert part.candidate_offsets[-1] == part.num_targets == part.candidate_layout.num_candidates
        assert part.history_of.equal(part.candidate_layout.history)
        assert part.history_end.equal(part.candidate_layout.history_end)


@pytest.mark.parametrize("most", [1, 12, 30])
@pytest.mark.parametrize("kind", RANKERS)
def test_losses_gradients_and_statistics_add_up_to_those_of_the_batch(kind, most):
    whole = doubled(batch_of(random_users(4, COUNTS)))
    cut = with_cuts(whole, most)
    assert len(cut.cuts) > 1
    expected_loss, expected, expected_sums = outcome(ranker(kind), whole)
    loss, gradients, sums = outcome(ranker(kind), cut)
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    torch.testing.assert_close(sums, expected_sums)
    assert bool(sums.numel()) == (kind in ("din", "sim"))


def test_a_batch_that_is_small_enough_stays_whole():
    whole = batch_of(random_users(4, COUNTS))
    assert with_cuts(whole, 46) is with_cuts(whole, None) is whole
    assert list(parts_of(whole)) == [whole]
