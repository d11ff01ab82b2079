"""A block of an encoder: attention, then a feed-forward sub-layer, each with norm, residual connection and gate.

Shapes: N total events, M candidates, n histories that are not empty, D model width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import devices
from models.attention.blocks import AttentionContext
from models.attention.layer import Attention, product_of
from models.compiled.feed_forward import ActivationName
from models.compiled.layers import LayerKernels
from models.encoders.config import EncoderConfig
from models.layers.dropout import Dropout
from models.layers.norms import GroupNorm, normed, normed_for_product

ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class EncoderBlock(nn.Module):
    """Two residual sub-layers. Pre-norm: x + g(x) f(norm(x)); post-norm: norm(x + g(x) f(x)).

    f is the sub-layer, and g its gate or 1. Input and output are (N, D). The second output is the penalty of the attention
    weights, or None. If the context requests candidates or last events only, they are the output, (M, D) or (n, D).
    """

    def __init__(self, width: int, max_history: int, config: EncoderConfig, depth: int, num_heads: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_place == "pre"
        self.attention_norm = block_norm_of(config, width)
        self.attention = Attention(
            width,
            max_history,
            config.attention,
            config.positions == "rotary",
            depth,
            num_heads,
            config.candidate_norms,
        )
        self.attention_gate = nn.Linear(width, width) if config.residual_gate else None
        self.feed_forward: FeedForward | None = None
        if config.feed_forward != "none":
            self.feed_forward_norm = block_norm_of(config, width)
            self.feed_forward = FeedForward(
                width, width * config.feed_forward_multiple, config.feed_forward, config.feed_forward_dropout
            )
            self.feed_forward_gate = nn.Linear(width, width) if config.residual_gate else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        kernels = context.layer_kernels
        x_ND, penalty = self._with_attention(x_ND, context, kernels)
        num_events = context.num_output_events
        if not self.pre_norm:
            x_ND = normed(self.attention_norm, x_ND, num_events, kernels)
        if self.feed_forward is not None:
            x_ND = self._with_feed_forward(self.feed_forward, x_ND, num_events, kernels)
            if not self.pre_norm:
                x_ND = normed(self.feed_forward_norm, x_ND, num_events, kernels)
        return x_ND, penalty

    def _with_attention(
        self, x_ND: Tensor, context: AttentionContext, kernels: LayerKernels | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream with what attention adds to it, and the penalty of the weights."""
        norm = self.attention_norm if self.pre_norm else None
        if kernels is not None and self.attention_gate is None:
            whole = self.attention.added_to(x_ND, norm, self.dropout.active_threshold, context)
            if whole is not None:
                return whole
        inner = x_ND
        if norm is not None:
            inner, x_ND = normed_for_product(norm, x_ND, context.layout.num_events, kernels)
        attended_ND, penalty = self.attention(inner, context)
        bias = self.attention.attention_output.bias
        return self._sum(context.output_rows(x_ND), attended_ND, bias, self.attention_gate, kernels), penalty

    def _with_feed_forward(
        self, feed_forward: "FeedForward", x_ND: Tensor, num_events: int, kernels: LayerKernels | None
    ) -> Tensor:
        """Return the residual stream with what the feed-forward sub-layer adds to it."""
        norm = self.feed_forward_norm if self.pre_norm else None
        if kernels is not None and self.feed_forward_gate is None:
            whole_ND = feed_forward.added_to(x_ND, norm, self.dropout.active_threshold, kernels)
            if whole_ND is not None:
                return whole_ND
        inner = x_ND
        if norm is not None:
            inner, x_ND = normed_for_product(norm, x_ND, num_events, kernels)
        said_ND = feed_forward(inner, kernels)
        return self._sum(x_ND, said_ND, feed_forward.out_of.bias, self.feed_forward_gate, kernels)

    def _sum(
        self, x_ND: Tensor, said_ND: Tensor, bias: Tensor | None, gate: nn.Module | None, kernels: LayerKernels | None
    ) -> Tensor:
        """Return the residual stream with what a sub-layer adds to it. With kernels `said_ND` has no `bias` yet."""
        if kernels is not None and kernels.takes(x_ND, said_ND) and x_ND.dtype == torch.float32:
            gate_ND = None if gate is None else gate(x_ND)
            return kernels.add_dropped(x_ND, said_ND, self.dropout.active_threshold, bias, gate_ND)
        if kernels is not None and bias is not None:
            said_ND = said_ND + bias
        said_ND = self.dropout(said_ND)
        if gate is not None:
            said_ND = torch.sigmoid(gate(x_ND)) * said_ND
        return x_ND + said_ND


