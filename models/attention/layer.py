"""The attention sub-layer: projections around `attend`, composed as its settings say.

Shapes: N total events, D model width, H heads, G heads of keys and values, K head width (D / H), C channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.attend import attend
from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.rotary import Rotary
from models.attention.terms import AttentionTerms
from models.layers.dropout import threshold_of


class Attention(nn.Module):
    """Input and output (N, D), and the penalty of the weights, where the settings have one, as a scalar (else none).

    Where the context asks for its candidates only they are the output, (M, D), of the input (N + M, D).
    depth: number of the block from 1, on which the differential form depends. With `differential` a head has two maps of
    weights, each of half its width, over the same values (Ye et al. 2024, arXiv:2410.05258, eq. 1-3).
    """

    def __init__(self, width: int, max_history: int, config: AttentionConfig, rotary: bool, depth: int) -> None:
        super().__init__()
        self.config, self.max_history, self.depth = config, max_history, depth
        self.num_maps = 2 if config.differential else 1
        self.head_width = width // config.num_heads
        self.map_width = self.head_width // self.num_maps
        seen = config.num_channels * width
        key_width = config.key_value_heads * self.head_width
        self.sizes = [width, key_width, key_width, *([seen] if config.gate else [])]
        # No bias: a softmax does not see a bias of the keys, so its gradient would be rounding noise, which Adagrad and Adam
        # turn into full steps; a bias of the values only repeats that of the output.
        self.query_key_value = nn.Linear(width, sum(self.sizes), bias=False)
        bidirectional, heads = config.mask == "bidirectional", self.num_maps * config.num_heads
        self.position_bias = (
            PositionBias(config.position_bias, heads, max_history, bidirectional) if config.uses_position else None
        )
        self.time_bias = TimeBias(config.time_bias, heads) if config.uses_time else None
        self.log_temperature = nn.Parameter(torch.zeros(heads)) if config.temperature == "learned" else None
        self.rotary = Rotary() if rotary else None
        if config.differential:
            self.difference = nn.Parameter(torch.zeros(4, self.map_width))
            self.head_norm = nn.RMSNorm(self.head_width, eps=1e-5)
        self.output_norm = norm_of_seen(config.output_norm, seen)
        self.attention_output = nn.Linear(seen, width, bias=config.output_bias)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        config, num_events = self.config, x_ND.shape[0]
        projected = self.query_key_value(x_ND)
        if config.projection_activation == "silu":
            projected = F.silu(projected)
        query, key, value, *gate = projected.split(self.sizes, dim=-1)
        query, key = self._maps(query), self._maps(key)
        value = value.view(num_events, config.key_value_heads, self.head_width).repeat(1, self.num_maps, 1)
        if self.rotary is not None:
            query, key = (self.rotary(x, context.places) for x in (query, key))
        if self.log_temperature is not None:
            query = (query * (-self.log_temperature).exp()[:, None]).to(key.dtype)
        attended = attend(query, key, value, context, self._parts())
        seen = attended.output
        if config.differential:
            seen = self._difference(seen)
        seen_NS = seen.flatten(1)
        if self.output_norm is not None:
            seen_NS = self.output_norm(seen_NS)
        if gate:
            seen_NS = seen_NS * gate[0][num_events - seen_NS.shape[0] :]
        return self.attention_output(seen_NS), attended.penalty

    def _parts(self) -> AttentionTerms:
        config = self.config
        return AttentionTerms(
            config=config,
            scale=self.map_width**-0.5,
            silu_divisor=self.max_history,
            position=self.position_bias,
            time=self.time_bias,
            threshold=threshold_of(config.dropout) if self.training else 0,
            with_penalty=self.training and config.penalty != 0.0,
        )

    def _maps(self, x: Tensor) -> Tensor:
        """(N, maps x heads, map width), all heads of the first map before those of the second."""
        num_heads = x.shape[1] // self.head_width
        by_head = x.view(x.shape[0], num_heads, self.num_maps, self.map_width)
        return by_head.transpose(1, 2).reshape(x.shape[0], self.num_maps * num_heads, self.map_width)

    def _difference(self, seen_NCHV: Tensor) -> Tensor:
        """The first map's result less a learned share of the second's, each head normed by itself; (N, 1, H, V)."""
        first, second = seen_NCHV.chunk(2, dim=2)
        initial = 0.8 - 0.6 * math.exp(-0.3 * (self.depth - 1))
        query_1, key_1, query_2, key_2 = self.difference
        share = (query_1 @ key_1).exp() - (query_2 @ key_2).exp() + initial
        normed: Tensor = self.head_norm(first - share * second) * (1.0 - initial)
        return normed

    @torch.no_grad()
    def initialize(self) -> None:
        """Values of what is neither a matrix, a norm nor a bias of a projection."""
        if self.log_temperature is not None:
            self.log_temperature.zero_()


def norm_of_seen(kind: str, width: int) -> nn.Module | None:
    match kind:
        case "layer_norm":
            return nn.LayerNorm(width)
        case "rms_norm":
            return nn.RMSNorm(width, eps=1e-5)
    return None
