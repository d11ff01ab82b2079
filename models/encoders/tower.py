"""A tower: the layers between an encoded history, or an item's vector, and what a score is computed from."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F


class Tower(nn.Module):
    """Linear layers with GELU between them, (n, D) to (n, D); the identity without hidden layers.

    hidden: the width of each, in multiples of D.
    """

    def __init__(self, width: int, hidden: list[int]) -> None:
        super().__init__()
        widths = [width, *(width * multiple for multiple in hidden), width] if hidden else []
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if number else x)
        return x
