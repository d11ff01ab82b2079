"""DIN's activation unit: a small network of both sides of a pair gives its score, in place of a dot product.

    a(h, c) = w . f_n(... f_1(W [h; c; h - c; h * c] + b))            (Zhou et al. 2018, arXiv:1706.06978, section 4.3)

h is an event, c a candidate, f the activations. The paper's unit takes h, c and their outer product; the form here is that of
its authors' code. With W split into its four parts,

    W [h; c; h - c; h * c] + b = (W_1 + W_3) h + ((W_2 - W_3) c + b) + W_4 (h * c),

the first term depends on an event alone and the second on a candidate. Only the third is computed for every pair.

Shapes: N events, M candidates, H heads, K head width, F width of the first hidden layer; r, q, k rows, queries and keys of a
tile.
"""

import itertools

import torch
from torch import Tensor, nn

from models.attention.config import UnitActivation
from models.layers.activations import Dice, PRelu, activation_of


class ActivationUnit(nn.Module):
    """A network per head, with hidden layers of the given widths. All heads share the activations."""

    def __init__(self, num_heads: int, head_width: int, hidden: tuple[int, ...], activation: UnitActivation) -> None:
        super().__init__()
        self.head_width = head_width
        self.weight = nn.Parameter(torch.zeros(num_heads, 4, hidden[0], head_width))  # of h, c, h - c, h * c
        self.bias = nn.Parameter(torch.zeros(num_heads, hidden[0]))
        self.inner = nn.ParameterList(torch.zeros(num_heads, b, a) for a, b in itertools.pairwise(hidden))
        self.inner_bias = nn.ParameterList(torch.zeros(num_heads, width) for width in hidden[1:])
        self.activations = nn.ModuleList(activation_of(activation, width) for width in hidden)
        self.out = nn.Parameter(torch.zeros(num_heads, hidden[-1]))
        self.out_bias = nn.Parameter(torch.zeros(num_heads))
        self.numbers_per_score = sum(hidden)

    def event_terms(self, event_NHK: Tensor) -> Tensor:
        """Return the events, each followed by its contribution to every pair, (N, H, K + F)."""
        return self._with_terms(event_NHK, self.weight[:, 0] + self.weight[:, 2], None)

    def candidate_terms(self, candidate_MHK: Tensor) -> Tensor:
        """Return the candidates, each followed by its contribution to every pair, (M, H, K + F)."""
        return self._with_terms(candidate_MHK, self.weight[:, 1] - self.weight[:, 2], self.bias)

    def _with_terms(self, packed_NHK: Tensor, weight_HFK: Tensor, bias: Tensor | None) -> Tensor:
        terms_NHF = torch.einsum("nhk,hfk->nhf", packed_NHK, weight_HFK)
        return torch.cat((packed_NHK, terms_NHF if bias is None else terms_NHF + bias), dim=-1)

    def forward(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """Return the scores (r, H, q, k) of candidates with terms (r, H, q, K + F) and events with terms (r, H, k, K + F).

        visible: (r, 1, q, k) bool, the pairs that count in the statistics of an activation.
        """
        heads = query.shape[1]
        width = self.head_width
        # Heads come first, so that all pairs of a head are one long matrix.
        candidate = query.transpose(0, 1)[..., None, :]
        event = key.transpose(0, 1)[..., None, :, :]
        pairs = candidate[..., :width] * event[..., :width]
        shape = pairs.shape[:-1]
        hidden = (pairs.flatten(1, -2) @ self.weight[:, 3].transpose(-1, -2)).view(*shape, -1)
        hidden = hidden.add_(event[..., width:]).add_(candidate[..., width:]).flatten(1, -2)
        real = visible.transpose(0, 1).reshape(1, -1).expand(heads, -1)
        hidden = self.activations[0](hidden, real)
        for number, (weight, bias) in enumerate(zip(self.inner, self.inner_bias, strict=True), start=1):
            hidden = self.activations[number](torch.baddbmm(bias[:, None], hidden, weight.transpose(-1, -2)), real)
        # A product with one vector is several times as fast as a batch of such products.
        scores = torch.stack([of_head @ out for of_head, out in zip(hidden, self.out, strict=True)])
        return (scores + self.out_bias[:, None]).view(shape).transpose(0, 1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the matrices from `generator` (CPU): each keeps the length of its input on average. Biases are zero."""
        for matrix in (self.weight, *self.inner, self.out):
            inputs = matrix.shape[-1] * (4 if matrix is self.weight else 1)
            matrix.copy_(torch.empty(matrix.shape).normal_(0.0, inputs**-0.5, generator=generator))
        for bias in (self.bias, *self.inner_bias, self.out_bias):
            bias.zero_()
        for activation in self.activations:
            if isinstance(activation, PRelu | Dice):
                activation.initialize()
