"""A tower: the layers between an encoded history, or an item's vector, and the scores."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F


class Tower(nn.Module):
    """Linear layers with GELU between them, (n, D) to (n, D); the identity without hidden layers.

    The last layer of the items' tower has no bias: a number that all scores share changes no softmax, so its gradient would be
    rounding noise, which adaptive optimizers turn into full steps.

    Args:
        width: D.
        hidden: the width of each hidden layer, in multiples of D.
        last_bias: the last layer has a bias.
    """

    def __init__(self, width: int, hidden: list[int], last_bias: bool = True) -> None:
        super().__init__()
        widths = [width, *(width * multiple for multiple in hidden), width] if hidden else []
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=last_bias or number < len(pairs)) for number, (a, b) in enumerate(pairs, start=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if number else x)
        return x
