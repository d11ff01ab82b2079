"""Negatives that a batch is given after it was read: every index still leads to its id, and only what is needed is looked up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch, build_batch, with_negatives
from models.features.items import Catalogue, IdColumn, ItemComposer
from models.features.values import InputFeature
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from sharding.world import World
from trainer.data.stream.order import Position
from trainer.global_batch.negatives import GlobalNegatives

NUM_KNOWN = 30
ALONE = World(0, 1, torch.device("cpu"))
NOTHING = np.zeros(0, np.int64)
TARGET_COUNTS = np.arange(NUM_KNOWN)
# Rows, offsets, inputs and targets of two histories, 3 7 7 and 9, of which the last target is unknown.
HISTORIES = np.arange(2), np.asarray([0, 3, 4]), np.asarray([3, 7, 7, 9]), np.asarray([7, 7, 12, 0])


def catalogue_with_brands() -> Catalogue:
    brands = IdColumn(np.arange(NUM_KNOWN) % 4, np.arange(NUM_KNOWN + 1))
    return Catalogue(NUM_KNOWN, NUM_KNOWN, features=(InputFeature("brand", "brand", 3),), columns={"brand": brands})


def batch_of(catalogue: Catalogue) -> HistoryBatch:
    return build_batch(*HISTORIES, NOTHING, catalogue, whole_catalogue=False)


def vectors(catalogue: Catalogue, batch: HistoryBatch) -> Tensor:
    """Return the vector of every item of the batch, from tables of random rows."""
    tables = {name: torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) for name in ("item", "brand")}
    rows = {table: tables[table][asked] for table, asked in batch.items.rows.items()}
    assert all(asked.unique().numel() == asked.numel() for asked in batch.items.rows.values())
    return ItemComposer(3, catalogue.features)(rows, batch.items)


@pytest.mark.parametrize("shared", [False, True], ids=["own rows", "hashed rows"])
@pytest.mark.parametrize("negatives", [[7, 3, 12], [5, 29, 29, 1], [], [0]])
def test_a_batch_with_negatives_is_that_which_was_built_with_them(shared, negatives):
    catalogue = catalogue_with_brands()
    if shared:  # items 0 .. 9 again and again, so that new items have rows that are there already
        catalogue = replace(catalogue, rows=np.arange(NUM_KNOWN) % 10)
    first, drawn = batch_of(catalogue), np.asarray(negatives, np.int64)
    ours = with_negatives(first, drawn, catalogue)
    built = build_batch(*HISTORIES, drawn, catalogue, whole_catalogue=False)
    actual, expected = vectors(catalogue, ours), vectors(catalogue, built)
    for ids, index in (("target_ids", "target_index"), ("negative_ids", "negative_index")):
        assert torch.equal(ours.lookup_ids[getattr(ours, index)], getattr(ours, ids))
        assert torch.equal(getattr(ours, ids), getattr(built, ids))
        assert torch.equal(actual[getattr(ours, index)], expected[getattr(built, index)])
    assert torch.equal(actual[ours.history_index], expected[built.history_index])
    assert torch.equal(ours.history_index, first.history_index)  # whatever was there stays where it was
    assert set(ours.lookup_ids.tolist()) == set(built.lookup_ids.tolist())
    assert ours.lookup_ids.numel() == built.lookup_ids.numel()


def settled(negatives: dict[str, Any], logq: str, num: int = 6) -> HistoryBatch:
    catalogue = Catalogue(NUM_KNOWN, NUM_KNOWN)
    objective = SampledSoftmaxConfig.model_validate({"num_negatives": num, "negatives": negatives, "logq": logq})
    whole = GlobalNegatives(objective, catalogue, 3)
    whole.take_target_counts(TARGET_COUNTS)
    return whole.complete_batch(batch_of(catalogue), Position(0, 0), ALONE)


def test_negatives_of_the_global_batch_are_its_learned_targets():
    batch = settled({"kind": "cross_rank"}, "none", 100)
    assert set(batch.negative_ids.tolist()) == {7, 12}
    assert torch.equal(batch.lookup_ids[batch.negative_index], batch.negative_ids)
    assert batch.negative_log_q is batch.target_log_q is None


def test_corrections_are_of_targets_and_negatives():
    batch = settled({"kind": "cross_rank"}, "counts")
    total = TARGET_COUNTS.sum()
    torch.testing.assert_close(batch.target_log_q, (batch.target_ids.float() / total).log())
    torch.testing.assert_close(batch.negative_log_q, (batch.negative_ids.float() / total).log())


def test_a_streaming_estimate_has_seen_the_batch_that_it_corrects():
    batch = settled({"kind": "mixed", "uniform_share": 0.5}, "streaming", 4)
    shares = torch.where(batch.target_ids == 7, 2 / 3, 1 / 3)
    torch.testing.assert_close(batch.target_log_q, (0.5 / (NUM_KNOWN - 1) + 0.5 * shares).log())


def test_other_objectives_are_left_alone():
    catalogue = Catalogue(NUM_KNOWN, NUM_KNOWN)
    batch = batch_of(catalogue)
    for objective in (FullSoftmaxConfig(), SampledSoftmaxConfig()):
        whole = GlobalNegatives(objective, catalogue, 3)
        assert whole.complete_batch(batch, Position(0, 0), ALONE) is batch
        assert whole.tensors() == {}
