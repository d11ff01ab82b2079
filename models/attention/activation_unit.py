"""Scores by a small network of both sides of a pair, DIN's activation unit, in the place of dot products.

    a(h, c) = w . f_n(... f_1(W [h; c; h - c; h * c] + b))            (Zhou et al. 2018, arXiv:1706.06978, section 4.3)

h an event, c a candidate, f the activations. The paper's unit takes h, c and their outer product, its authors' code what stands
here. With W cut into its four parts, W [h; c; h - c; h * c] = (W_1 + W_3) h + (W_2 - W_3) c + W_4 (h * c): the first two terms are
computed once for each event and candidate, before they meet (`event_terms`, `candidate_terms`), and only the last for each pair.

Shapes: N events, M candidates, H heads, K head width, F width of the first hidden layer; r, q, k rows, queries and keys of a piece.
"""

import itertools

import torch
from torch import Tensor, nn

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
        """(N, H, K + F): events, and behind each what it adds to every pair that it is in."""
        weight_HFK = self.weight[:, 0] + self.weight[:, 2]
        return torch.cat((event_NHK, torch.einsum("nhk,hfk->nhf", event_NHK, weight_HFK)), dim=-1)

    def candidate_terms(self, candidate_MHK: Tensor) -> Tensor:
        """(M, H, K + F): candidates, and behind each what it adds to every pair that it is in."""
        weight_HFK = self.weight[:, 1] - self.weight[:, 2]
        term_MHF = torch.einsum("mhk,hfk->mhf", candidate_MHK, weight_HFK) + self.bias
        return torch.cat((candidate_MHK, term_MHF), dim=-1)

    def forward(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """(r, H, q, k) for candidates with terms (r, H, q, K + F) and events with terms (r, H, k, K + F).

        visible: (r, 1, q, k) bool, the pairs that count where an activation keeps statistics.
        """
        rows, heads, queries = query.shape[:3]
        keys, width = key.shape[2], self.head_width
        # (W_4 c) . h for all F at once: one matrix product for each row, and no tensor as wide as h for each pair.
        asked = query[..., None, :width] * self.weight[:, 3, None]
        product = asked.reshape(rows, heads, -1, width) @ key[..., :width].transpose(-1, -2)
        hidden = product.view(rows, heads, queries, -1, keys)
        hidden = hidden + query[..., width:, None] + key[..., width:].transpose(-1, -2)[:, :, None]
        real = visible.expand(rows, heads, queries, keys)
        hidden = self._activated(0, hidden, real)
        for number, (weight, bias) in enumerate(zip(self.inner, self.inner_bias, strict=True), start=1):
            hidden = torch.einsum("rhqfk,hgf->rhqgk", hidden, weight) + bias[:, None, :, None]
            hidden = self._activated(number, hidden, real)
        return (self.out[:, None, None] @ hidden).squeeze(-2) + self.out_bias[:, None, None]

    def _activated(self, number: int, hidden: Tensor, real: Tensor) -> Tensor:
        """(r, H, q, F, k) activated along F, by modules that have it last."""
        activated: Tensor = self.activations[number](hidden.transpose(-1, -2), real)
        return activated.transpose(-1, -2)

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
