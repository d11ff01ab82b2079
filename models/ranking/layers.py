"""Several small networks side by side, computed as one.

    h = x;  h = dropout(a(h W_g + b_g)) for each hidden layer of network g

The first layer of networks that all see the same input is a single matrix product; the others are one batched product for all
networks.

Shapes: M impressions, G networks, F width of the input, H width of the output.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.activations import Dice, PRelu, activation_of
from models.layers.dropout import Dropout
from models.ranking.config import ActivationKind


class SideBySide(nn.Module):
    """G networks with layers of these widths, from the input's on.

    Args:
        num_networks: G.
        widths: of the input and of every layer.
        activation: of hidden layers.
        dropout: probability of dropping an activation.
        linear_end: the last layer has no activation and no dropout; its output is a score or a logit, computed in float32 at
            least, since a matrix product under autocast would round it to 8 bits.
        bias: the layers have biases.
    """

    def __init__(
        self,
        num_networks: int,
        widths: Sequence[int],
        activation: ActivationKind = "relu",
        dropout: float = 0.0,
        linear_end: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.num_networks = num_networks
        self.width = widths[-1]
        self.num_activated = len(pairs) - linear_end
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(num_networks, a, b)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_networks, b)) for _, b in pairs if bias)
        activated = pairs[: self.num_activated]
        self.activations = nn.ModuleList(activation_of(activation, num_networks * b) for _, b in activated)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (M, F), the same for all networks, or (M, G, F), to (M, G, H)."""
        if x.dim() == 2 and not len(self.weights):
            return x[:, None].expand(-1, self.num_networks, -1)
        for number, weight_GFH in enumerate(self.weights):
            is_activated = number < self.num_activated
            x = _product(x, weight_GFH) if is_activated else _exact_product(x, weight_GFH)
            if len(self.biases):
                x = x + self.biases[number]
            if is_activated:
                activated = self.activations[number](x.flatten(1))
                x = self.dropout(activated).unflatten(1, (self.num_networks, -1))
        return x

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from `generator` (CPU), in a fixed order: Glorot & Bengio 2010, normal; biases are 0."""
        for weight in self.weights:
            std = (2.0 / sum(weight.shape[1:])) ** 0.5
            weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))
        for bias in self.biases:
            bias.zero_()
        for activation in self.activations:
            if isinstance(activation, Dice | PRelu):
                activation.initialize()


def _product(x: Tensor, weight_GFH: Tensor) -> Tensor:
    if x.dim() == 2:
        num_networks, width, hidden = weight_GFH.shape
        together_FGH = weight_GFH.transpose(0, 1).reshape(width, num_networks * hidden)
        return (x @ together_FGH).view(-1, num_networks, hidden)
    product_GMH: Tensor = torch.bmm(x.transpose(0, 1), weight_GFH)
    return product_GMH.transpose(0, 1)


def _exact_product(x: Tensor, weight_GFH: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _product(x.to(torch.promote_types(x.dtype, weight_GFH.dtype)), weight_GFH)
