"""Objectives that compare each target with negatives, which all targets share. Losses are sums over targets, never averages.

Shapes: T targets, C negatives, R targets of a chunk, D model width.

A negative that is the target itself (an accidental hit) counts as not drawn for that target. `log_q` is the log of the
probability that a single draw gives an item. Scores are not corrected where it is None.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from models import devices
from models.compiled.softmax import Hits, SoftmaxKernels
from models.objectives.chunked_scores import exponentials, sum_over_scores
from models.objectives.known_gradients import with_gradients


@dataclass(frozen=True)
class SampledTargets:
    """Targets with their negatives."""

    users: Tensor  # (T, D), the encoded history of each target
    positives: Tensor  # (T, D), the vectors of the targets
    negatives: Tensor  # (C, D)
    target_ids: Tensor  # (T,) int64, to detect accidental hits
    negative_ids: Tensor  # (C,) int64
    temperature: float = 1.0
    target_log_q: Tensor | None = None  # (T,), see above
    negative_log_q: Tensor | None = None  # (C,), see above

    @property
    def num_negatives(self) -> int:
        return self.negatives.shape[0]

    @property
    def own_scores(self) -> Tensor:
        """Return the scores of the targets."""
        return (self.users * self.positives).sum(dim=-1) / self.temperature

    def without_hits(self, scores_RC: Tensor, rows: slice) -> Tensor:
        """Set the scores of some targets to minus infinity, in place, where the negative is the target."""
        if not devices.is_host(scores_RC.device):
            return scores_RC.masked_fill_(self.target_ids[rows, None] == self.negative_ids, float("-inf"))
        # Hits are few, and comparing all pairs would cost as much as a matrix product, so they are searched among sorted negatives.
        order_C, first_T, count_T = self.hits
        count_R = count_T[rows]
        row = torch.arange(count_R.numel()).repeat_interleave(count_R)
        place = torch.arange(row.numel()) + (first_T[rows] - (count_R.cumsum(0) - count_R))[row]
        scores_RC.view(-1).index_fill_(0, row * scores_RC.shape[1] + order_C[place], float("-inf"))
        return scores_RC

    @cached_property
    def hits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the negatives that are targets.

        The result is (order of the negatives by id, first place in it of each target's hits, number of hits of each target).
        """
        ascending, order_C = self.negative_ids.sort()
        first_T = torch.searchsorted(ascending, self.target_ids)
        return order_C, first_T, torch.searchsorted(ascending, self.target_ids, right=True) - first_T


def sampled_softmax_reference(sample: SampledTargets) -> Tensor:
    """Return sum_t log(exp(s_t+) + sum over c != t+ of exp(s_tc) / (C q_c)) - s_t+, a scalar, holding all T x C scores.

    The importance-weighted sum over negatives has the sum over the other items of the catalogue as its expectation (Bengio &
    Senecal 2008). So with many negatives this is the cross-entropy over the catalogue. The target's own score is not corrected,
    since it is in the sum with certainty. Yi et al. 2019 correct it too, which biases the sum (Khrylchenko et al. 2025,
    arXiv:2507.09331). Without log_q the factor 1 / (C q_c) is 1.
    """
    scores_TC = sample.users @ sample.negatives.T / sample.temperature
    if sample.negative_log_q is not None:
        scores_TC = scores_TC - (sample.negative_log_q + math.log(sample.num_negatives))
    scores_TC = scores_TC.masked_fill(sample.target_ids[:, None] == sample.negative_ids, float("-inf"))
    own_T = sample.own_scores
    return (torch.logsumexp(torch.cat((own_T[:, None], scores_TC), dim=1), dim=1) - own_T).sum()


def sampled_softmax_cross_entropy(sample: SampledTargets, kernels: SoftmaxKernels | None = None) -> Tensor:
    """Return the loss of `sampled_softmax_reference`, equal in value and gradient.

    Memory is O(chunk_elements + T D + C D). It costs 6 T C D operations.

    kernels: compute what they can; the rest is computed by torch.
    """
    shift_C = None
    if sample.negative_log_q is not None and sample.num_negatives:
        shift_C = sample.negative_log_q + math.log(sample.num_negatives)
    if kernels is not None and kernels.takes(sample.users, sample.positives, sample.negatives):
        return _compiled_cross_entropy(sample, shift_C, kernels)
    own_T = sample.own_scores
    if not sample.num_negatives:
        return own_T.sum() * 0.0
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


def _compiled_cross_entropy(sample: SampledTargets, shift_C: Tensor | None, kernels: SoftmaxKernels) -> Tensor:
    """Return the loss of `sampled_softmax_reference`, by the compiled kernels."""
    with torch.no_grad():
        own_T = sample.users.new_empty(sample.users.shape[0])
        terms = kernels.terms(
            *(sample.users, sample.negatives, own_T, sample.temperature),
            positive_TD=sample.positives,
            shift_C=shift_C,
            hits=Hits(*sample.hits),
        )
        loss = terms.total.sub_(own_T).sum()
    assert terms.positive_gradient is not None
    gradients = terms.user_gradient, terms.item_gradient, terms.positive_gradient
    return with_gradients(loss, (sample.users, sample.negatives, sample.positives), gradients)


