"""Later targets against plain loops over events, with every objective, unlearned targets, truncation and micro-batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.micro_batches import parts_of, with_cuts
from models.config import NextItemConfig
from models.costs import Workload, costs_of, num_dense_parameters
from models.features.catalogue import Catalogue
from models.histories import Histories
from models.next_item.model import NextItemModel
from tests.models.test_costs import products_in
from tests.support.random_models import looked_up, random_model

WIDTH, NUM_ITEMS, LENGTHS = 8, 12, [5, 0, 1, 7, 2]
WEIGHT, NUMBER = 0.4, 3
NEGATIVES = np.asarray([3, 9, 9, 11])
OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "full_softmax"},
    {"kind": "full_softmax", "normalize": True, "temperature": 0.5},
    {"kind": "sampled_softmax", "num_negatives": NEGATIVES.size},
]
TRUNCATED = {"truncate_after": 1, "truncate_to": 4}


def model_of(objective: dict[str, Any] | None = None, **given: Any) -> NextItemModel:
    values = {"max_history": 10, "later_targets": NUMBER, "later_weight": WEIGHT, **given}
    values["encoder"] = {"dropout": 0.0, **given.get("encoder", {})}
    config = NextItemConfig.model_validate({**values, "objective": objective or OBJECTIVES[0]})
    return random_model(config, NUM_ITEMS + 1, WIDTH)


def batch_of(objective: dict[str, Any], learned: np.ndarray | None = None) -> HistoryBatch:
    """Return a batch in which the `learned` events have targets."""
    items, targets = np.random.default_rng(3).integers(1, NUM_ITEMS + 1, (2, sum(LENGTHS)))
    if learned is not None:
        targets = np.where(learned, targets, 0)
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    samples = "num_negatives" in objective
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    rows, negatives = np.arange(len(LENGTHS)), NEGATIVES if samples else NEGATIVES[:0]
    return build_batch(rows, offsets, items, targets, negatives, catalogue, not samples)


def loss_reference(model: NextItemModel, batch: HistoryBatch, objective: dict[str, Any], newest: int) -> Tensor:
    """Return the loss, one target of one event after another."""
    rows = looked_up(model, batch)["item"]
    users, _ = model._encode({"item": rows}, rows, batch)
    kept = [
        event
        for start, end in zip(batch.layout.offsets[:-1].tolist(), batch.layout.offsets[1:].tolist(), strict=True)
        for event in range(max(start, end - newest), end)
    ]
    events = batch.target_event.tolist() if batch.target_event is not None else list(range(sum(LENGTHS)))
    target_of = dict(zip(events, batch.target_index.tolist(), strict=True))
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    assert model.later is not None
    total = torch.zeros((), dtype=torch.float64)
    for event, user in zip(kept, users, strict=True):
        for further in range(NUMBER + 1):
            follows = event + further
            if follows >= sum(LENGTHS) or owner[follows] != owner[event] or follows not in target_of:
                continue
            vector = user if not further else user + F.silu(model.later.heads[further - 1].weight @ user)
            candidates = rows[1:] if "num_negatives" not in objective else rows[batch.negative_index]
            target = rows[target_of[follows]]
            if objective.get("normalize"):
                vector, candidates, target = (F.normalize(part, dim=-1) for part in (vector, candidates, target))
            scores = candidates @ vector / objective.get("temperature", 1.0)
            positive = target @ vector / objective.get("temperature", 1.0)
            if "num_negatives" in objective:
                # A negative that is the target does not count.
                different = batch.negative_index != target_of[follows]
                scores = torch.cat((positive[None], scores[different]))
            total = total + WEIGHT**further * (scores.logsumexp(0) - positive)
    return total


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("learned", ["all", "some"])
@pytest.mark.parametrize("encoder", [{}, TRUNCATED], ids=["whole", "truncated"])
def test_the_loss_is_that_of_every_target_of_every_event(
    objective: dict[str, Any], learned: str, encoder: dict[str, Any]
) -> None:
    """In values, and in gradients of every weight."""
    model = model_of(objective, encoder=encoder)
    lengths = np.asarray(LENGTHS)
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())
    newest = encoder.get("truncate_to", 10)
    chosen = (from_end <= newest) & ((np.arange(lengths.sum()) % 3 > 0) if learned == "some" else True)
    batch = batch_of(objective, chosen)
    losses, gradients = [], []
    for compute in (
        lambda: model.loss(looked_up(model, batch), batch),
        lambda: loss_reference(model, batch, objective, newest),
    ):
        model.zero_grad()
        losses.append(compute())
        losses[-1].backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=1e-6)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    pieces = [model.loss(looked_up(model, batch), part) for part in parts_of(with_cuts(batch, 8))]
    torch.testing.assert_close(torch.stack(pieces).sum().double(), losses[1], rtol=1e-6, atol=1e-6)


def test_scores_do_not_depend_on_later_targets() -> None:
    model, batch = model_of(), batch_of(OBJECTIVES[0])
    before = model.user_vectors(looked_up(model, batch), batch)
    assert model.later is not None
    with torch.no_grad():
        for weight in model.later.parameters():
            weight.add_(1.0)
    assert torch.equal(model.user_vectors(looked_up(model, batch), batch), before)


def test_heads_begin_as_the_vector_of_the_next_event() -> None:
    model = model_of()
    model.initialize(torch.Generator().manual_seed(1))
    assert model.later is not None
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    assert torch.equal(model.later(x, NUMBER), x)


@pytest.mark.parametrize("encoder", [{}, TRUNCATED], ids=["whole", "truncated"])
def test_costs_count_every_target(encoder: dict[str, Any]) -> None:
    lengths = np.asarray([5, 5, 2])
    model = model_of(encoder=encoder)
    newest = encoder.get("truncate_to", 10)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    from_end = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1])
    items, targets = np.random.default_rng(3).integers(1, NUM_ITEMS + 1, (2, int(lengths.sum())))
    targets = np.where(from_end <= newest, targets, 0)
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    batch = build_batch(np.arange(3), offsets, items, targets, NEGATIVES[:0], catalogue, True)
    model = model.float()
    workload = Workload(Histories.of(lengths), float(lengths.sum()), NUM_ITEMS)
    costs = costs_of(model.config, WIDTH, workload)
    actual = products_in(lambda: model.loss(model.look_up(batch.items), batch).backward())
    assert costs.total.matmul * lengths.sum() == pytest.approx(actual, rel=1e-12)
    dense = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.tables.parameters())
    assert num_dense_parameters(model.config, WIDTH) == dense


def test_masked_items_have_no_later_targets() -> None:
    with pytest.raises(ValueError, match="this model restores masked events"):
        NextItemConfig.model_validate({"later_targets": 1, "encoder": {"kind": "bert4rec"}})
