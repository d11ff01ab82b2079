"""SASRec (Kang & McAuley 2018, arXiv:1808.09781) on jagged histories, with pre-norm blocks.

Shapes: N total events, D model width, H heads, K head width.
Deviations from the paper: layer norm before each sub-layer and once at the end (as in Xiong et al. 2020, arXiv:2002.04745);
positions count from the oldest event that is kept, so that no position depends on later events; GELU in the feed-forward part.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.attend import causal_attention
from models.dropout import Dropout
from models.encoders.config import SASRecConfig
from models.jagged import JaggedLayout


class SASRecBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Input and output (N, D)."""

    def __init__(self, width: int, config: SASRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        hidden = width * config.feed_forward_multiple
        self.attention_norm = nn.LayerNorm(width)
        # No bias: a softmax does not see a bias of the keys, so its gradient would be rounding noise, which Adagrad and Adam
        # turn into full steps; a bias of the values only repeats that of the output.
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, hidden)
        self.feed_forward_out = nn.Linear(hidden, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_ND: Tensor, layout: JaggedLayout) -> Tensor:
        num_events, width = x_ND.shape
        qkv = self.query_key_value(self.attention_norm(x_ND))
        query_NHK, key_NHK, value_NHK = qkv.view(num_events, 3, self.num_heads, width // self.num_heads).unbind(dim=1)
        attended_ND = causal_attention(query_NHK, key_NHK, value_NHK, layout).reshape(num_events, width)
        x_ND = x_ND + self.dropout(self.attention_output(attended_ND))
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(x_ND)))
        output_ND: Tensor = x_ND + self.dropout(self.feed_forward_out(hidden))
        return output_ND


class SASRec(nn.Module):
    """Encode every prefix of every history: output (N, D) at event i is a function of events up to i only."""

    def __init__(self, width: int, max_history: int, config: SASRecConfig) -> None:
        super().__init__()
        self.max_history = max_history
        self.positions = nn.Embedding(max_history, width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(width, config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(
        self,
        item_vectors_ND: Tensor,
        layout: JaggedLayout,
        times: Tensor | None = None,
        request_times: Tensor | None = None,
    ) -> Tensor:
        x_ND = item_vectors_ND + self.positions(layout.positions)
        x_ND = self.dropout(x_ND)
        for block in self.blocks:
            x_ND = block(x_ND, layout)
        normalised: Tensor = self.final_norm(x_ND)
        return normalised

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order: the same weights on every rank and device."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
