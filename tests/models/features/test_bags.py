"""Bags say what looked-up rows say, in values and gradients, whatever happens to a request on its way."""

import numpy as np
import pytest
import torch

from models.batches.history_batch import build_batch, with_inputs, with_negatives
from models.batches.micro_batches import parts_of, with_cuts
from models.features.bags import changed_rows, row_gradients
from models.features.request import ItemRequest
from models.features.values import feature_embedding
from sharding.tables.initialize import initialize_tables
from tests.models.features.tagged import NUM_ITEMS, ROWS, Shape, Tagged, catalogue, lists, request_of
from tests.support.device_work import as_on_a_gpu, recorded_waits

SHAPES = [Shape(9, 4, 6, 3), Shape(1, 0, 2, 4), Shape(0, 0, 0, 5), Shape(3, 1, 0, 6)]


def model_of(bagged: bool, pooling: str = "mean") -> Tagged:
    model = Tagged(catalogue(bagged, pooling), torch.device("cpu"))  # type: ignore[arg-type]
    initialize_tables(model, 3, dict.fromkeys(ROWS, 0.5))
    return model


def gradients_of(model: Tagged) -> dict[str, torch.Tensor]:
    return {name.split(".")[-2]: p.grad for name, p in model.tables.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bags_equal_rows_in_values_and_gradients(shape: Shape, pooling: str) -> None:
    bags, rows = model_of(True, pooling), model_of(False, pooling)
    asked = {model: request_of(model.known, shape) for model in (bags, rows)}
    assert list(asked[bags].rows) == ["item"]
    assert len(asked[bags].bags) == 7
    assert not asked[rows].bags
    said = {model: model.said(request) for model, request in asked.items()}
    for name, expected in said[rows].items():
        # Rows know nothing of owners behind the last one that has values.
        torch.testing.assert_close(said[bags][name][: expected.shape[0]], expected, rtol=1e-6, atol=1e-6)
        assert not said[bags][name][expected.shape[0] :].any()
    losses = [model(request) for model, request in asked.items()]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    actual, expected = gradients_of(bags), gradients_of(rows)
    assert actual.keys() == expected.keys() == ROWS.keys()
    for table, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[table], rtol=1e-5, atol=1e-6)
    assert shape.events == 0 or actual["label"].any()


def test_tables_with_bags_of_other_owners_have_separate_requests() -> None:
    names = set(model_of(True).tables.collections)
    assert names == {
        "sharded_8",
        "bags_mean_1_candidates_1_events_1_users_2_values",
        "bags_mean_1_values",
        "bags_mean_1_users",
    }


def test_items_that_are_looked_up_alone_have_no_bags_of_events() -> None:
    model = model_of(True)
    request = model.known.request(np.arange(5))
    actual = model.tables(request.rows, request.bags)
    assert {name for name in actual if "." in name} == {"values.tags", "values.genres", "values.shops"}
    assert actual["values.tags"].shape == (5, 16)
    nothing = model.tables(ItemRequest({"item": torch.zeros(0, dtype=torch.int64)}).rows)
    assert list(nothing) == ["item"]


def history_batch(bagged: bool):
    known, random = catalogue(bagged), np.random.default_rng(2)
    offsets = np.array([0, 4, 4, 7, 9])
    items, targets = random.integers(1, NUM_ITEMS, (2, 9))
    batch = build_batch(np.arange(4), offsets, items, targets, np.array([], np.int64), known, whole_catalogue=False)
    told = {"words": lists(9, ROWS["label"], 1)}, {"likes": lists(4, ROWS["label"], 2), "city": np.array([0, 1, 2, 3])}
    batch = with_inputs(batch, known, *told, None, None)
    return with_negatives(batch, np.array([11, 12, 13, 13]), known)


def test_negatives_and_pieces_of_a_batch_keep_their_bags() -> None:
    said = {}
    for bagged in (True, False):
        model, batch = model_of(bagged), with_cuts(history_batch(bagged), 4)
        rows = model.tables(batch.items.rows, batch.items.bags)
        parts = list(parts_of(batch))
        assert len(parts) == 3
        (tags, *_), inputs = model.known.features, model.known.inputs
        of_items = feature_embedding(tags, rows, batch.items.values["tags"], batch.lookup_ids.numel())
        said[bagged] = [of_items]
        for part in parts:
            (words,), (likes, city) = inputs.events, inputs.users
            said[bagged] += [
                feature_embedding(words, rows, part.items.events["words"], part.layout.num_events),
                *(feature_embedding(f, rows, part.items.users[f.name], part.row_ids.numel()) for f in (likes, city)),
            ]
    for value, expected in zip(said[True], said[False], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        assert value.shape[0] > 0


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_gradients_of_bags_become_those_of_their_rows(pooling: str) -> None:
    model = model_of(True, pooling)
    request = request_of(model.known, SHAPES[0])
    actual = model.tables(request.rows, request.bags)
    for vectors in actual.values():
        vectors.retain_grad()
    torch.stack([(vectors.sin() ** 2).sum() for vectors in actual.values()]).sum().backward()
    rows, gradients = row_gradients(request.rows, request.bags, {n: v.grad for n, v in actual.items()})  # type: ignore[misc]
    assert rows.keys() == ROWS.keys()
    for table, whole in gradients_of(model).items():
        spread = torch.zeros_like(whole).index_add_(0, rows[table], gradients[table])
        torch.testing.assert_close(spread, whole, rtol=1e-5, atol=1e-6)
        assert table == "item" or rows[table].unique().numel() == rows[table].numel()


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_on_a_gpu_no_row_has_to_be_unique_and_the_host_knows_their_order(pooling: str) -> None:
    model = model_of(True, pooling)
    request = request_of(model.known, SHAPES[0])
    vectors = model.tables(request.rows, request.bags)
    gradients = {name: torch.randn_like(value) for name, value in vectors.items()}
    rows, summed = row_gradients(request.rows, request.bags, gradients)
    with as_on_a_gpu(), recorded_waits() as waits:
        on_device, single = row_gradients(request.rows, request.bags, gradients)
    assert waits == []
    known = changed_rows(request.rows, request.bags)
    assert list(known) == list(on_device) == list(rows)
    for table, numbers in on_device.items():
        assert known[table].equal(numbers)
        spread, expected = (
            torch.zeros((ROWS[table], summed[table].shape[1])).index_add_(0, places, of_rows[table])
            for places, of_rows in ((numbers, single), (rows[table], summed))
        )
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-6)
    assert any(numbers.unique().numel() < numbers.numel() for numbers in on_device.values())
