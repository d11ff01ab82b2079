"""The same model code on a GPU: equal to the CPU within float32 rounding."""

import numpy as np
import pytest
import torch

from models.batches.history_batch import build_batch
from models.config import NextItemConfig
from models.features.items import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from tests.models.features import test_inputs as told
from tests.models.ranking.test_micro_batches import COUNTS, RANKERS, ranker
from tests.models.ranking.test_model import batch_of, random_users

pytestmark = pytest.mark.gpu


def loss_and_gradients(device: torch.device) -> tuple[float, dict[str, torch.Tensor]]:
    config = NextItemConfig.model_validate(
        {"max_history": 32, "encoder": {"kind": "sasrec", "dropout": 0.0, "attention": {"num_heads": 2}}}
    )
    model = NextItemModel(config, [TableSpec("item", 50, 16)], torch.device("cpu"))
    model.encoder.initialize(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(next(model.tables.parameters()), std=0.1, generator=torch.Generator().manual_seed(2))
    model.to(device)
    generator = np.random.default_rng(3)
    offsets = np.concatenate(([0], np.cumsum([5, 1, 0, 30, 12])))
    items = generator.integers(1, 50, offsets[-1])
    batch = build_batch(
        np.arange(5), offsets, items, np.roll(items, 1), np.zeros(0, dtype=np.int64), Catalogue(50, 50), True
    ).to(device)
    loss = model.loss(model.look_up(batch.items), batch)
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_equal_the_cpu():
    expected_loss, expected = loss_and_gradients(torch.device("cpu"))
    loss, gradients = loss_and_gradients(torch.device("cuda"))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_features_of_events_users_and_times_equal_those_on_the_cpu():
    objective, users = told.OBJECTIVES[0], told.random_users(1)
    model, batch = told.make_model(objective, bias="time"), told.batch_of(users, objective)
    with torch.no_grad():
        expected = told.encoded(model, batch)
        actual = told.encoded(model.to("cuda"), batch.to(torch.device("cuda")))
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", RANKERS)
def test_a_ranker_equals_the_cpu(kind):
    batch, actual = batch_of(random_users(4, COUNTS)), []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = ranker(kind).float().to(device)
        there = batch.to(device)
        rows = {table: rows.detach().requires_grad_() for table, rows in model.look_up(there.items).items()}
        model.loss(rows, there).backward()
        weights = {name: p for name, p in model.named_parameters() if not name.startswith("tables")}
        gradients = {name: leaf.grad for name, leaf in (rows | weights).items() if leaf.grad is not None}
        actual.append((model.logits(rows, there), gradients))
    (expected, expected_gradients), (logits, gradients) = actual
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient.cpu(), expected_gradients[name], rtol=1e-3, atol=1e-5, msg=name)
