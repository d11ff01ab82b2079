"""What the encoder is given for an event, against one event at a time; and that nothing of a later event is in it."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.batches.history_batch import HistoryBatch, build_batch, with_inputs
from models.batches.micro_batches import parts_of, with_cuts
from models.config import NextItemConfig
from models.encoders.config import EncoderConfig
from models.features.inputs import Inputs
from models.features.items import Catalogue, IdColumn
from models.features.time import Clock, time_rows
from models.features.values import InputFeature
from models.next_item.model import NextItemModel
from models.objectives.config import FullSoftmaxConfig, SampledSoftmaxConfig
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_KNOWN, NUM_IDS, WIDTH, MAX_HISTORY = 20, 23, 8, 12
TABLES = {"item": (NUM_KNOWN, WIDTH), "label": (15, 4), "place": (9, WIDTH)}
ITEM_FEATURES = (InputFeature("brand", "label", 4),)
INPUTS = Inputs(
    (
        InputFeature("tags", "label", 4),
        InputFeature("place", "place", WIDTH),
        InputFeature("type", None, 1),
        InputFeature("vector", None, 3),
        InputFeature("from_item", "item", WIDTH),
    ),
    (InputFeature("age", None, 1), InputFeature("likes", "label", 4), InputFeature("type", "place", WIDTH)),
    Clock(1_000, ("gap", "hour", "weekday"), tells_request=True),
)
OBJECTIVES = [FullSoftmaxConfig(), SampledSoftmaxConfig(num_negatives=5)]
START = 1_700_000_000_000


@dataclass(frozen=True)
class Event:
    item: int
    time: int
    features: dict[str, Any]


@dataclass(frozen=True)
class User:
    events: list[Event]
    features: dict[str, Any]


def random_event(random: np.random.Generator, time: int) -> Event:
    return Event(
        int(random.integers(1, NUM_IDS)),
        time,
        {
            "tags": random.integers(0, 15, size=random.integers(0, 4)).tolist(),
            "place": int(random.integers(0, 9)),  # 0 is none
            "type": float(np.float32(random.normal())),
            "vector": random.normal(size=3).astype(np.float32).tolist(),
            "from_item": int(random.integers(0, NUM_IDS)),
        },
    )


def random_users(seed: int) -> list[User]:
    random = np.random.default_rng(seed)
    result = []
    for length in (5, 0, 1, 9, 2):
        times = START + np.cumsum(random.integers(0, 40_000_000, size=length))
        features = {
            "age": float(np.float32(random.normal())),
            "likes": random.integers(0, 15, size=random.integers(0, 3)).tolist(),
            "type": int(random.integers(0, 9)),
        }
        result.append(User([random_event(random, int(time)) for time in times], features))
    return result


def lists_of(values: list[list[int]]) -> IdColumn:
    offsets = np.concatenate(([0], np.cumsum([len(entry) for entry in values]))).astype(np.int64)
    return IdColumn(np.asarray([value for entry in values for value in entry], np.int64), offsets)


def column_of(feature: InputFeature, values: list[Any]) -> Any:
    if values and isinstance(values[0], list) and feature.table is not None:
        return lists_of(values)
    kind = np.float32 if feature.table is None else np.int32
    return np.asarray(values, kind).reshape(-1, 3) if feature.name == "vector" else np.asarray(values, kind)


BRANDS = [[item % 15] if item % 4 else [] for item in range(NUM_IDS)]


def catalogue() -> Catalogue:
    known = np.arange(NUM_IDS) < NUM_KNOWN
    return Catalogue(
        NUM_KNOWN,
        NUM_IDS,
        rows=np.where(known, np.arange(NUM_IDS), 0),
        has_row=known,
        features=ITEM_FEATURES,
        columns={"brand": lists_of(BRANDS)},
        inputs=INPUTS,
    )


CATALOGUE = catalogue()


def batch_of(users: list[User], objective: Any, told: Catalogue = CATALOGUE) -> HistoryBatch:
    """Return a batch: inputs are all events but the last, targets all but the first."""
    inputs = [event for user in users for event in user.events[:-1]]
    after = [event for user in users for event in user.events[1:]]
    offsets = np.concatenate(([0], np.cumsum([max(0, len(user.events) - 1) for user in users]))).astype(np.int64)
    sampled = isinstance(objective, SampledSoftmaxConfig)
    batch = build_batch(
        np.arange(len(users)),
        offsets,
        np.asarray([event.item for event in inputs], np.int64),
        np.asarray([event.item for event in after], np.int64),
        np.asarray([3, 5, 8, 8, 1]) if sampled else np.zeros(0, np.int64),
        told,
        not sampled,
    )
    return with_inputs(
        batch,
        told,
        {f.name: column_of(f, [event.features[f.name] for event in inputs]) for f in INPUTS.events},
        {f.name: column_of(f, [user.features[f.name] for user in users]) for f in INPUTS.users},
        np.asarray([event.time for event in inputs], np.int64),
        np.asarray([event.time for event in after], np.int64),
    )


def make_model(objective: Any, bias: str = "none") -> NextItemModel:
    config = NextItemConfig(
        max_history=MAX_HISTORY,
        encoder=EncoderConfig.model_validate({"dropout": 0.0, "attention": {"num_heads": 2, "bias": bias}}),
        objective=objective,
    )
    specs = [TableSpec(name, rows, dim) for name, (rows, dim) in TABLES.items()]
    model = NextItemModel(config, specs, torch.device("cpu"), ITEM_FEATURES, INPUTS)
    model.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():  # small initial weights would hide attention behind the residual path
        for parameter in model.encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    initialize_tables(model, 1, dict.fromkeys(TABLES, 1.0))
    return model


def inputs_of(model: NextItemModel, batch: HistoryBatch) -> Tensor:
    """Return the inputs of the encoder."""
    rows = model.look_up(batch.items)
    items, asked = model.items(rows, batch.items)[batch.history_index], batch.items
    return model.inputs(items, rows, asked.events, asked.users, batch.layout.offsets, batch.time_rows)


def encoded(model: NextItemModel, batch: HistoryBatch) -> Tensor:
    result: Tensor = model.encoder(
        inputs_of(model, batch), AttentionContext(batch.layout, batch.times, batch.request_times)
    )[0]
    return result


def weight_of(model: NextItemModel, table: str) -> Tensor:
    return next(p for name, p in model.tables.named_parameters() if name.endswith(f"{table}.weight"))


def plainly(model: NextItemModel, feature: InputFeature, value: Any, projections: Any) -> Tensor:
    key = f"{feature.name}~" if feature.name == "type" else feature.name
    project = projections[key] if key in projections else torch.nn.Identity()
    if feature.table is None:
        return project(torch.tensor(value).reshape(-1))
    table = weight_of(model, feature.table)
    if feature.name == "from_item":  # an item that the training part does not know says what row 0 says
        return table[value if value < NUM_KNOWN else 0] if value else torch.zeros(WIDTH)
    values = value if isinstance(value, list) else [value] * (value != 0)
    return project(table[values].mean(dim=0)) if values else torch.zeros(WIDTH)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda value: value.kind)
@pytest.mark.parametrize("seed", range(3))
def test_an_input_is_the_sum_of_the_embeddings_of_its_event(objective: Any, seed: int) -> None:
    model, users = make_model(objective), random_users(seed)
    batch = batch_of(users, objective)
    assert batch.items.rows.keys() == TABLES.keys()
    for rows in batch.items.rows.values():
        assert rows.unique().numel() == rows.numel()
    actual = list(inputs_of(model, batch))
    for user in users:
        times, brand = [event.time for event in user.events], ITEM_FEATURES[0]
        rows = time_rows(Clock(1_000, ("gap", "hour", "weekday")), np.asarray(times), np.asarray([0, len(times)]))
        for n, event in enumerate(user.events[:-1]):
            expected = weight_of(model, "item")[event.item] if event.item < NUM_KNOWN else torch.zeros(WIDTH)
            expected = expected + plainly(model, brand, BRANDS[event.item], model.items.projections)
            for feature in INPUTS.events:
                expected = expected + plainly(model, feature, event.features[feature.name], model.inputs.events)
            for feature in INPUTS.users:
                expected = expected + plainly(model, feature, user.features[feature.name], model.inputs.users)
            for part in ("gap", "hour", "weekday"):
                expected = expected + model.inputs.time.vectors[part].weight[int(rows[part][n])]
            torch.testing.assert_close(actual.pop(0), expected)
    assert not actual


def test_times_reach_the_encoder_from_the_first_event_on() -> None:
    users = random_users(4)
    batch = batch_of(users, OBJECTIVES[1])
    bounds = list(pairwise(batch.layout.offsets.tolist()))
    for user, (start, stop) in zip(users, bounds, strict=True):
        seconds = [event.time // 1_000 - user.events[0].time // 1_000 for event in user.events]
        assert batch.times[start:stop].tolist() == seconds[:-1]
        assert batch.request_times[start:stop].tolist() == seconds[1:]
    untold = replace(CATALOGUE, inputs=replace(INPUTS, clock=Clock(1_000)))
    batch = batch_of(users, OBJECTIVES[1], untold)
    assert torch.equal(batch.times, batch.request_times)
    assert batch.time_rows == {}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda value: value.kind)
@pytest.mark.parametrize("bias", ["none", "time"])
@pytest.mark.parametrize("number", [0, 3])
def test_nothing_of_a_later_event_is_seen(objective: Any, bias: str, number: int) -> None:
    """Other features and times from event t on: what was encoded before it stays, bit by bit, and so does what is learned there.

    With a bias by time the output at event t - 1 follows from the moment at which event t is asked for, and from no more of it.
    """
    model, users, random = make_model(objective, bias), random_users(2), np.random.default_rng(7)
    batch = batch_of(users, objective)
    before, start = encoded(model, batch), batch.layout.offsets[number].item()
    length = len(users[number].events)
    for t in range(1, length):
        changed = [
            replace(random_event(random, event.time + 5_000_000), item=event.item) for event in users[number].events[t:]
        ]
        others = list(users)
        others[number] = replace(users[number], events=users[number].events[:t] + changed)
        other = batch_of(others, objective)
        after = encoded(model, other)
        same = torch.ones(before.shape[0], dtype=torch.bool)
        same[start + t : start + length - 1] = False
        assert torch.equal(other.times[same], batch.times[same])
        if bias == "none":
            assert torch.equal(after[same], before[same])
        # The moment at which event t is asked for is known at event t - 1, and at none before.
        same[start + t - 1] = False
        assert torch.equal(after[same], before[same])
        assert torch.equal(other.request_times[same], batch.request_times[same])
        assert other.request_times[start + t - 1] == batch.request_times[start + t - 1] + 5_000
        if t < length - 1:
            assert not torch.equal(after[start + t], before[start + t])
        # The loss is a sum: of all inputs before those that changed.
        stop = t + (bias == "none")
        shorter = [replace(user, events=user.events[:stop]) if n == number else user for n, user in enumerate(users)]
        short = [replace(user, events=user.events[:stop]) if n == number else user for n, user in enumerate(others)]
        losses = [
            model.loss(model.look_up(one.items), one)
            for one in (batch_of(shorter, objective), batch_of(short, objective))
        ]
        assert torch.equal(losses[0], losses[1])


def test_every_input_changes_the_outputs_from_its_event_on() -> None:
    """So that the test before can fail: each feature of the first event, and of the user, reaches every output."""
    objective = OBJECTIVES[1]
    model, users = make_model(objective), random_users(2)
    before = encoded(model, batch_of(users, objective))
    stop = len(users[0].events) - 1
    for name, value in {"tags": [3, 3, 5], "place": 7, "type": 9.0, "vector": [9.0, 0.0, 1.0], "from_item": 13}.items():
        events = list(users[0].events)
        events[0] = replace(events[0], features={**events[0].features, name: value})
        after = encoded(model, batch_of([replace(users[0], events=events), *users[1:]], objective))
        assert all(not torch.equal(after[n], before[n]) for n in range(stop)), name
        assert torch.equal(after[stop:], before[stop:])
    for name, value in {"age": 7.0, "likes": [1, 2, 3, 4], "type": 8}.items():
        user = replace(users[0], features={**users[0].features, name: value})
        after = encoded(model, batch_of([user, *users[1:]], objective))
        assert all(not torch.equal(after[n], before[n]) for n in range(stop)), name
        assert torch.equal(after[stop:], before[stop:])


def test_gradients_reach_every_weight() -> None:
    for objective in OBJECTIVES:
        model, users = make_model(objective), random_users(3)
        batch = batch_of(users, objective)
        model.loss(model.look_up(batch.items), batch).backward()
        for name, parameter in model.inputs.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0.0, name
        for table in TABLES:
            assert weight_of(model, table).grad.abs().max() > 0.0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda value: value.kind)
def test_in_pieces_losses_and_gradients_add_up(objective: Any) -> None:
    actual = []
    for most in (None, 5):
        model = make_model(objective, bias="time").double()
        batch = with_cuts(batch_of(random_users(3), objective), most)
        parts = list(parts_of(batch))
        assert len(parts) == (1 if most is None else 3)
        rows = {name: r.detach().double().requires_grad_() for name, r in model.look_up(batch.items).items()}
        losses = [model.loss(rows, part) for part in parts]
        torch.stack(losses).sum().backward()
        dense = [*model.encoder.parameters(), *model.items.parameters(), *model.inputs.parameters()]
        actual.append((sum(loss.item() for loss in losses), [leaf.grad for leaf in (*rows.values(), *dense)]))
    assert actual[1][0] == pytest.approx(actual[0][0], rel=1e-12)
    for of_pieces, of_whole in zip(actual[1][1], actual[0][1], strict=True):
        torch.testing.assert_close(of_pieces, of_whole)


def test_the_whole_catalogue_is_looked_up_once_for_all_requests() -> None:
    """Its request is made once for all steps; what events add comes behind it."""
    users = random_users(5)
    batch, known = batch_of(users, OBJECTIVES[0]), CATALOGUE.known
    if batch.lookup_ids.numel() == NUM_KNOWN:
        assert batch.items.values is known.values
    for table, rows in known.rows.items():
        assert torch.equal(batch.items.rows[table][: rows.numel()], rows)
    assert known.events == known.users == {}
    assert known.rows["place"].numel() == 0  # asked for nothing, but asked


def test_the_moment_of_the_request_is_seen_where_there_is_a_bias_by_time() -> None:
    """The output at the last input follows from the time of the event after it, of which nothing else is an input."""
    objective, users = OBJECTIVES[1], random_users(2)
    last = replace(users[0].events[-1], time=users[0].events[-1].time + 40_000_000)
    later = [replace(users[0], events=[*users[0].events[:-1], last]), *users[1:]]
    n = len(users[0].events) - 2
    for bias, sees in (("none", False), ("time", True)):
        model = make_model(objective, bias)
        before, after = (encoded(model, batch_of(one, objective)) for one in (users, later))
        assert torch.equal(before[n], after[n]) is not sees
        assert torch.equal(before[:n], after[:n])
        assert torch.equal(before[n + 1 :], after[n + 1 :])
