"""Activations: their formulas, and that no example's output depends on another's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers.activations import Dice, PRelu, Relu, activation_of
from models.layers.running_statistics import sums_of, update

WIDTH = 4


def data(seed: int, rows: int = 30) -> Tensor:
    return 1.0 + torch.randn(rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained_dice() -> Dice:
    dice = Dice(WIDTH).double()
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.3, -0.5, 1.0]))
    dice(data(1))
    update(dice, sums_of(dice))
    return dice


def test_dice_is_its_formula_with_the_statistics_of_earlier_batches():
    dice, past, x = trained_dice(), data(1), data(2)
    gate = torch.sigmoid((x - past.mean(dim=0)) / past.var(dim=0, unbiased=False).sqrt())
    torch.testing.assert_close(dice(x), gate * x + (1 - gate) * dice.alpha * x)
    torch.testing.assert_close(dice(x)[:, 3], x[:, 3])  # with alpha = 1 it is the identity


def test_prelu_and_relu_are_torchs():
    x, prelu = data(1), PRelu(WIDTH).double()
    with torch.no_grad():
        prelu.alpha.copy_(torch.tensor([0.0, 0.25, -0.5, 1.0]))
    torch.testing.assert_close(prelu(x), F.prelu(x, prelu.alpha))
    assert torch.equal(Relu()(x), F.relu(x))


@pytest.mark.parametrize("module", [trained_dice(), PRelu(WIDTH).double()], ids=["dice", "prelu"])
def test_gradients(module):
    x = data(3, 5).requires_grad_()

    def activated(x: Tensor, alpha: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"alpha": alpha}, (x,))

    assert torch.autograd.gradcheck(activated, (x, module.alpha.detach().clone().requires_grad_()))


@pytest.mark.parametrize("kind", ["relu", "prelu", "dice"])
def test_no_output_depends_on_the_rest_of_the_batch(kind):
    module, x = activation_of(kind, WIDTH).double(), data(1)
    assert torch.equal(module(x)[:7], module(x[:7]))
