"""Negatives that a batch is given after it was read: every index still leads to its id, and only what is needed is looked up."""

from typing import Any

import numpy as np
import pytest
import torch

from models.batch import HistoryBatch, build_batch, with_negatives
from models.item_features import Catalogue, IdColumn, ItemFeature
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from sharding.ranks import Ranks
from trainer.global_negatives import GlobalNegatives
from trainer.stream.order import Position

NUM_KNOWN = 30
ALONE = Ranks(0, 1, torch.device("cpu"))
NOTHING = np.zeros(0, np.int64)
TRAIN_EVENTS = np.arange(NUM_KNOWN)


def catalogue_with_brands() -> Catalogue:
    brands = IdColumn(np.arange(NUM_KNOWN) % 4, np.arange(NUM_KNOWN + 1))
    return Catalogue(NUM_KNOWN, NUM_KNOWN, features=(ItemFeature("brand", "brand", 3),), columns={"brand": brands})


def batch_of(catalogue: Catalogue) -> HistoryBatch:
    """Two histories, 3 7 7 and 9, of which the last target is unknown."""
    offsets = np.asarray([0, 3, 4])
    history, targets = np.asarray([3, 7, 7, 9]), np.asarray([7, 7, 12, 0])
    return build_batch(np.arange(2), offsets, history, targets, NOTHING, catalogue, False)


@pytest.mark.parametrize("negatives", [[7, 3, 12], [5, 29, 29, 1], []])
def test_a_batch_with_negatives_is_that_which_was_built_with_them(negatives):
    catalogue = catalogue_with_brands()
    ours = with_negatives(batch_of(catalogue), np.asarray(negatives, np.int64), catalogue)
    offsets, history, targets = np.asarray([0, 3, 4]), np.asarray([3, 7, 7, 9]), np.asarray([7, 7, 12, 0])
    built = build_batch(
        np.arange(2), offsets, history, targets, np.asarray(negatives, np.int64), catalogue, whole_catalogue=False
    )
    for name in (
        "lookup_ids",
        "history_index",
        "target_ids",
        "target_index",
        "target_event",
        "negative_ids",
        "negative_index",
    ):
        assert torch.equal(getattr(ours, name), getattr(built, name)), name
    assert {table: rows.tolist() for table, rows in ours.items.rows.items()} == {
        table: rows.tolist() for table, rows in built.items.rows.items()
    }
    assert torch.equal(ours.items.values["brand"].index, built.items.values["brand"].index)


def settled(negatives: dict[str, Any], logq: str, num: int = 6) -> HistoryBatch:
    catalogue = Catalogue(NUM_KNOWN, NUM_KNOWN)
    objective = SampledSoftmaxConfig.model_validate({"num_negatives": num, "negatives": negatives, "logq": logq})
    whole = GlobalNegatives(objective, catalogue, 3, TRAIN_EVENTS)
    return whole.settle(batch_of(catalogue), Position(0, 0), ALONE)


def test_negatives_of_the_global_batch_are_its_learned_targets():
    batch = settled({"kind": "cross_rank"}, "none", 100)
    assert set(batch.negative_ids.tolist()) == {7, 12}
    assert torch.equal(batch.lookup_ids[batch.negative_index], batch.negative_ids)
    assert batch.negative_log_q is batch.target_log_q is None


def test_corrections_are_of_targets_and_negatives():
    batch = settled({"kind": "cross_rank"}, "counts")
    total = TRAIN_EVENTS.sum()
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
        assert whole.settle(batch, Position(0, 0), ALONE) is batch
        assert whole.tensors() == {}