def _compiled_binary_total(sample: SampledTargets, shift_C: Tensor | None, kernels: SoftmaxKernels) -> Tensor:
    """Return the sum over targets and negatives of log(1 + exp(score)), by the compiled kernels."""
    with torch.no_grad():
        shift_C = None if shift_C is None else shift_C.expand(sample.num_negatives)
        terms = kernels.binary_terms(sample.users, sample.negatives, sample.temperature, shift_C, Hits(*sample.hits))
        total = terms.total.sum()
    return with_gradients(total, (sample.users, sample.negatives), (terms.user_gradient, terms.item_gradient))


def binary_cross_entropy_reference(
    sample: SampledTargets, positive_weight: float, negative_weight: float, offset: float = 0.0
) -> Tensor:
    """Return sum_t -a log sigmoid(s_t+) - b sum over c != t+ of log(1 - sigmoid(s_tc)), a scalar, holding all T x C scores.

    a is `positive_weight` and b `negative_weight`. With a = 1 and b = 1 / C this is in expectation the loss of SASRec (Kang &
    McAuley 2018, arXiv:1808.09781), in which each target has one negative of its own. With a < 1 it is that of gSASRec, see
    `gbce_beta`. `offset` is subtracted from every score. With log_q that is subtracted too, as in noise-contrastive estimation
    (Mnih & Teh 2012, arXiv:1206.6426): then the best scores are logs of probabilities, up to a constant, for every distribution
    of negatives.
    """
    own_T = sample.own_scores - offset
    scores_TC = sample.users @ sample.negatives.T / sample.temperature - offset
    if sample.negative_log_q is not None and sample.target_log_q is not None:
        own_T = own_T - sample.target_log_q
        scores_TC = scores_TC - sample.negative_log_q
    scores_TC = scores_TC.masked_fill(sample.target_ids[:, None] == sample.negative_ids, float("-inf"))
    return -positive_weight * F.logsigmoid(own_T).sum() - negative_weight * F.logsigmoid(-scores_TC).sum()


def balanced_offset(
    sample: SampledTargets, positive_weight: float, negative_weight: float, num_items: int, balanced: bool
) -> float:
    """Return the number that binary cross-entropy subtracts from every score.

    Balanced, it is log(b C / a): scores of zero, with which training begins, then have as large a gradient from the target as
    from all negatives together. Otherwise most of the gradient at first lowers all scores, and thousands of steps pass before
    items are distinguished. Corrected scores then count from that of an item with probability 1 / items.
    """
    log_weight = math.log(negative_weight * max(1, sample.num_negatives))
    if sample.negative_log_q is not None:
        return log_weight + (math.log(num_items / positive_weight) if balanced else 0.0)
    return log_weight - math.log(positive_weight) if balanced else 0.0


def binary_cross_entropy(
    sample: SampledTargets,
    positive_weight: float,
    negative_weight: float,
    offset: float = 0.0,
    kernels: SoftmaxKernels | None = None,
) -> Tensor:
    """Return the loss of `binary_cross_entropy_reference`, equal in value and gradient.

    Memory is O(chunk_elements + T D + C D). It costs 6 T C D operations.

    kernels: compute what they can; the rest is computed by torch.
    """
    own_T = sample.own_scores - offset
    shift_C = sample.users.new_full((1,), offset) if offset else None
    if sample.negative_log_q is not None and sample.target_log_q is not None:
        own_T = own_T - sample.target_log_q
        shift_C = sample.negative_log_q + offset

    positive = positive_weight * F.logsigmoid(own_T).sum()
    if kernels is not None and kernels.takes(sample.users, sample.negatives):
        return negative_weight * _compiled_binary_total(sample, shift_C, kernels) - positive

    def row_loss(scores_RC: Tensor, rows: slice) -> tuple[Tensor, None]:
        if shift_C is not None:
            scores_RC.sub_(shift_C)
        sample.without_hits(scores_RC, rows)
        # Above the threshold torch returns x for log(1 + e^x); at 50 the two are equal in float64 too.
        loss = F.softplus(scores_RC, threshold=50.0).sum()
        scores_RC.sigmoid_().mul_(negative_weight)
        return loss * negative_weight, None

    negative = sum_over_scores(sample.users, sample.negatives, None, row_loss, sample.temperature)
    return negative - positive


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """Return the power of the target's sigmoid in gBCE (Petrov & Macdonald 2023, arXiv:2308.07192).

    beta = a (t (1 - 1 / a) + 1 / a) with the sampling rate a = negatives / (items - 1). It is computed as 1 - t (1 - a): 1 at t
    = 0, and a at t = 1.
    """
    sampling_rate = min(1.0, num_negatives / max(1, num_items - 1))
    return 1.0 - calibration * (1.0 - sampling_rate)
