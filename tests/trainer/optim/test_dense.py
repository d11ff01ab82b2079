"""Dense optimizers compared with the equations of their papers, and the weights that decay."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.config import NextItemConfig
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from trainer.config.train import TrainConfig
from trainer.optim.dense import dense_optimizer
from trainer.optim.lion import Lion

RATE, DECAY, BETAS = 0.03, 0.2, [0.8, 0.95]


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (3,), (2, 2, 2), ()]
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    found = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in weights()]
    found[0][0, 0] = 0.0  # no sign: neither direction
    return found


def lion_reference(weight: Tensor, given: list[Tensor], decay: float) -> tuple[Tensor, Tensor]:
    """Algorithm 2 of arXiv:2302.06675, line by line."""
    momentum = torch.zeros_like(weight)
    for gradient in given:
        update = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
        weight = weight - RATE * (update.sign() + decay * weight)
        momentum = BETAS[1] * momentum + (1 - BETAS[1]) * gradient
    return weight, momentum


def adamw_reference(weight: Tensor, given: list[Tensor], decay: float) -> tuple[Tensor, Tensor]:
    """Algorithm 2 of arXiv:1711.05101, with the rate as the schedule."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(given, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        scaled = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + 1e-3)
        weight = weight - RATE * (scaled + decay * weight)
    return weight, first


@pytest.mark.parametrize(("optimizer", "reference"), [("lion", lion_reference), ("adamw", adamw_reference)])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_an_optimizer_equals_the_equations_of_its_paper(optimizer, reference, decay):
    config = TrainConfig(optimizer=optimizer, learning_rate=RATE, betas=BETAS, eps=1e-3, weight_decay=decay)
    trained = weights()
    stepped = dense_optimizer(iter(trained), config)
    for step in range(6):
        for weight, gradient in zip(trained, gradients(step), strict=True):
            weight.grad = gradient
        stepped.step()
        stepped.zero_grad()
    for number, (start, weight) in enumerate(zip(weights(), trained, strict=True)):
        given = [gradients(step)[number] for step in range(6)]
        expected, momentum = reference(start.detach(), given, decay if start.dim() >= 2 else 0.0)
        torch.testing.assert_close(weight.detach(), expected)
        torch.testing.assert_close(stepped.state[weight]["exp_avg"], momentum)


def test_lion_does_not_change_a_weight_without_a_gradient():
    trained = weights()[:2]
    lion = Lion(trained, lr=RATE, weight_decay=DECAY)
    trained[0].grad = gradients(0)[0]
    before = trained[1].detach().clone()
    lion.step()
    assert torch.equal(trained[1].detach(), before)
    assert not lion.state[trained[1]]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_matrices_decay_and_biases_and_norms_do_not(optimizer):
    model = NextItemModel(NextItemConfig(), [TableSpec("item", 30, 8)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    dense = {name: p for name, p in model.named_parameters() if not name.startswith("tables.")}
    before = {name: p.detach().clone() for name, p in dense.items()}
    stepped = dense_optimizer(dense.values(), TrainConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5))
    for weight in dense.values():
        weight.grad = torch.zeros_like(weight)
    stepped.step()
    decayed = {name for name, p in dense.items() if not torch.equal(p, before[name])}
    assert decayed == {name for name, p in dense.items() if p.dim() == 2}
    assert len(dense) - len(decayed) > 10
    for name in decayed:
        torch.testing.assert_close(dense[name].detach(), before[name] * 0.95)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
def test_weight_decay_is_refused_for_optimizers_without_it(optimizer):
    with pytest.raises(ValidationError, match="is for adamw and lion"):
        TrainConfig(optimizer=optimizer, weight_decay=0.1)
