"""Times and features in batches: those of the same events and users as the items, and none where nobody asked for them."""

import itertools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from models.features.inputs import Inputs
from models.features.items import Catalogue
from models.features.time import Clock
from models.features.values import FeatureValues, InputFeature
from tests.support.grown_datasets import SPECS, events_dataset
from tests.support.plain_dataset import plain_rows
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.columns import Column, Lists
from trainer.data.stream.examples import WINDOW_STEP, examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import HeldOut
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW

MAX_HISTORY = 5
EVENT = [spec.name for spec in SPECS if spec.owner == "event"]
USER = [spec.name for spec in SPECS if spec.owner == "user"]
WHOLE = ColumnSelection(users=True, times=True, features=True)
INPUTS = Inputs(
    (
        InputFeature("place", "place", 8),
        InputFeature("tags", "tags", 8),
        InputFeature("price", None, 1),
        InputFeature("vector", None, 3),
    ),
    (InputFeature("age", None, 1), InputFeature("languages", "tags", 8)),
    Clock(1, ("gap", "hour", "weekday"), tells_request=True),
)
PLAIN, TOLD = Catalogue(1000, 1000), Catalogue(1000, 1000, inputs=INPUTS)


@pytest.fixture(scope="module", params=[1, 3], ids=["one day", "three days"])
def dataset(request, tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, events_dataset(folder, num_days=request.param)


def stream_of(
    dataset: tuple[Path, Manifest],
    wanted: ColumnSelection,
    rank: int = 0,
    world_size: int = 1,
    catalogue: Catalogue | None = None,
) -> TrainStream:
    reader = RowGroupReader(*dataset, wanted)
    examples = examples_of(reader, MAX_HISTORY, "windows", with_lengths=True)
    batches = GlobalBatches(examples, 8, 60, 3, rank, world_size)
    return TrainStream(
        reader,
        batches,
        NextItemConfig(max_history=MAX_HISTORY),
        catalogue or TOLD,
    )


def listed(column: Column) -> list[Any]:
    """Return a column as one Python value per entry."""
    if isinstance(column, Lists):
        assert column.offsets[0] == 0
        assert column.offsets[-1] == column.values.size
        return [piece.tolist() for piece in np.split(column.values, column.offsets[1:-1])]
    return column.tolist()


def told(batch: HistoryBatch, feature: InputFeature, values: FeatureValues, count: int) -> list[Any]:
    """Return a batch's feature of each of `count` events or users, as one Python value each."""
    if feature.table is None:
        assert values.dense.shape == (count, feature.width)
        return values.dense.tolist() if feature.width > 1 else values.dense[:, 0].tolist()
    assert values.owner.tolist() == sorted(values.owner.tolist())
    lengths = torch.bincount(values.owner, minlength=count)
    torch.testing.assert_close(values.weight, 1.0 / lengths[values.owner])
    ids = batch.items.rows[feature.table][values.index]
    entries = [piece.tolist() for piece in ids.split(lengths.tolist())]
    if feature.name != "place":
        return entries
    assert set(lengths.tolist()) <= {0, 1}
    return [entry[0] if entry else 0 for entry in entries]


def entries_of(batch: HistoryBatch) -> list[dict[str, Any]]:
    """Return every history of a batch with what it holds; times count from its first event."""
    for rows in batch.items.rows.values():
        assert rows.unique().numel() == rows.numel()  # each is asked for once
    offsets, num_events = batch.layout.offsets.tolist(), batch.layout.num_events
    columns = {"item": batch.lookup_ids[batch.history_index].tolist(), "time": batch.times.tolist()}
    columns |= {"asked": batch.request_times.tolist()}
    columns |= {f.name: told(batch, f, batch.items.events[f.name], num_events) for f in INPUTS.events}
    once = {f.name: told(batch, f, batch.items.users[f.name], len(offsets) - 1) for f in INPUTS.users}
    return [
        {name: values[start:stop] for name, values in columns.items()} | {name: once[name][n] for name in once}
        for n, (start, stop) in enumerate(itertools.pairwise(offsets))
    ]


def plain_entry(row: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    lists = {"item": row["item"]} | {f.name: row[f"event.{f.name}"] for f in INPUTS.events}
    times = [time - row["time"][start] for time in row["time"][start : stop + 1]] if stop > start else []
    users = {f.name: row[f"user.{f.name}"] for f in INPUTS.users}
    return (
        {name: values[start:stop] for name, values in lists.items()} | users | {"time": times[:-1], "asked": times[1:]}
    )


def window_of(number: int, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], int, int]:
    window, row = divmod(number, WINDOW_STEP)
    stop = max(0, rows[row]["train_end"] - 1 - window * MAX_HISTORY)
    return rows[row], max(0, stop - MAX_HISTORY), stop


def test_times_and_features_are_gathered_with_the_items(dataset):
    """All columns, those too that no model can use."""
    rows, seen = plain_rows(*dataset), 0
    for step in stream_of(dataset, WHOLE).packed(Position(0, 0), 1):
        share = step.share
        lists = {"item": share.items, "time": share.times, **{f"event.{name}": share.features[name] for name in EVENT}}
        actual = {name: listed(column) for name, column in lists.items()}
        users = {name: listed(share.user_features[name]) for name in USER}
        for n, number in enumerate(share.row_ids.tolist()):
            row, start, stop = window_of(number, rows)
            inside = slice(share.offsets[n], share.offsets[n + 1])
            assert {name: values[inside] for name, values in actual.items()} == {
                name: row[name][start:stop] for name in actual
            }
            assert share.target_times[inside].tolist() == row["time"][start + 1 : stop + 1]
            assert {name: users[name][n] for name in USER} == {name: row[f"user.{name}"] for name in USER}
            seen += 1
    assert seen == stream_of(dataset, WHOLE).batches.examples.num_examples


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_batch_holds_the_features_of_its_events_and_users(dataset, world_size):
    rows, seen = plain_rows(*dataset), 0
    for rank in range(world_size):
        for step in stream_of(dataset, WHOLE, rank, world_size).steps(Position(0, 0), 1):
            if step.batch.row_ids.tolist() == [EMPTY_ROW]:
                continue
            for number, entry in zip(step.batch.row_ids.tolist(), entries_of(step.batch), strict=True):
                assert entry == plain_entry(*window_of(number, rows))
                seen += 1
    assert seen == stream_of(dataset, WHOLE).batches.examples.num_examples


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_batches_have_them_too(dataset, split):
    rows = plain_rows(*dataset)
    seen = 0
    for rank in range(2):
        for held in HeldOut(RowGroupReader(*dataset, WHOLE), TOLD, split, "all", MAX_HISTORY, 16, rank, 2).batches():
            for n, entry in enumerate(entries_of(held.batch)):
                row = rows[held.row_ids[n]]
                low = row["train_end"] if split == "validation" else row["validation_end"]
                high = row["validation_end"] if split == "validation" else len(row["item"])
                assert entry == plain_entry(row, max(0, low - MAX_HISTORY), low)
                inside = slice(held.target_offsets[n], held.target_offsets[n + 1])
                assert held.target_times[inside].tolist() == row["time"][low:high]
                seen += 1
    assert seen > 10


def test_columns_that_are_not_selected_are_not_read(dataset):
    stream = stream_of(dataset, ColumnSelection(), catalogue=PLAIN)
    for step in stream.steps(Position(0, 0), 1):
        assert step.batch.times is step.batch.request_times is None
        assert step.batch.items.events == step.batch.items.users == step.batch.time_rows == {}
    packed = stream.reader.read([0])[0]
    assert packed.times is packed.users is packed.impressions is None
    assert packed.features == packed.user_features == {}
    held = next(iter(HeldOut(stream.reader, PLAIN, "test", "all", MAX_HISTORY, 16, 0, 1).batches()))
    assert held.batch.times is held.target_times is None
    assert held.batch.items.events == {}


def test_only_the_columns_that_are_asked_for_are_read(dataset):
    packed = RowGroupReader(*dataset, ColumnSelection(features=frozenset({"event.tags", "user.age"}))).read([0])[0]
    assert packed.features.keys() == {"tags"}
    assert packed.user_features.keys() == {"age"}


def test_an_empty_share_has_every_feature(dataset):
    """A rank without a history takes part, so its encoder needs what the others' have."""
    for step in stream_of(dataset, WHOLE, 39, 40).steps(Position(0, 0), 1):
        if step.batch.row_ids.tolist() == [EMPTY_ROW]:
            items = step.batch.items
            assert items.events.keys() == {f.name for f in INPUTS.events}
            assert step.batch.times.numel() == step.batch.time_rows["hour"].numel() == 0
            assert items.users["age"].dense.tolist() == [[0.0]]
            assert items.users["languages"].index.numel() == 0
            assert items.events["vector"].dense.shape == (0, 3)
            assert items.rows.keys() == {"item", "place", "tags"}
            return
    pytest.fail("every share of the last of 40 ranks had a history")


def test_a_batch_moves_with_all_it_holds(dataset):
    step = next(iter(stream_of(dataset, WHOLE).steps(Position(0, 0), 1)))
    moved = step.batch.to(torch.device("meta"))
    held = next(iter(HeldOut(RowGroupReader(*dataset, WHOLE), TOLD, "test", "all", MAX_HISTORY, 16, 0, 1).batches()))
    for batch in (moved, held.to(torch.device("meta")).batch):
        assert all(tensor.is_meta for tensor in tensors_of(batch))
    assert len(tensors_of(moved)) > 20
    assert step.batch.to(torch.device("cpu")) is step.batch


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return every tensor that a batch holds, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for entry in value.values() for t in tensors_of(entry)]
    if isinstance(value, tuple):
        return [t for entry in value for t in tensors_of(entry)]
    if not is_dataclass(value):
        return []
    return [t for entry in fields(value) for t in tensors_of(getattr(value, entry.name))]


def test_recent_histories_are_bit_for_bit_those_of_rows(dataset):
    """Windows and budgets cost nothing where nobody asks for them: no cuts are read, and an id is a row's number."""
    reader = RowGroupReader(*dataset)
    examples = examples_of(reader, MAX_HISTORY, "recent", with_lengths=False)
    assert examples.train_end is None
    assert examples.group_sizes == reader.group_rows
    stream = TrainStream(
        reader,
        GlobalBatches(examples, 8, None, 3, 0, 1),
        NextItemConfig(max_history=MAX_HISTORY),
        PLAIN,
    )
    ids = np.concatenate([step.batch.row_ids.numpy() for step in stream.steps(Position(0, 0), 1)])
    assert sorted(ids.tolist()) == list(range(dataset[1].num_rows))
