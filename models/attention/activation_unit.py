"""Scores by a small network of both sides of a pair, DIN's activation unit, in the place of dot products.

    a(h, c) = w . f_n(... f_1(W [h; c; h - c; h * c] + b))            (Zhou et al. 2018, arXiv:1706.06978, section 4.3)

h an event, c a candidate, f the activations. The paper's unit takes h, c and their outer product, its authors' code what stands
here. With W cut into its four parts,

    W [h; c; h - c; h * c] + b = (W_1 + W_3 + W_4 diag(c)) h + ((W_2 - W_3) c + b),

so that all pairs of a candidate are one product of its own matrix with its events, and nothing as wide as h is held for a pair.

Shapes: N events, M candidates, H heads, K head width, F width of the first hidden layer; r, q, k rows, queries and keys of a piece.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.activations import Dice, PRelu, activation_of
from models.attention.config import UnitActivation


class ActivationUnit(nn.Module):
    """A network for each head, with hidden layers of the given widths. Activations are shared by all heads."""

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
        """(N, H, K + 1): events, and a one behind each, by which the constant term of a candidate is multiplied."""
        return F.pad(event_NHK, (0, 1), value=1.0)

    def candidate_terms(self, candidate_MHK: Tensor) -> Tensor:
        """(M, H, K + F): candidates, and behind each what it adds to every pair that it is in."""
        weight_HFK = self.weight[:, 1] - self.weight[:, 2]
        term_MHF = torch.einsum("mhk,hfk->mhf", candidate_MHK, weight_HFK) + self.bias
        return torch.cat((candidate_MHK, term_MHF), dim=-1)

    def forward(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """(r, H, q, k) for candidates with terms (r, H, q, K + F) and events with terms (r, H, k, K + 1).

        visible: (r, 1, q, k) bool, the pairs that count where an activation keeps statistics.
        """
        rows, heads, queries = query.shape[:3]
        keys, width = key.shape[2], self.head_width
        of_event = (self.weight[:, 0] + self.weight[:, 2])[:, None]
        matrix = torch.addcmul(of_event, query[..., None, :width], self.weight[:, 3, None])
        matrix = torch.cat((matrix, query[..., width:, None]), dim=-1).view(rows, heads, -1, width + 1)
        # Keys before queries, so that F comes last and all that follows works on one long matrix of pairs.
        hidden = (key @ matrix.transpose(-1, -2)).view(rows, heads, keys * queries, -1)
        real = visible.transpose(-1, -2).expand(rows, heads, keys, queries).reshape(rows, heads, -1)
        hidden = self.activations[0](hidden, real)
        for number, (weight, bias) in enumerate(zip(self.inner, self.inner_bias, strict=True), start=1):
            hidden = self.activations[number](hidden @ weight.transpose(-1, -2) + bias[:, None], real)
        scores: Tensor = (hidden @ self.out[..., None]).view(rows, heads, keys, queries) + self.out_bias[:, None, None]
        return scores.transpose(-1, -2)

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
