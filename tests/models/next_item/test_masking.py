"""The model with masked items: no target leaks into its own input, and the mask vector is what is learned in its place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.batches.history_batch import HistoryBatch, build_batch
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_ROWS, WIDTH = 30, 8
OBJECTIVES = [
    {"kind": "full_softmax"},
    {"kind": "sampled_softmax", "num_negatives": 3},
    {"kind": "gbce", "num_negatives": 3},
]


def model_with(objective: dict, kind: str = "bert4rec") -> NextItemModel:
    values = {"max_history": 10, "encoder": {"kind": kind, "dropout": 0.0}, "objective": objective}
    encoder = {"kind": kind, "dropout": 0.0, "attention": {"mask": "bidirectional", "dropout": 0.0}}
    config = NextItemConfig.model_validate({**values, "encoder": encoder})
    model = NextItemModel(config, [TableSpec("item", NUM_ROWS, WIDTH)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {"item": 1.0})
    return model


def batch_of(items: list[list[int]], masked: list[list[int]], whole: bool) -> HistoryBatch:
    """Return histories, and the places in each that are masked."""
    offsets = np.concatenate(([0], np.cumsum([len(history) for history in items])))
    flat = np.asarray([item for history in items for item in history])
    mask = np.concatenate([np.isin(np.arange(len(h)), places) for h, places in zip(items, masked, strict=True)])
    negatives = np.zeros(0, np.int64) if whole else np.asarray([4, 9, 17])
    ids, targets = np.where(mask, 0, flat), np.where(mask, flat, 0)
    batch = build_batch(np.arange(len(items)), offsets, ids, targets, negatives, Catalogue(NUM_ROWS, NUM_ROWS), whole)
    return replace(batch, masked=torch.from_numpy(mask))


def encoded(model: NextItemModel, batch: HistoryBatch) -> torch.Tensor:
    rows = model.look_up(batch.items)
    return model._encode(rows, model.items(rows, batch.items), batch)[0]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("kind", ["bert4rec", "sasrec"])  # any encoder under a bidirectional mask
def test_a_target_is_not_in_its_own_input(objective, kind):
    model = model_with(objective, kind)
    whole = objective["kind"] == "full_softmax"
    batch = batch_of([[3, 5, 7, 11, 13], [2, 6]], [[1, 4], [0]], whole)
    other = batch_of([[3, 8, 7, 11, 21], [19, 6]], [[1, 4], [0]], whole)
    assert torch.equal(encoded(model, batch), encoded(model, other))
    assert batch.target_ids.tolist() == [5, 13, 2]
    assert not torch.equal(model.loss(model.look_up(batch.items), batch), model.loss(model.look_up(other.items), other))


def test_an_event_that_is_not_masked_is_seen_from_both_sides():
    model = model_with(OBJECTIVES[0])
    first = encoded(model, batch_of([[3, 5, 7, 11]], [[1]], True))
    for place in (0, 2, 3):
        changed = [3, 5, 7, 11]
        changed[place] = 20
        assert not torch.equal(encoded(model, batch_of([changed], [[1]], True))[1], first[1])


def test_a_masked_event_differs_from_an_unknown_item():
    model = model_with(OBJECTIVES[0])
    batch = batch_of([[3, 5, 7]], [[1]], True)
    before = encoded(model, batch)
    with torch.no_grad():
        next(model.tables.parameters())[0] += 1.0
    assert torch.equal(encoded(model, batch), before)
    with torch.no_grad():
        model.mask.vector[0] += 1.0
    assert not torch.equal(encoded(model, batch), before)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_mask_vector_is_learned(objective):
    model = model_with(objective)
    batch = batch_of([[3, 5, 7, 11], [2, 6]], [[1], [1]], objective["kind"] == "full_softmax")
    model.loss(model.look_up(batch.items), batch).backward()
    assert model.mask.vector.grad.abs().max() > 1e-5


def test_a_users_vector_is_that_of_the_masked_event_behind_the_history():
    model = model_with(OBJECTIVES[0])
    batch = batch_of([[3, 5, 7, 0], [0], [2, 0]], [[3], [0], [1]], False)
    users = model.user_vectors(model.look_up(batch.items), batch)
    # Products of fewer rows round differently.
    torch.testing.assert_close(users, encoded(model, batch)[[3, 4, 6]], rtol=1e-6, atol=1e-6)


def test_causal_models_have_no_mask_vector():
    config = NextItemConfig()
    model = NextItemModel(config, [TableSpec("item", NUM_ROWS, WIDTH)], torch.device("cpu"))
    assert not config.masks_items
    assert [name for name, _ in model.named_parameters() if "mask" in name] == []
