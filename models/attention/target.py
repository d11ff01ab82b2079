"""Target attention: what a candidate sees in the events of its history, whatever those were encoded as.

    s_mj = score(q_m, k_j) + b(m, j),   q = W_q c, k = W_k h, v = W_v h     (with `projection`; else q = c, k = v = h)
    seen_m = W_o (norm(sum over visible j of normalise(s_m)_j v_j) * u_m)   u = W_u c with `gate`

With the activation unit as score, raw scores as weights and no projections it is DIN's (Zhou et al. 2018, arXiv:1706.06978, eq. 3).
Shapes: N events, M candidates, D model width, H heads, G heads of keys and values, K head width (D / H), C channels.
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
    """width_out: of what it returns; that of the model if there are projections, else C times it."""

    def __init__(self, width: int, max_history: int, config: TargetAttentionConfig) -> None:
        super().__init__()
        self.config, self.max_history = config, max_history
        heads = config.num_heads
        self.head_width = width // heads
        seen, key_width = config.num_channels * width, config.key_value_heads * self.head_width
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
        """(M, width_out) and the penalty of the attention weights, scaled, or none."""
        query, key, value, gate = self._projected(event_ND, candidate_MD)
        if self.log_temperature is not None:
            query = (query * (-self.log_temperature).exp()[:, None]).to(key.dtype)
        if self.unit is not None:
            query, key = self.unit.candidate_terms(query), self.unit.event_terms(key)
        attended = attend_to_events(query, key, value, context, self._parts())
        seen_MS = attended.output.flatten(1)
        if self.output_norm is not None:
            seen_MS = self.output_norm(seen_MS)
        if gate is not None:
            seen_MS = seen_MS * gate
        if self.config.projection:
            seen_MS = self.attention_output(seen_MS)
        penalty = attended.penalty
        return seen_MS, None if penalty is None else penalty * (self.config.penalty / self.config.num_heads)

    def _projected(self, event_ND: Tensor, candidate_MD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query (M, H, K), key and value (N, G, K), gate (M, C D) or none."""
        heads, shared, width = self.config.num_heads, self.config.key_value_heads, self.head_width
        if not self.config.projection:
            event = event_ND.unflatten(1, (heads, width))
            return candidate_MD.unflatten(1, (heads, width)), event, event, None
        asked, said = self.query(candidate_MD), self.key_value(event_ND)
        if self.config.projection_activation == "silu":
            asked, said = F.silu(asked), F.silu(said)
        query, *gate = asked.split(self.query_sizes, dim=-1)
        key, value = said.unflatten(1, (2, shared, width)).unbind(dim=1)
        return query.unflatten(1, (heads, width)), key, value, gate[0] if gate else None

    def _parts(self) -> AttentionTerms:
        config = self.config
        return AttentionTerms(
            config=config,
            scale=self.head_width**-0.5,
            silu_divisor=self.max_history,
            position=self.position_bias,
            time=self.time_bias,
            threshold=threshold_of(config.dropout) if self.training else 0,
            with_penalty=self.training and config.penalty != 0.0,
            unit=self.unit,
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from `generator` (CPU), in a fixed order: each matrix keeps the length of its input on average."""
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


def mean_of_events(event_ND: Tensor, context: CandidateContext) -> Tensor:
    """(M, D): the average of the events that each candidate sees; zeros if it sees none. Attention with equal scores."""
    num_candidates = context.layout.num_candidates
    query, key = event_ND.new_zeros((num_candidates, 1, 1)), event_ND.new_zeros((event_ND.shape[0], 1, 1))
    parts = AttentionTerms(PLAIN, 1.0, 1)
    return attend_to_events(query, key, event_ND[:, None], context, parts).output.flatten(1)
