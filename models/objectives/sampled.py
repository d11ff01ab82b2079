"""Objectives that compare each target with negatives which all targets share: sums over targets, never averages.

Shapes: T targets, C negatives, R targets of a chunk, D model width.
A negative that is the target itself (an accidental hit) counts as not drawn for that target. `log_q` is the logarithm of the
probability with which a single draw gives an item; where it is none, scores are taken as they are.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from models.objectives.chunked_scores import exponentials, sum_over_scores


@dataclass(frozen=True)
class Sample:
    """Targets and what they are compared with.

    users (T, D): what was encoded for each target; positives (T, D): the targets' own vectors; negatives (C, D).
    target_ids (T,), negative_ids (C,): int64, to know accidental hits. target_log_q (T,), negative_log_q (C,): see above.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    target_ids: Tensor
    negative_ids: Tensor
    temperature: float = 1.0
    target_log_q: Tensor | None = None
    negative_log_q: Tensor | None = None

    @property
    def num_negatives(self) -> int:
        return self.negatives.shape[0]

    @property
    def own_scores(self) -> Tensor:
        """The targets' own scores."""
        return (self.users * self.positives).sum(dim=-1) / self.temperature

    def without_hits(self, scores_RC: Tensor, rows: slice) -> Tensor:
        """The scores of some targets, in place, with minus infinity where a negative is the target."""
        if scores_RC.device.type != "cpu":
            return scores_RC.masked_fill_(self.target_ids[rows, None] == self.negative_ids, float("-inf"))
        # Hits are few, and comparing all pairs would cost as much as a matrix product: they are looked up among sorted negatives.
        order_C, first_T, count_T = self._hits
        count_R = count_T[rows]
        row = torch.arange(count_R.numel()).repeat_interleave(count_R)
        place = torch.arange(row.numel()) + (first_T[rows] - (count_R.cumsum(0) - count_R))[row]
        scores_RC.view(-1).index_fill_(0, row * scores_RC.shape[1] + order_C[place], float("-inf"))
        return scores_RC

    @cached_property
    def _hits(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order of the negatives by id, first place in it of each target's own negatives, how many they are)."""
        ascending, order_C = self.negative_ids.sort()
        first_T = torch.searchsorted(ascending, self.target_ids)
        return order_C, first_T, torch.searchsorted(ascending, self.target_ids, right=True) - first_T


def sampled_softmax_reference(sample: Sample) -> Tensor:
    """sum_t log(exp(s_t+) + sum over c != t+ of exp(s_tc) / (C q_c)) - s_t+, holding all T x C scores. Returns a scalar.

    The sum over negatives, weighted by importance, has the sum over the other items of the catalogue as its expectation (Bengio &
    Senecal 2008), so that with many negatives this is the cross-entropy over the catalogue. The target's own score is not
    corrected, since it is in the sum with certainty; Yi et al. 2019 correct it too, which biases the sum (Khrylchenko
    et al. 2025, arXiv:2507.09331). Without log_q the factor 1 / (C q_c) is 1.
    """
    scores_TC = sample.users @ sample.negatives.T / sample.temperature
    if sample.negative_log_q is not None:
        scores_TC = scores_TC - (sample.negative_log_q + math.log(sample.num_negatives))
    scores_TC = scores_TC.masked_fill(sample.target_ids[:, None] == sample.negative_ids, float("-inf"))
    own_T = sample.own_scores
    return (torch.logsumexp(torch.cat((own_T[:, None], scores_TC), dim=1), dim=1) - own_T).sum()


def sampled_softmax_cross_entropy(sample: Sample) -> Tensor:
    """Equal to the reference in value and gradient; memory O(chunk_elements + T D + C D). Costs 6 T C D operations."""
    own_T = sample.own_scores
    if not sample.num_negatives:
        return own_T.sum() * 0.0
    shift_C = None
    if sample.negative_log_q is not None:
        shift_C = sample.negative_log_q + math.log(sample.num_negatives)
    own_values_T = own_T.detach()

    def row_loss(scores_RC: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        if shift_C is not None:
            scores_RC.sub_(shift_C)
        sample.without_hits(scores_RC, rows)
        own_R = own_values_T[rows]
        largest_R = torch.maximum(scores_RC.amax(dim=1), own_R)
        exponentials(scores_RC.sub_(largest_R[:, None]))
        own_weight_R = (own_R - largest_R).exp_()
        total_R = scores_RC.sum(dim=1) + own_weight_R
        scores_RC.mul_((1.0 / total_R)[:, None])
        return (total_R.log() + largest_R - own_R).sum(), own_weight_R / total_R - 1.0

    return sum_over_scores(sample.users, sample.negatives, own_T, row_loss, sample.temperature)


def binary_cross_entropy_reference(
    sample: Sample, positive_weight: float, negative_weight: float, offset: float = 0.0
) -> Tensor:
    """sum_t -a log sigmoid(s_t+) - b sum over c != t+ of log(1 - sigmoid(s_tc)), holding all T x C scores. Returns a scalar.

    With a = 1 and b = 1 / C this is the loss of SASRec (Kang & McAuley 2018, arXiv:1808.09781) in expectation, in which each
    target has one negative of its own; with a < 1 that of gSASRec, see `gbce_beta`. Every score is lessened by `offset`, and with
    log_q by that too, as in noise-contrastive estimation (Mnih & Teh 2012, arXiv:1206.6426): then the best scores are the
    logarithms of probabilities, up to a constant, whatever the negatives' distribution.
    """
    own_T, scores_TC = sample.own_scores - offset, sample.users @ sample.negatives.T / sample.temperature - offset
    if sample.negative_log_q is not None and sample.target_log_q is not None:
        own_T, scores_TC = own_T - sample.target_log_q, scores_TC - sample.negative_log_q
    scores_TC = scores_TC.masked_fill(sample.target_ids[:, None] == sample.negative_ids, float("-inf"))
    return -positive_weight * F.logsigmoid(own_T).sum() - negative_weight * F.logsigmoid(-scores_TC).sum()


def balanced_offset(
    sample: Sample, positive_weight: float, negative_weight: float, num_items: int, balanced: bool
) -> float:
    """What binary cross-entropy takes from every score.

    Balanced: the logarithm of b C / a, so that scores of zero, with which training begins, have as large a gradient from the target
    as from all negatives together. Without it most of the gradient says at first that all scores are too high, and thousands
    of steps pass before items are told apart. Corrected scores are then counted from that of an item with probability 1 / items.
    """
    log_weight = math.log(negative_weight * max(1, sample.num_negatives))
    if sample.negative_log_q is not None:
        return log_weight + (math.log(num_items / positive_weight) if balanced else 0.0)
    return log_weight - math.log(positive_weight) if balanced else 0.0


def binary_cross_entropy(sample: Sample, positive_weight: float, negative_weight: float, offset: float = 0.0) -> Tensor:
    """Equal to the reference in value and gradient; memory O(chunk_elements + T D + C D). Costs 6 T C D operations."""
    own_T, shift_C = sample.own_scores - offset, sample.users.new_full((1,), offset) if offset else None
    if sample.negative_log_q is not None and sample.target_log_q is not None:
        own_T, shift_C = own_T - sample.target_log_q, sample.negative_log_q + offset

    def row_loss(scores_RC: Tensor, rows: slice) -> tuple[Tensor, None]:
        if shift_C is not None:
            scores_RC.sub_(shift_C)
        sample.without_hits(scores_RC, rows)
        # Where torch gives x for log(1 + e^x), the two are equal in float64 too.
        loss = F.softplus(scores_RC, threshold=50.0).sum()
        scores_RC.sigmoid_().mul_(negative_weight)
        return loss * negative_weight, None

    negative = sum_over_scores(sample.users, sample.negatives, None, row_loss, sample.temperature)
    return negative - positive_weight * F.logsigmoid(own_T).sum()


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta of gBCE = a (t (1 - 1 / a) + 1 / a), a = negatives / (items - 1) (Petrov & Macdonald 2023, arXiv:2308.07192).

    The power to which the target's sigmoid is raised. Written as 1 - t (1 - a): 1 at t = 0, the sampling rate a at t = 1.
    """
    sampling_rate = min(1.0, num_negatives / max(1, num_items - 1))
    return 1.0 - calibration * (1.0 - sampling_rate)
