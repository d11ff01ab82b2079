"""Vectors of items from their ids and features, against one item at a time, and what a request asks for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.features.items import Catalogue, IdColumn, ItemComposer
from models.features.values import InputFeature

WIDTH, NUM_KNOWN, NUM_IDS = 4, 6, 8  # ids 6 and 7 have no row of their own
GENRES = [[], [1, 2], [3], [], [1], [2, 3, 1], [2], [3, 3]]
RELATED = [[], [2], [], [1, 5], [4], [], [1], [2, 4]]
TABLES = {"item": 9, "genre": 4}


def id_column(lists: list[list[int]]) -> IdColumn:
    offsets = np.concatenate(([0], np.cumsum([len(entry) for entry in lists])))
    return IdColumn(np.asarray([value for entry in lists for value in entry], np.int32), offsets)


def catalogue(rows: np.ndarray | None) -> Catalogue:
    return Catalogue(
        NUM_KNOWN,
        NUM_IDS,
        rows=rows,
        has_row=np.arange(NUM_IDS) < NUM_KNOWN,
        features=(
            InputFeature("genre", "genre", 3),
            InputFeature("related", "item", WIDTH),
            InputFeature("content", None, 2),
        ),
        columns={
            "genre": id_column(GENRES),
            "related": id_column(RELATED),
            "content": np.arange(2 * NUM_IDS, dtype=np.float32).reshape(NUM_IDS, 2),
        },
    )


def tables() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    widths = {"item": WIDTH, "genre": 3}
    return {name: torch.randn(rows, widths[name], generator=random) for name, rows in TABLES.items()}


def composer() -> ItemComposer:
    module = ItemComposer(WIDTH, catalogue(None).features)
    module.initialize(torch.Generator().manual_seed(2))
    return module


def plainly(item: int, rows: np.ndarray, module: ItemComposer) -> Tensor:
    weights = tables()
    vector = weights["item"][rows[item]] if item < NUM_KNOWN else torch.zeros(WIDTH)
    if GENRES[item]:
        vector = vector + module.projections["genre"](weights["genre"][GENRES[item]].mean(dim=0))
    if RELATED[item]:
        vector = vector + weights["item"][rows[RELATED[item]]].mean(dim=0)
    return vector + module.projections["content"](torch.tensor([2.0 * item, 2.0 * item + 1.0]))


@pytest.mark.parametrize("ids", [[], [0], [3], [1, 2, 5, 6, 7], list(range(NUM_IDS))], ids=str)
@pytest.mark.parametrize("hashed", [False, True])
def test_vectors_equal_those_of_one_item_at_a_time(hashed: bool, ids: list[int]) -> None:
    rows = np.asarray([0, 3, 3, 8, 1, 2, 0, 0]) if hashed else np.where(np.arange(NUM_IDS) < NUM_KNOWN, np.arange(8), 0)
    module = composer()
    request = catalogue(rows).request(np.asarray(ids, np.int64))
    assert request.rows.keys() == TABLES.keys()  # every rank asks every table
    for asked in request.rows.values():
        assert asked.unique().numel() == asked.numel()  # nothing is sent twice
    actual = module({name: tables()[name][asked] for name, asked in request.rows.items()}, request)
    assert actual.shape == (len(ids), WIDTH)
    for vector, item in zip(actual, ids, strict=True):
        torch.testing.assert_close(vector, plainly(item, rows, module))


def test_without_features_a_request_is_the_ids() -> None:
    request = Catalogue(5, 5).request(np.asarray([1, 3]))
    assert {name: rows.tolist() for name, rows in request.rows.items()} == {"item": [1, 3]}
    assert request.own is request.has_row is None
    vectors = torch.randn(2, WIDTH)
    assert ItemComposer(WIDTH, ())({"item": vectors}, request) is vectors
