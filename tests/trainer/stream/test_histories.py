"""Times and features in batches: those of the same events and users as the items, and none where nobody asked for them."""

import itertools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.batch import HistoryBatch, JaggedFeature
from models.config import ModelConfig
from models.item_features import Catalogue
from tests.grown_datasets import SPECS, events_dataset
from tests.plain_dataset import plain_rows
from trainer.dataset.manifest import Manifest
from trainer.stream.examples import WINDOW_STEP, examples_of
from trainer.stream.global_batches import GlobalBatches
from trainer.stream.held_out import HeldOut
from trainer.stream.histories import TrainStream
from trainer.stream.order import Position
from trainer.stream.row_groups import RowGroupReader, Wanted
from trainer.stream.shares import EMPTY_ROW

MAX_HISTORY = 5
EVENT = [spec.name for spec in SPECS if spec.owner == "event"]
USER = [spec.name for spec in SPECS if spec.owner == "user"]
WHOLE = Wanted(users=True, times=True, features=True)
PLAIN = Catalogue(1000, 1000)


@pytest.fixture(scope="module", params=[1, 3], ids=["one day", "three days"])
def dataset(request, tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, events_dataset(folder, num_days=request.param)


def stream_of(
    dataset: tuple[Path, Manifest], wanted: Wanted, rank: int = 0, world_size: int = 1, long_histories: Any = "windows"
) -> TrainStream:
    reader = RowGroupReader(*dataset, wanted)
    examples = examples_of(reader, MAX_HISTORY, long_histories, with_lengths=True)
    batches = GlobalBatches(examples, 8, 60, 3, rank, world_size)
    return TrainStream(
        reader,
        batches,
        ModelConfig(max_history=MAX_HISTORY),
        PLAIN,
    )


def listed(feature: Any) -> list[Any]:
    """A feature as one Python value per entry."""
    if isinstance(feature, JaggedFeature):
        assert feature.offsets[0] == 0
        assert feature.offsets[-1] == feature.values.numel()
        return [piece.tolist() for piece in feature.values.split(feature.offsets.diff().tolist())]
    return feature.tolist()


def entries_of(batch: HistoryBatch, names: list[str]) -> list[dict[str, Any]]:
    """Every history of a batch with what it holds."""
    offsets = batch.layout.offsets.tolist()
    columns = {"item": batch.lookup_ids[batch.history_index].tolist(), "time": batch.times.tolist()}
    columns |= {name: listed(batch.features[name]) for name in names}
    once = {name: listed(batch.user_features[name]) for name in USER}
    return [
        {name: values[start:stop] for name, values in columns.items()} | {name: once[name][n] for name in USER}
        for n, (start, stop) in enumerate(itertools.pairwise(offsets))
    ]


def plain_entry(row: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    lists = {"item": row["item"], "time": row["time"]} | {name: row[f"event.{name}"] for name in EVENT}
    return {name: values[start:stop] for name, values in lists.items()} | {name: row[f"user.{name}"] for name in USER}


@pytest.mark.parametrize("world_size", [1, 3])
def test_times_and_features_are_those_of_the_items(dataset, world_size):
    rows = plain_rows(*dataset)
    seen = 0
    for rank in range(world_size):
        for step in stream_of(dataset, WHOLE, rank, world_size).steps(Position(0, 0), 1):
            batch = step.batch
            if batch.row_ids.tolist() == [EMPTY_ROW]:
                continue
            target_times = batch.target_times.split(batch.layout.offsets.diff().tolist())
            for number, entry, after in zip(
                batch.row_ids.tolist(), entries_of(batch, EVENT), target_times, strict=True
            ):
                window, row = divmod(number, WINDOW_STEP)
                stop = max(0, rows[row]["train_end"] - 1 - window * MAX_HISTORY)
                start = max(0, stop - MAX_HISTORY)
                assert entry == plain_entry(rows[row], start, stop)
                assert after.tolist() == rows[row]["time"][start + 1 : stop + 1]
                seen += 1
    assert seen == stream_of(dataset, WHOLE).num_examples


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_batches_have_them_too(dataset, split):
    rows = plain_rows(*dataset)
    seen = 0
    for rank in range(2):
        for held in HeldOut(RowGroupReader(*dataset, WHOLE), PLAIN, split, "all", MAX_HISTORY, 16, rank, 2).batches():
            for n, entry in enumerate(entries_of(held.batch, EVENT)):
                row = rows[held.row_ids[n]]
                low = row["train_end"] if split == "validation" else row["validation_end"]
                high = row["validation_end"] if split == "validation" else len(row["item"])
                assert entry == plain_entry(row, max(0, low - MAX_HISTORY), low)
                inside = slice(held.target_offsets[n], held.target_offsets[n + 1])
                assert held.target_times[inside].tolist() == row["time"][low:high]
                seen += 1
    assert seen > 10


def test_what_is_not_asked_for_is_not_there_and_not_read(dataset):
    stream = stream_of(dataset, Wanted())
    for step in stream.steps(Position(0, 0), 1):
        assert step.batch.times is step.batch.target_times is None
        assert step.batch.features == step.batch.user_features == {}
    packed = stream.reader.read([0])[0]
    assert packed.times is packed.users is packed.impressions is None
    assert packed.features == packed.user_features == {}
    held = next(iter(HeldOut(stream.reader, PLAIN, "test", "all", MAX_HISTORY, 16, 0, 1).batches()))
    assert held.batch.times is held.target_times is None
    assert held.batch.features == {}


def test_an_empty_share_has_every_feature(dataset):
    """A rank without a history takes part, so its encoder needs what the others' have."""
    for step in stream_of(dataset, WHOLE, 39, 40).steps(Position(0, 0), 1):
        if step.batch.row_ids.tolist() == [EMPTY_ROW]:
            assert set(step.batch.features) == set(EVENT)
            assert step.batch.times.numel() == 0
            assert [len(listed(step.batch.user_features[name])) for name in USER] == [1, 1]
            assert step.batch.features["vector"].shape == (0, 3)
            return
    pytest.fail("every share of the last of 40 ranks had a history")


def test_a_batch_moves_with_all_it_holds(dataset):
    step = next(iter(stream_of(dataset, WHOLE).steps(Position(0, 0), 1)))
    moved = step.batch.to(torch.device("meta"))
    held = next(iter(HeldOut(RowGroupReader(*dataset, WHOLE), PLAIN, "test", "all", MAX_HISTORY, 16, 0, 1).batches()))
    for batch in (moved, held.to(torch.device("meta")).batch):
        assert all(tensor.is_meta for tensor in tensors_of(batch))
    assert len(tensors_of(moved)) > 20
    assert step.batch.to(torch.device("cpu")) is step.batch


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor that a batch holds, however deep."""
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
        ModelConfig(max_history=MAX_HISTORY),
        PLAIN,
    )
    ids = np.concatenate([step.batch.row_ids.numpy() for step in stream.steps(Position(0, 0), 1)])
    assert sorted(ids.tolist()) == list(range(dataset[1].num_rows))
