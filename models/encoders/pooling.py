"""A history as one vector: an average of what its events were encoded as, weighted by a learned query.

Shapes: N total events, D model width, H heads, K head width.
"""

import torch
from torch import Tensor, nn

from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms


class AttentionPooling(nn.Module):
    """pooled_i = sum over j <= i of softmax_j(q . k_j / sqrt(K)) v_j (Yang et al. 2016, NAACL, eq. 5-7, of prefixes).

    It is attention whose queries are all the same, so every prefix is pooled at once, and no event sees a later one. Under a
    bidirectional mask each event stands for the whole history.
    """

    def __init__(self, width: int, attention: AttentionConfig) -> None:
        super().__init__()
        self.num_heads, self.head_width = attention.num_heads, width // attention.num_heads
        self.config = AttentionConfig(num_heads=attention.num_heads, mask=attention.mask)
        self.query = nn.Parameter(torch.zeros(self.num_heads, self.head_width))
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> Tensor:
        num_events, width = x_ND.shape
        key, value = self.key_value(x_ND).view(num_events, 2, self.num_heads, self.head_width).unbind(dim=1)
        query = self.query.to(key.dtype).expand(num_events, -1, -1)
        parts = AttentionTerms(self.config, self.head_width**-0.5, 1)
        pooled = attend(query, key, value, context, parts).output.reshape(num_events, width)
        output: Tensor = self.output(pooled)
        return output
