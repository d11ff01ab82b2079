"""A batch in pieces: together they are the batch, none is larger than allowed, and their losses and gradients add up to its own."""

from dataclasses import fields, replace
from itertools import chain

import numpy as np
import pytest
import torch

from models.batches.history_batch import FIRST_ITEM, HistoryBatch, build_batch, with_inputs
from models.batches.micro_batches import ALONG, SHARED, parts_of, with_cuts
from models.features.catalogue import Catalogue, IdColumn
from models.features.inputs import ModelInputs
from models.features.time import Clock
from models.features.values import FeatureValues, InputFeature
from tests.models.next_item.test_model import FULL, NEGATIVES, SAMPLED, make_model

NUM_ROWS = 30
LENGTHS = (5, 0, 3, 9, 1, 0, 2, 2, 12, 0)


FEATURES = (InputFeature("numbers", None, 3), InputFeature("lists", "label", 4), InputFeature("single", "item", 8))
INPUTS = ModelInputs(FEATURES, FEATURES, Clock(1, ("gap", "hour"), has_request_time=True))


def batch_of(num_known: int, objective=FULL, learned: bool = True) -> HistoryBatch:
    """Return histories of LENGTHS, with every kind of feature. Targets from num_known on are not learned."""
    random = np.random.default_rng(2)
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    history, target = random.integers(FIRST_ITEM, NUM_ROWS, size=(2, offsets[-1]))
    catalogue = Catalogue(num_known, NUM_ROWS, inputs=INPUTS)
    batch = build_batch(
        np.arange(len(LENGTHS)) + 100,
        offsets,
        history,
        target if learned else target[:0],
        NEGATIVES if objective is SAMPLED else NEGATIVES[:0],
        catalogue,
        objective is not SAMPLED,
    )

    def columns(count: int) -> dict:
        ends = np.concatenate(([0], np.cumsum(random.integers(0, 4, size=count)))).astype(np.int64)
        return {
            "numbers": random.random((count, 3), dtype=np.float32),
            "lists": IdColumn(random.integers(0, 50, size=ends[-1]), ends),
            "single": random.integers(0, NUM_ROWS, size=count),
        }

    times = np.sort(random.integers(0, 10**6, size=offsets[-1]))
    batch = replace(
        batch,
        masked=torch.arange(int(offsets[-1])) % 3 == 0,
        target_log_q=-torch.rand(batch.target_ids.numel()),
        negative_log_q=-torch.rand(batch.negative_ids.numel()),
    )
    return with_inputs(batch, catalogue, columns(int(offsets[-1])), columns(len(LENGTHS)), times, times + 5)


def listed(given: FeatureValues, count: int) -> list:
    """Return the values of each of `count` owners."""
    if given.dense.numel():
        assert len(given.dense) == count
        return given.dense.tolist()
    pairs = list(zip(given.owner.tolist(), given.index.tolist(), given.weight.tolist(), strict=True))
    assert all(0 <= owner < count for owner, _, _ in pairs)
    return [[rest for at, *rest in pairs if at == owner] for owner in range(count)]


def test_every_field_of_a_batch_is_cut_or_shared():
    """A new field has to say which."""
    assert {field.name for field in fields(HistoryBatch)} == {*ALONG, *SHARED, "items", "layout", "cuts", "share"}


@pytest.mark.parametrize("num_known", [NUM_ROWS, 12])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("most", [1, 5, 12, 20])
def test_the_pieces_are_the_batch(num_known, learned, most):
    batch = batch_of(num_known, learned=learned)
    parts = list(parts_of(with_cuts(batch, most)))
    assert len(parts) > 1
    lengths = [part.layout.offsets.diff().tolist() for part in parts]
    assert list(chain(*lengths)) == list(LENGTHS)
    for part, of_part in zip(parts, lengths, strict=True):
        assert part.cuts == ()
        assert part.layout.num_events == sum(of_part)
        assert sum(of_part) <= most or sum(length > 0 for length in of_part) == 1
        for name in SHARED:
            assert getattr(part, name) is getattr(batch, name)
        assert part.items.rows is batch.items.rows
        assert part.items.values is batch.items.values
    cut = "row_ids", "history_index", "target_ids", "target_index", "times", "request_times", "masked", "target_log_q"
    for name in cut:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    for name, whole in batch.time_rows.items():
        assert torch.equal(torch.cat([part.time_rows[name] for part in parts]), whole)
    for owners, counts in (("events", [sum(n) for n in lengths]), ("users", [len(n) for n in lengths])):
        for name, whole in getattr(batch.items, owners).items():
            pieces = (listed(getattr(p.items, owners)[name], n) for p, n in zip(parts, counts, strict=True))
            assert list(chain(*pieces)) == listed(whole, sum(counts))
    if batch.target_event is not None:
        firsts = np.cumsum([0, *(part.layout.num_events for part in parts)]).tolist()
        places = [part.target_event + first for part, first in zip(parts, firsts, strict=False)]
        assert torch.equal(torch.cat(places), batch.target_event)
    else:
        assert all(part.target_event is None for part in parts)


@pytest.mark.parametrize("most", [None, sum(LENGTHS), 10_000])
def test_a_batch_that_is_small_enough_stays_whole(most):
    batch = batch_of(NUM_ROWS)
    assert with_cuts(batch, most) is batch
    assert list(parts_of(batch)) == [batch]


@pytest.mark.parametrize("objective", [FULL, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("num_known", [NUM_ROWS, 12])
def test_losses_and_gradients_add_up(num_known, objective):
    batch = batch_of(num_known, objective)
    actual = []
    for most in (None, 6):
        model = make_model(objective).double()
        rows = {name: r.detach().double().requires_grad_() for name, r in model.look_up(batch.items).items()}
        total = 0.0
        for part in parts_of(with_cuts(batch, most)):
            loss = model.loss(rows, part)
            loss.backward()
            total += loss.item()
        gradients = [rows["item"].grad, *(p.grad for p in model.encoder.parameters())]
        actual.append((total, gradients))
    assert actual[1][0] == pytest.approx(actual[0][0], rel=1e-12)
    for of_pieces, of_whole in zip(actual[1][1], actual[0][1], strict=True):
        torch.testing.assert_close(of_pieces, of_whole)
