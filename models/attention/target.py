"""Target attention: a candidate attends to the encoded events of its history.

    s_mj = score(q_m, k_j) + b(m, j),   q = W_q c, k = W_k h, v = W_v h     (with `projection`; else q = c, k = v = h)
    seen_m = W_o (norm(sum over visible j of normalise(s_m)_j v_j) * u_m)   u = W_u c with `gate`

With the activation unit as score, raw scores as weights and no projections it is DIN's (Zhou et al. 2018, arXiv:1706.06978, eq.
3). Shapes: N events, M candidates, D model width, H heads, G heads of keys and values, K head width (D / H), C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.activation_unit import ActivationUnit
from models.attention.attend import attend_to_events
from models.attention.bias import PositionBias, TimeBias
from models.attention.candidates import CandidateContext
from models.attention.config import TargetAttentionConfig
from models.attention.layer import norm_of_seen
from models.attention.terms import AttentionTerms
from models.layers.dropout import threshold_of

PLAIN = TargetAttentionConfig()


class TargetAttention(nn.Module):
    """Target attention with an output of `width_out` numbers: D with projections, else C times D."""

    def __init__(self, width: int, max_history: int, config: TargetAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.max_history = max_history
        heads = config.num_heads
        self.head_width = width // heads
        seen = config.num_channels * width
        key_width = config.key_value_heads * self.head_width
        self.query_sizes = [width, *([seen] if config.gate else [])]
        self.width_out = width if config.projection else seen
        if config.projection:
            self.query = nn.Linear(width, sum(self.query_sizes), bias=False)
            self.key_value = nn.Linear(width, 2 * key_width, bias=False)
            self.attention_output = nn.Linear(seen, width, bias=config.output_bias)
        self.position_bias = (
            PositionBias(config.position_bias, heads, max_history + 1, False) if config.uses_position else None
        )
        self.time_bias = TimeBias(config.time_bias, heads) if config.uses_time else None
        self.log_temperature = nn.Parameter(torch.zeros(heads)) if config.temperature == "learned" else None
        self.output_norm = norm_of_seen(config.output_norm, seen)
        self.unit: ActivationUnit | None = None
        if config.score == "activation_unit":
            self.unit = ActivationUnit(heads, self.head_width, tuple(config.unit_hidden), config.unit_activation)

    def forward(
        self, event_ND: Tensor, candidate_MD: Tensor, context: CandidateContext
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended events (M, width_out) and the scaled penalty of the attention weights or None."""
        query, key, value, gate = self.heads(event_ND, candidate_MD)
        attended = attend_to_events(query, key, value, context, self.terms())
        penalty = attended.penalty
        scaled = None if penalty is None else penalty * (self.config.penalty / self.config.num_heads)
        return self.output_of(attended.output, gate), scaled

    def heads(self, event_ND: Tensor, candidate_MD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values as they are attended with, and the gate or None."""
        query, key, value, gate = self._projected(event_ND, candidate_MD)
        if self.log_temperature is not None:
            query = (query * (-self.log_temperature).exp()[:, None]).to(key.dtype)
        if self.unit is not None:
            query = self.unit.candidate_terms(query)
            key = self.unit.event_terms(key)
        return query, key, value, gate

    def output_of(self, seen: Tensor, gate: Tensor | None) -> Tensor:
        """Return the output, (M, width_out), of attended values (M, C, H, V)."""
        seen_MS = seen.flatten(1)
        if self.output_norm is not None:
            seen_MS = self.output_norm(seen_MS)
        if gate is not None:
            seen_MS = seen_MS * gate
        if self.config.projection:
            seen_MS = self.attention_output(seen_MS)
        return seen_MS

    def _projected(self, event_ND: Tensor, candidate_MD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return query (M, H, K), key and value (N, G, K), gate (M, C D) or None."""
        heads = self.config.num_heads
        shared = self.config.key_value_heads
        width = self.head_width
        if not self.config.projection:
            event = event_ND.unflatten(1, (heads, width))
            return candidate_MD.unflatten(1, (heads, width)), event, event, None
        from_candidate = self.query(candidate_MD)
        from_event = self.key_value(event_ND)
        if self.config.projection_activation == "silu":
            from_candidate = F.silu(from_candidate)
            from_event = F.silu(from_event)
        query, *gate = from_candidate.split(self.query_sizes, dim=-1)
        key, value = from_event.unflatten(1, (2, shared, width)).unbind(dim=1)
        return query.unflatten(1, (heads, width)), key, value, gate[0] if gate else None

    def terms(self) -> AttentionTerms:
        """Return the form of the attention."""
        config = self.config
        return AttentionTerms(
            config=config,
            scale=self.head_width**-0.5 / config.temperature_factor,
            silu_divisor=self.max_history,
            position=self.position_bias,
            time=self.time_bias,
            threshold=threshold_of(config.dropout) if self.training else 0,
            with_penalty=self.training and config.penalty != 0.0,
            unit=self.unit,
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from `generator` (CPU), in a fixed order. Each matrix keeps the length of its input on average."""
        matrices = [self.query, self.key_value, self.attention_output] if self.config.projection else []
        for matrix in matrices:
            shape = matrix.weight.shape
            matrix.weight.copy_(torch.empty(shape).normal_(0.0, shape[1] ** -0.5, generator=generator))
            if matrix.bias is not None:
                matrix.bias.zero_()
        for bias in (self.position_bias, self.time_bias):
            if bias is not None:
                for parameter in bias.parameters():
                    parameter.zero_()
                bias.initialize()
        if self.log_temperature is not None:
            self.log_temperature.zero_()
        if self.unit is not None:
            self.unit.initialize(generator)


class MeanOfEvents(nn.Module):
    """The average of the events that each candidate sees: attention with equal scores. It has no weights to learn."""

    def forward(self, event_ND: Tensor, candidate_MD: Tensor, context: CandidateContext) -> Tensor:
        """Return the averages, (M, D); zeros for a candidate that sees no event."""
        query, key, value, _ = self.heads(event_ND, candidate_MD)
        return attend_to_events(query, key, value, context, self.terms()).output.flatten(1)

    def heads(self, event_ND: Tensor, candidate_MD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return queries and keys of zeros, the events as values, and no gate."""
        query = event_ND.new_zeros((candidate_MD.shape[0], 1, 1))
        key = event_ND.new_zeros((event_ND.shape[0], 1, 1))
        return query, key, event_ND[:, None], None

    def output_of(self, seen: Tensor, gate: None) -> Tensor:
        """Return the averages, (M, D), of attended values (M, 1, 1, D)."""
        return seen.flatten(1)

    def terms(self) -> AttentionTerms:
        """Return the form of the attention."""
        return AttentionTerms(PLAIN, 1.0, 1)
