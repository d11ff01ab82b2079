"""Causal self-attention over jagged histories: one plain reference, one fast path behind the same signature.

Shapes: N total events, H heads, K head width, B histories, L longest history of a padded block.
The invariant: an event attends to itself and to earlier events of its own history, and to nothing else.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from models.jagged import JaggedLayout


def causal_attention_reference(query_NHK: Tensor, key_NHK: Tensor, value_NHK: Tensor, layout: JaggedLayout) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, one history at a time (Vaswani et al. 2017, eq. 1, arXiv:1706.03762).

    The definition that every fast path is compared with. Returns (N, H, K).
    """
    pieces = []
    offsets = layout.offsets.tolist()
    for start, end in itertools.pairwise(offsets):
        query_HLK, key_HLK, value_HLK = (t[start:end].transpose(0, 1) for t in (query_NHK, key_NHK, value_NHK))
        scores_HLL = query_HLK @ key_HLK.transpose(-1, -2) / query_NHK.shape[-1] ** 0.5
        future_LL = torch.ones(end - start, end - start, dtype=torch.bool, device=scores_HLL.device).triu(1)
        weights_HLL = scores_HLL.masked_fill(future_LL, float("-inf")).softmax(dim=-1)
        pieces.append((weights_HLL @ value_HLK).transpose(0, 1))
    return torch.cat(pieces) if pieces else torch.zeros_like(value_NHK)


def causal_attention(query_NHK: Tensor, key_NHK: Tensor, value_NHK: Tensor, layout: JaggedLayout) -> Tensor:
    """The same function over length buckets, through torch's scaled_dot_product_attention. Returns (N, H, K).

    Histories are padded on the right, so under a causal mask no real event ever sees padding and no second mask is
    needed. Padding repeats event 0, whose outputs are dropped and which therefore receives no gradient from them.
    """
    output_NHK = torch.zeros_like(value_NHK)
    # One gather for all three: they share the index, and the packed (N, 3, H, K) rows are contiguous.
    packed_N3HK = torch.stack((query_NHK, key_NHK, value_NHK), dim=1)
    for bucket in layout.buckets:
        rows, longest = bucket.gather.shape
        block = packed_N3HK.index_select(0, bucket.gather.reshape(-1))
        query_BHLK, key_BHLK, value_BHLK = block.view(rows, longest, *packed_N3HK.shape[1:]).permute(2, 0, 3, 1, 4)
        attended_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, is_causal=True)
        flat = attended_BHLK.transpose(1, 2).reshape(rows * longest, *value_NHK.shape[1:])
        output_NHK = output_NHK.index_copy(0, bucket.scatter, flat.index_select(0, bucket.block_index))
    return output_NHK
