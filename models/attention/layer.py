"""The attention sub-layer: projections around `attend`, composed by the settings.

Shapes: N total events, M candidates, n histories that are not empty, D model width, H heads, G heads of keys and values, K head
width (D / H), C channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import devices
from models.attention.attend import attend
from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig, with_heads
from models.attention.pruned import norm_with_zeros
from models.attention.rotary import rotate
from models.attention.terms import Attended, AttentionTerms
from models.layers.dropout import threshold_of
from models.layers.norms import GroupNorm


class Attention(nn.Module):
    """Attention sub-layer, (N, D) to (N, D), with the penalty of the weights as a second output, a scalar or None.

    With the compiled layers of the context, the bias of the output is left out, because what adds the output adds it too.
    If the context requests candidates only, they are the output, (M, D), of the input (N + M, D). If it requests last or newest
    events only, they are the output, (n, D), and only they have queries and gates. With `differential` a
    head has two maps of weights over the same values, each of half its width (Ye et al. 2024, arXiv:2410.05258, eq. 1-3).

    Args:
        width: D.
        max_history: number of learned positions of a bias.
        config: the settings.
        rotary: queries and keys have rotary positions.
        depth: number of the block from 1, on which the differential form depends.
        num_heads: number of heads that were not pruned (models.attention.pruned); None: all.
        candidate_norms: the attended values of candidates have a norm of their own.
    """

    def __init__(
        self,
        width: int,
        max_history: int,
        config: AttentionConfig,
        rotary: bool,
        depth: int,
        num_heads: int | None = None,
        candidate_norms: bool = False,
    ) -> None:
        super().__init__()
        self.head_width = width // config.num_heads
        all_seen = config.num_channels * width
        config = with_heads(config, num_heads or config.num_heads)
        self.config = config
        self.max_history = max_history
        self.depth = depth
        self.num_maps = 2 if config.differential else 1
        self.map_width = self.head_width // self.num_maps
        query_width = config.num_heads * self.head_width
        seen = config.num_channels * query_width
        key_width = config.key_value_heads * self.head_width
        self.sizes = [query_width, key_width, key_width, *([seen] if config.gate else [])]
        # No bias: a bias of the keys does not change a softmax, so its gradient would be rounding noise, which Adagrad and Adam
        # turn into full steps; a bias of the values only repeats that of the output.
        self.query_key_value = nn.Linear(width, sum(self.sizes), bias=False)
        bidirectional = config.mask == "bidirectional"
        heads = self.num_maps * config.num_heads
        self.position_bias = (
            PositionBias(config.position_bias, heads, max_history, bidirectional) if config.uses_position else None
        )
        self.time_bias = TimeBias(config.time_bias, heads) if config.uses_time else None
        self.log_temperature = nn.Parameter(torch.zeros(heads)) if config.temperature == "learned" else None
        self.rotary = rotary
        if config.differential:
            self.difference = nn.Parameter(torch.zeros(4, self.map_width))
            self.head_norm = nn.RMSNorm(self.head_width, eps=1e-5)
        self.output_norm = norm_of_seen(config.output_norm, seen)
        if candidate_norms and self.output_norm is not None:
            own = norm_of_seen(config.output_norm, seen)
            assert own is not None
            self.output_norm = GroupNorm(self.output_norm, own)
        self.num_pruned = all_seen - seen
        self.attention_output = nn.Linear(seen, width, bias=config.output_bias)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        attended, gate = self._attended(self._projected(x_ND, context), context)
        with_bias = context.layer_kernels is None
        return self.output_of(attended.output, gate, context.num_output_events, with_bias), attended.penalty

    def added_to(
        self, x_ND: Tensor, norm: nn.Module | None, threshold: int, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return x + dropped(f(norm(x))), (N, D), and the penalty, with compiled products, or None where these do not fit.

        Args:
            x_ND: the residual stream.
            norm: is applied to the input; None: no norm.
            threshold: how many of 256 equally likely bytes drop a number of the output.
            context: has the compiled layers.
        """
        assert context.layer_kernels is not None
        kernels = context.layer_kernels.projections
        fits = kernels.takes(x_ND, self.query_key_value, self.attention_output) and context.outputs == "all"
        if not fits or devices.host_uses_bfloat16() or not isinstance(norm, nn.LayerNorm | nn.RMSNorm | None):
            return None
        projected_NS, kept_ND = kernels.project(x_ND, norm, self.query_key_value.weight)
        attended, gate = self._attended((self._activated(projected_NS),), context)
        seen_NS = self._for_product(attended.output, gate, context.num_output_events)
        return kernels.add(kept_ND, seen_NS, self.attention_output, threshold), attended.penalty

    def _attended(self, projected: tuple[Tensor, ...], context: AttentionContext) -> tuple[Attended, Tensor | None]:
        """Return what each event attends to, and the gate or None."""
        joint_NS = None if len(projected) > 1 or not self._attends_to_projections else projected[0]
        query, key, value, gate = self._heads(projected, context)
        return attend(query, key, value, context, self.terms(), joint_NS), gate

    def heads(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values as they are attended with, and the gate or None."""
        return self._heads(self._projected(x_ND, context), context)

    def _heads(
        self, projected: tuple[Tensor, ...], context: AttentionContext
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        config = self.config
        query, key, value, *gate = projected if len(projected) > 1 else projected[0].split(self.sizes, dim=-1)
        query = self._maps(query)
        key = self._maps(key)
        value = value.view(-1, config.key_value_heads, self.head_width)
        if self.num_maps > 1:
            value = value.repeat(1, self.num_maps, 1)
        if self.rotary:
            cos, sin = context.turns(self.map_width, key.dtype)
            key = rotate(key, (cos, sin))
            of_query = (
                (context.output_rows(cos), context.output_rows(sin)) if context.chosen is not None else (cos, sin)
            )
            query = rotate(query, of_query)
        if self.log_temperature is not None:
            query = (query * (-self.log_temperature).exp()[:, None]).to(key.dtype)
        return query, key, value, gate[0] if gate else None

    def output_of(
        self, seen: Tensor, gate: Tensor | None, num_events: int | None = None, with_bias: bool = True
    ) -> Tensor:
        """Return the output, (n, D), of attended values (n, C, H, V).

        Args:
            seen: the attended values.
            gate: multiplies them.
            num_events: how many of them, the first ones, are those of events; None: all.
            with_bias: add the bias of the output.
        """
        num_events = seen.shape[0] if num_events is None else num_events
        return product_of(self.attention_output, self._for_product(seen, gate, num_events), with_bias)

    def _for_product(self, seen: Tensor, gate: Tensor | None, num_events: int) -> Tensor:
        """Return attended values as the product of the output reads them, (n, S). Arguments are those of `output_of`."""
        if self.config.differential:
            seen = self._difference(seen)
        seen_NS = seen.flatten(1)
        if self.output_norm is not None:
            seen_NS = norm_with_zeros(self.output_norm, seen_NS, self.num_pruned, num_events)
        if gate is not None:
            seen_NS = seen_NS * gate[gate.shape[0] - seen_NS.shape[0] :]
        return seen_NS

    @property
    def _attends_to_projections(self) -> bool:
        """Return whether queries, keys and values enter attention as they are projected, and nothing else is."""
        unchanged = self.num_maps == 1 and not self.rotary and self.log_temperature is None
        return unchanged and not self.config.gate

    def _projected(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, ...]:
        """Return queries, keys, values and, if there are any, gates: in one tensor (N, S), if all events have all of them."""
        if context.chosen is not None:
            of_query, of_key, of_value, *of_gate = self.query_key_value.weight.split(self.sizes)
            chosen_nD = context.output_rows(x_ND)
            key, value = self._activated(F.linear(x_ND, torch.cat((of_key, of_value)))).chunk(2, dim=-1)
            query, *gate = (self._activated(F.linear(chosen_nD, weight)) for weight in (of_query, *of_gate))
            return query, key, value, *gate
        return (self._activated(self.query_key_value(x_ND)),)

    def _activated(self, projected: Tensor) -> Tensor:
        return F.silu(projected) if self.config.projection_activation == "silu" else projected

    def terms(self) -> AttentionTerms:
        """Return the form of the attention."""
        config = self.config
        return AttentionTerms(
            config=config,
            scale=self.map_width**-0.5 / config.temperature_factor,
            silu_divisor=self.max_history,
            position=self.position_bias,
            time=self.time_bias,
            threshold=threshold_of(config.dropout) if self.training else 0,
            with_penalty=self.training and config.penalty != 0.0,
        )

    def _maps(self, x: Tensor) -> Tensor:
        """Return the heads of all maps, (N, maps x heads, map width). The heads of the first map come first."""
        num_heads = x.shape[1] // self.head_width
        by_head = x.view(x.shape[0], num_heads, self.num_maps, self.map_width)
        return by_head.transpose(1, 2).reshape(x.shape[0], self.num_maps * num_heads, self.map_width)

    def _difference(self, seen_NCHV: Tensor) -> Tensor:
        """Return the first map's result minus a learned share of the second's, (N, 1, H, V). Each head has its own norm."""
        first, second = seen_NCHV.chunk(2, dim=2)
        normed: Tensor = self.head_norm(first - self.second_share() * second) * (1.0 - self._initial_share)
        return normed

    def second_share(self) -> Tensor:
        """Return the share of the second map that a differential head subtracts from the first, a scalar."""
        query_1, key_1, query_2, key_2 = self.difference
        share: Tensor = (query_1 @ key_1).exp() - (query_2 @ key_2).exp() + self._initial_share
        return share

    @property
    def _initial_share(self) -> float:
        return 0.8 - 0.6 * math.exp(-0.3 * (self.depth - 1))

    @torch.no_grad()
    def initialize(self) -> None:
        """Reset the weights that are neither matrices, norms nor biases of projections."""
        if self.log_temperature is not None:
            self.log_temperature.zero_()


def product_of(layer: nn.Linear, x: Tensor, with_bias: bool) -> Tensor:
    """Return the output of a layer, or this without its bias."""
    output: Tensor = layer(x) if with_bias else F.linear(x, layer.weight)
    return output


def norm_of_seen(kind: str, width: int) -> nn.Module | None:
    match kind:
        case "layer_norm":
            return nn.LayerNorm(width)
        case "rms_norm":
            return nn.RMSNorm(width, eps=1e-5)
    return None
