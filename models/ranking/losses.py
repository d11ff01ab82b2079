"""Losses of one label's logits: of every impression by itself, or over the impressions of one user.

    bce        -log sigmoid(z),  z = s for positives and -s for negatives
    focal      -sigmoid(-z)^gamma log sigmoid(z)                      (Lin et al. 2017, arXiv:1708.02002, equation 4, without alpha)
    pairwise   n / (P Q) sum over pairs (i positive, j negative) of a user of log(1 + exp(s_j - s_i))
                                                                          (RankNet: Burges et al. 2005, doi:10.1145/1102351.1102363)
    listwise   -n / P sum over positives i of a user of log softmax(s)_i  (ListNet: Cao et al. 2007, doi:10.1145/1273496.1273513)

A user has n impressions, P positive and Q negative. The factors are our own: each user counts by its number of impressions, as
in GAUC, and not by its number of pairs. Users without both kinds do not count. All losses are sums over impressions, never
means.

Shapes: M impressions, B users.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import devices

CHUNK_PAIRS = 1 << 18  # held at a time: about 10 MiB
GPU_CHUNK_PAIRS = 1 << 24  # about 640 MiB; with fewer a GPU would wait for the host


def chunk_pairs(device: torch.device) -> int:
    """Return how many pairs are held at a time on a device."""
    return CHUNK_PAIRS if devices.is_host(device) else GPU_CHUNK_PAIRS


def pointwise(kind: Literal["bce", "focal"], logits_M: Tensor, positive_M: Tensor, focusing: float = 0.0) -> Tensor:
    """Return the loss of each impression, (M,). `positive_M`: bool."""
    signed_M = torch.where(positive_M, logits_M, -logits_M)
    losses_M = F.softplus(-signed_M)
    return losses_M if kind == "bce" else losses_M * torch.sigmoid(-signed_M).pow(focusing)


def pairwise(logits_M: Tensor, positive_M: Tensor, defined_M: Tensor, user_M: Tensor, num_users: int) -> Tensor:
    """Return the sum over users, a scalar. Memory is bounded for any number of pairs; time is proportional to it.

    Args:
        logits_M: (M,).
        positive_M: (M,) bool.
        defined_M: (M,) bool, the impressions that count.
        user_M: (M,) int64, ascending.
        num_users: B.
    """
    weight_B = _pair_weights(positive_M, defined_M, user_M, num_users)
    positives = (positive_M & defined_M).nonzero().squeeze(1)
    negatives = (~positive_M & defined_M).nonzero().squeeze(1)
    return _Pairs.apply(logits_M, positives, negatives, user_M, weight_B)  # type: ignore[no-any-return]


def listwise(logits_M: Tensor, positive_M: Tensor, defined_M: Tensor, user_M: Tensor, num_users: int) -> Tensor:
    """Return the sum over users, a scalar. The arguments are those of `pairwise`."""
    count_B, positive_B, negative_B = _counts(positive_M, defined_M, user_M, num_users)
    ranked_B = (positive_B > 0) & (negative_B > 0)
    masked_M = logits_M.masked_fill(~defined_M, float("-inf"))
    highest_B = torch.full_like(count_B, float("-inf"), dtype=logits_M.dtype)
    highest_B = highest_B.scatter_reduce(0, user_M, masked_M.detach(), "amax")
    highest_B = torch.where(highest_B.isfinite(), highest_B, 0.0)
    total_B = torch.zeros_like(highest_B).index_add(0, user_M, (masked_M - highest_B[user_M]).exp())
    log_total_B = highest_B + torch.where(ranked_B, total_B, 1.0).log()
    weight_B = torch.where(ranked_B, count_B / positive_B.clamp(min=1), 0.0).to(logits_M.dtype)
    losses_M = (log_total_B[user_M] - logits_M) * weight_B[user_M]
    return torch.where(positive_M & defined_M, losses_M, 0.0).sum()


def _counts(positive_M: Tensor, defined_M: Tensor, user_M: Tensor, num_users: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of impressions, positives and negatives of each user, (B,) float64."""
    zeros_B = torch.zeros(num_users, dtype=torch.float64, device=user_M.device)
    count_B = zeros_B.index_add(0, user_M, defined_M.double())
    positive_B = zeros_B.index_add(0, user_M, (defined_M & positive_M).double())
    return count_B, positive_B, count_B - positive_B


def _pair_weights(positive_M: Tensor, defined_M: Tensor, user_M: Tensor, num_users: int) -> Tensor:
    count_B, positive_B, negative_B = _counts(positive_M, defined_M, user_M, num_users)
    return count_B / (positive_B * negative_B).clamp(min=1.0)


class _Pairs(torch.autograd.Function):
    """Loss and gradient in one pass over the pairs, a chunk at a time, so that nothing of a chunk is kept.

    Pairs are numbered by their positive, and within it by the consecutive negatives of its user.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_M: Tensor, positives: Tensor, negatives: Tensor, user_M: Tensor, weight_B: Tensor
    ) -> Tensor:
        negative_B = torch.bincount(user_M[negatives], minlength=weight_B.numel())
        first_B = negative_B.cumsum(0) - negative_B
        user = user_M[positives]
        ends = negative_B[user].cumsum(0)
        base = first_B[user] - (ends - negative_B[user])  # from the number of a pair to that of its negative
        weight = weight_B[user].to(logits_M.dtype)
        # The number of pairs determines the number of chunks, so the host waits for it.
        num_pairs = int(ends[-1]) if ends.numel() else 0
        loss = logits_M.new_zeros((), dtype=torch.float64)
        gradient_M = torch.zeros_like(logits_M)
        chunk = chunk_pairs(logits_M.device)
        for start in range(0, num_pairs, chunk):
            pair = torch.arange(start, min(start + chunk, num_pairs), device=logits_M.device)
            place = torch.searchsorted(ends, pair, right=True)
            higher = positives[place]
            lower = negatives[pair + base[place]]
            wrong = logits_M[lower] - logits_M[higher]
            loss += (weight[place] * F.softplus(wrong)).sum()
            pull = weight[place] * torch.sigmoid(wrong)
            gradient_M.index_add_(0, lower, pull)
            gradient_M.index_add_(0, higher, pull, alpha=-1)
        ctx.save_for_backward(gradient_M)
        return loss.to(logits_M.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_M,) = ctx.saved_tensors
        return upstream * gradient_M, None, None, None, None