class FeedForward(nn.Module):
    """Feed-forward sub-layer: W2 a(W1 x), or for swiglu W2 (silu(W1 x) * W3 x) without biases (Shazeer 2020, arXiv:2002.05202).

    dropout: probability of dropping an input of W2.
    """

    def __init__(self, width: int, hidden: int, activation: Literal["relu", "gelu", "swiglu"], dropout: float) -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        self.activation: ActivationName = "silu" if activation == "swiglu" else activation
        self.into = nn.Linear(width, hidden * (2 if self.gated else 1), bias=not self.gated)
        self.out_of = nn.Linear(hidden, width, bias=not self.gated)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, kernels: LayerKernels | None = None) -> Tensor:
        """Return the output, (N, D). With kernels the bias of W2 is left out, because what adds the output adds it too."""
        # What torch.compile compiles is fused by its own compiler.
        if kernels is not None and kernels.takes(x_ND) and not torch.compiler.is_compiling():
            hidden = product_of(self.into, x_ND, with_bias=False)
            hidden = kernels.activate(
                hidden, self.activation, self.gated, self.dropout.active_threshold, self.into.bias
            )
        else:
            hidden = self.dropout(self._activated(self.into(x_ND)))
        return product_of(self.out_of, hidden, with_bias=kernels is None)

    def added_to(self, x_ND: Tensor, norm: nn.Module | None, threshold: int, kernels: LayerKernels) -> Tensor | None:
        """Return x + dropped(f(norm(x))), (N, D), by one kernel, or None where it does not fit or torch.compile compiles f.

        Args:
            x_ND: the residual stream.
            norm: is applied to the input; None: no norm.
            threshold: how many of 256 equally likely bytes drop a number of the output.
            kernels: the compiled layers.
        """
        is_compiled = self._compiled_call_impl is not None
        if is_compiled or devices.host_uses_bfloat16() or not isinstance(norm, nn.LayerNorm | nn.RMSNorm | None):
            return None
        kernel = kernels.feed_forward
        if not kernel.takes(x_ND, self.into, self.out_of):
            return None
        thresholds = (self.dropout.active_threshold, threshold)
        return kernel.add(x_ND, norm, self.into, self.out_of, self.activation, self.gated, thresholds)

    def _activated(self, hidden: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        if not self.gated:
            return activation(hidden)
        gate, hidden = hidden.chunk(2, dim=-1)
        return activation(gate) * hidden


def norm_of(config: EncoderConfig, width: int) -> nn.Module:
    """Build the norm of the settings."""
    return nn.LayerNorm(width) if config.norm == "layer_norm" else nn.RMSNorm(width, eps=1e-5)


def block_norm_of(config: EncoderConfig, width: int) -> nn.Module:
    """Build the norm of a sub-layer, or with `candidate_norms` that of events and that of candidates."""
    if config.candidate_norms:
        return GroupNorm(norm_of(config, width), norm_of(config, width))
    return norm_of(config, width)


class OutputHead(nn.Module):
    """The layer before the scores of BERT4Rec: norm(gelu(W x)), (n, D) to (n, D) (Sun et al. 2019, eq. 7, and their code)."""

    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        self.into = nn.Linear(width, width)
        self.norm = norm_of(config, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(F.gelu(self.into(x)))
        return output
