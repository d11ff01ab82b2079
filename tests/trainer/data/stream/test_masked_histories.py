"""Batches of masked histories: every training event is seen or predicted, never both, and evaluation sees only earlier events."""

import itertools
from dataclasses import replace
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
from tests.support.datasets import tiny_dataset
from tests.support.plain_dataset import plain_rows
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.examples import WINDOW_STEP, examples_of
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import HeldOut
from trainer.data.stream.histories import TrainStream
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW

MAX_HISTORY = 6
MASKED = {"max_history": MAX_HISTORY, "encoder": {"kind": "bert4rec"}}
Masked = dict[int, tuple[list[int], dict[int, int]]]  # by example: inputs, and by place what is asked for


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("masked")
    return folder, tiny_dataset(folder)


def stream_of(
    dataset: tuple[Path, Manifest], rank: int, world_size: int, long_histories: Any, tokens: int | None, **model: Any
) -> TrainStream:
    reader = RowGroupReader(*dataset)
    examples = examples_of(reader, MAX_HISTORY, long_histories, tokens is not None, last_is_input=True)
    batches = GlobalBatches(examples, 7, tokens, 3, rank, world_size)
    num_items = dataset[1].num_item_rows
    return TrainStream(
        reader, batches, NextItemConfig.model_validate({**MASKED, **model}), Catalogue(num_items, num_items)
    )


def entries(batch: HistoryBatch) -> Masked:
    """Return every example of a batch; checks that what is masked is just what is asked for."""
    assert batch.masked is not None
    inputs, masked = batch.lookup_ids[batch.history_index].numpy(), batch.masked.numpy()
    assert (inputs == 0).tolist() == masked.tolist()  # the tiny dataset has no unknown items in training
    targets = np.arange(masked.size) if batch.target_event is None else batch.target_event.numpy()
    assert targets.tolist() == np.flatnonzero(masked).tolist()
    asked = dict(zip(targets.tolist(), batch.target_ids.tolist(), strict=True))
    result = {}
    for row, (start, stop) in zip(
        batch.row_ids.tolist(), itertools.pairwise(batch.layout.offsets.tolist()), strict=True
    ):
        result[row] = inputs[start:stop].tolist(), {k - start: asked[k] for k in range(start, stop) if k in asked}
    return result


def epoch_of(dataset, world_size: int = 1, long_histories: Any = "recent", tokens: int | None = None, **model: Any):
    """Return (examples of an epoch by all ranks together, steps)."""
    whole: Masked = {}
    steps = 0
    for rank in range(world_size):
        for step in stream_of(dataset, rank, world_size, long_histories, tokens, **model).steps(Position(1, 0), 2):
            result = entries(step.batch)
            result.pop(EMPTY_ROW, None)
            assert not result.keys() & whole.keys()
            whole |= result
            steps += rank == 0
    return whole, steps


@pytest.mark.parametrize("long_histories", ["recent", "windows"])
@pytest.mark.parametrize("tokens", [None, 40])
def test_every_training_event_is_seen_or_asked_for(dataset, long_histories, tokens):
    examples, _ = epoch_of(dataset, long_histories=long_histories, tokens=tokens)
    restored: dict[int, list[int]] = {}
    for example, (inputs, asked) in sorted(examples.items(), key=lambda entry: -entry[0]):  # the oldest windows first
        assert len(inputs) <= MAX_HISTORY
        restored.setdefault(example % WINDOW_STEP, []).extend(asked.get(k, item) for k, item in enumerate(inputs))
    rows = [row["item"][: row["train_end"]] for row in plain_rows(*dataset)]
    if long_histories == "recent":
        rows = [items[-MAX_HISTORY:] for items in rows]
    assert restored == dict(enumerate(rows))


@pytest.mark.parametrize("tokens", [None, 40])
def test_the_mask_does_not_depend_on_the_number_of_ranks(dataset, tokens):
    assert epoch_of(dataset, 1, "windows", tokens) == epoch_of(dataset, 3, "windows", tokens)


def test_a_budget_counts_masked_events_too(dataset):
    for step in stream_of(dataset, 0, 1, "windows", 40).steps(Position(0, 0), 1):
        assert step.batch.layout.num_events <= 40


def test_sampled_objectives_have_negatives_of_masked_targets(dataset):
    objective = {"kind": "sampled_softmax", "num_negatives": 50, "negatives": {"kind": "in_batch"}}
    for step in stream_of(dataset, 0, 1, "recent", None, objective=objective).steps(Position(0, 0), 1):
        assert set(step.batch.negative_ids.tolist()) <= set(step.batch.target_ids.tolist())
        assert entries(step.batch)


def told(tells_request: bool) -> Catalogue:
    return Catalogue(99, 99, inputs=Inputs(clock=Clock(1, tells_request=tells_request)))


@pytest.mark.parametrize("tells_request", [True, False])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_in_evaluation_a_masked_event_follows_the_earlier_events(dataset, split, tells_request):
    rows = plain_rows(*dataset)
    seen = 0
    reader = RowGroupReader(*dataset, ColumnSelection(times=True))
    for rank in range(2):
        for held in HeldOut(reader, told(tells_request), split, "all", MAX_HISTORY, 16, rank, 2, True).batches():
            batch = held.batch
            inputs, bounds = batch.lookup_ids[batch.history_index], batch.layout.offsets.tolist()
            for row, start, stop in zip(held.row_ids.tolist(), bounds, bounds[1:], strict=False):
                plain = rows[row]
                low = plain["train_end"] if split == "validation" else plain["validation_end"]
                first = max(0, low - MAX_HISTORY + 1)
                assert inputs[start:stop].tolist() == [*plain["item"][first:low], 0]
                assert batch.masked[start:stop].tolist() == [False] * (low - first) + [True]
                # The request has the time of the target; a model without request time does not see it.
                times = [*plain["time"][first:low], plain["time"][low if tells_request else low - 1]]
                assert batch.times[start:stop].tolist() == [time - times[0] for time in times]
                assert torch.equal(batch.request_times, batch.times)
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("tells_request", [True, False])
def test_the_time_of_a_masked_event_is_known_if_the_model_uses_request_time(dataset, tells_request):
    rows = plain_rows(*dataset)
    reader = RowGroupReader(*dataset, ColumnSelection(times=True))
    stream = replace(stream_of(dataset, 0, 1, "recent", None), reader=reader, catalogue=told(tells_request))
    seen = 0
    for step in stream.steps(Position(0, 0), 1):
        batch, bounds = step.batch, step.batch.layout.offsets.tolist()
        for row, start, stop in zip(batch.row_ids.tolist(), bounds, bounds[1:], strict=False):
            end = rows[row]["train_end"]
            times = rows[row]["time"][max(0, end - MAX_HISTORY) : end]
            if not tells_request:
                for place, masked in enumerate(batch.masked[start:stop].tolist()):
                    if masked and not batch.masked[start : start + place].all():
                        times[place] = times[place - 1]  # which is that of an earlier one, if it was masked itself
                        seen += 1
            assert batch.times[start:stop].tolist() == [time - times[0] for time in times]
    assert seen > 10 or tells_request
