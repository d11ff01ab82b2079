"""Inputs of programs that the comparisons of whole programs cannot see, or see late."""

import numpy as np
import pyarrow as pa

from models.features.inputs import NO_INPUTS
from trainer.data.stream.packed import PackedHistories
from trainer.export.inputs import DynamicRows, Form, next_item_inputs, with_no_empty_history
from trainer.export.run_program import batches

ITEMS = np.asarray(
    [3, 4, 5, 9, 6, 9], np.int32
)  # histories of three events and of one, each with the event of a request
PACKED = PackedHistories(
    ITEMS, np.asarray([0, 4]), np.asarray([4, 6]), np.zeros(2, np.int64), np.zeros(2, np.int64), pa.array([1, 2])
)


def test_a_masked_event_has_no_item() -> None:
    given = next_item_inputs(Form(NO_INPUTS, 3, masks_items=True), PACKED, np.arange(2), np.asarray([3, 1]))
    assert given["items"].tolist() == [4, 5, 0, 6, 0]  # the oldest event makes room
    assert given["offsets"].tolist() == [0, 3, 5]
    assert given["places"].tolist() == [0, 1, 2]


def test_an_empty_history_gets_an_event_without_an_item() -> None:
    arrays = {"items": np.asarray([7, 8]), "offsets": np.asarray([0, 0, 2, 2]), "event.tag": np.asarray([[1], [2]])}
    filled = with_no_empty_history(arrays, 1)
    assert filled["items"].tolist() == [0, 7, 8, 0]
    assert filled["offsets"].tolist() == [0, 1, 3, 4]
    assert filled["event.tag"].ravel().tolist() == [-1, 1, 2, -1]


def test_dynamic_ids_without_a_row_have_row_0() -> None:
    rows = DynamicRows(np.asarray([-5, 2, 40]), np.asarray([3, 1, 2]))
    assert rows.of(np.asarray([40, 41, -5, 0])).tolist() == [2, 0, 3, 0]
    assert DynamicRows(rows.ids[:0], rows.rows[:0]).of(np.asarray([1])).tolist() == [0]


def test_batches_hold_every_history_once_and_few_padded_pairs() -> None:
    lengths = np.random.default_rng(1).integers(0, 3000, 200)
    parts = list(batches(lengths, np.ones_like(lengths)))
    assert sorted(np.concatenate(parts).tolist()) == np.flatnonzero(lengths).tolist()
    assert all(rows.size == 1 or rows.size * lengths[rows].max() ** 2 <= 1 << 21 for rows in parts)
