"""Pooling of a history into one vector: an average of its encoded events, weighted by a learned query.

Shapes: N total events, n histories that are not empty, D model width, H heads, K head width.
"""

import torch
from torch import Tensor, nn

from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms


class AttentionPooling(nn.Module):
    """Attention pooling: pooled_i = sum over j <= i of softmax_j(q . k_j / sqrt(K)) v_j.

    The formula is that of Yang et al. 2016 (NAACL, eq. 5-7), for every prefix of a history. It is attention with equal queries,
    so every prefix is pooled at once, and no event sees a later one. Under a bidirectional mask each event represents the whole
    history. If the context requests last events only, whole histories alone are pooled, (n, D).
    """

    def __init__(self, width: int, attention: AttentionConfig) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_width = width // attention.num_heads
        self.config = AttentionConfig(num_heads=attention.num_heads, mask=attention.mask)
        self.query = nn.Parameter(torch.zeros(self.num_heads, self.head_width))
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> Tensor:
        query, key, value, _ = self.heads(x_ND, context)
        return self.output_of(attend(query, key, value, context, self.terms()).output, None)

    def heads(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return queries, keys and values as they are attended with, and no gate."""
        num_events = x_ND.shape[0]
        key, value = self.key_value(x_ND).view(num_events, 2, self.num_heads, self.head_width).unbind(dim=1)
        num_queries = num_events if context.chosen is None else context.chosen.shape[0]
        return self.query.to(key.dtype).expand(num_queries, -1, -1), key, value, None

    def output_of(self, seen: Tensor, gate: None) -> Tensor:
        """Return the output, (n, D), of attended values (n, 1, H, V)."""
        output: Tensor = self.output(seen.flatten(1))
        return output

    def terms(self) -> AttentionTerms:
        """Return the form of the attention."""
        return AttentionTerms(self.config, self.head_width**-0.5, 1)
