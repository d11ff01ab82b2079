"""The loss of a batch under the configured objective.

Shapes: T targets, U items of the batch, D model width.
"""

import torch
from torch import Tensor

from models.batches.catalogue_share import CatalogueShare
from models.batches.history_batch import FIRST_ITEM, HistoryBatch
from models.compiled.softmax import SoftmaxKernels
from models.objectives.config import (
    BceConfig,
    FullSoftmaxConfig,
    GbceConfig,
    ObjectiveConfig,
    SampledObjectiveConfig,
    SampledSoftmaxConfig,
)
from models.objectives.sampled import (
    SampledTargets,
    balanced_offset,
    binary_cross_entropy,
    gbce_beta,
    sampled_softmax_cross_entropy,
)
from models.objectives.shared_softmax import shared_softmax_cross_entropy
from models.objectives.softmax import scale_vectors, softmax_cross_entropy


def loss_of(
    objective: ObjectiveConfig,
    user_TD: Tensor,
    items_UD: Tensor,
    batch: HistoryBatch,
    kernels: SoftmaxKernels | None = None,
) -> Tensor:
    """Return the sum of the loss over the targets of the batch, a scalar.

    The sum and all scores are in float32 at least. Under autocast GPUs round the factors of scores, and all devices round the
    factors of gradients (models.objectives.products).

    Args:
        objective: the settings.
        user_TD: the encoded history of each target.
        items_UD: the vectors of the items of the batch.
        batch: the targets and negatives.
        kernels: the compiled kernels, if they are to be used.
    """
    exact = torch.promote_types(torch.promote_types(user_TD.dtype, items_UD.dtype), torch.float32)
    user_TD, items_UD = (scale_vectors(vectors.to(exact), objective.normalize) for vectors in (user_TD, items_UD))
    match objective:
        case FullSoftmaxConfig() if batch.share is not None:
            return _shared_softmax(objective, user_TD, items_UD, batch, batch.share)
        case FullSoftmaxConfig():
            candidates_CD = items_UD[FIRST_ITEM : batch.num_candidates]
            target_T = batch.target_ids - FIRST_ITEM
            smoothing = objective.label_smoothing
            return softmax_cross_entropy(user_TD, candidates_CD, target_T, objective.temperature, smoothing, kernels)
        case SampledSoftmaxConfig():
            return sampled_softmax_cross_entropy(_sample(objective, user_TD, items_UD, batch), kernels)
        case BceConfig():
            weights = 1.0, objective.negatives_per_target / objective.num_negatives
            return _binary(objective, _sample(objective, user_TD, items_UD, batch), weights, batch, kernels)
        case GbceConfig():
            num_items = batch.num_candidates - FIRST_ITEM
            beta = gbce_beta(objective.num_negatives, num_items, objective.calibration)
            return _binary(objective, _sample(objective, user_TD, items_UD, batch), (beta, 1.0), batch, kernels)


def _shared_softmax(
    objective: FullSoftmaxConfig, user_TD: Tensor, items_UD: Tensor, batch: HistoryBatch, share: CatalogueShare
) -> Tensor:
    own_KD = items_UD[share.place : share.place + share.stop - share.first]
    return shared_softmax_cross_entropy(
        user_TD,
        own_KD,
        batch.target_ids,
        share,
        batch.num_candidates - FIRST_ITEM,
        temperature=objective.temperature,
        label_smoothing=objective.label_smoothing,
    )


def _binary(
    objective: BceConfig | GbceConfig,
    sample: SampledTargets,
    weights: tuple[float, float],
    batch: HistoryBatch,
    kernels: SoftmaxKernels | None,
) -> Tensor:
    offset = balanced_offset(sample, *weights, batch.num_candidates - FIRST_ITEM, objective.balanced)
    return binary_cross_entropy(sample, *weights, offset, kernels)


def _sample(
    objective: SampledObjectiveConfig, user_TD: Tensor, items_UD: Tensor, batch: HistoryBatch
) -> SampledTargets:
    return SampledTargets(
        user_TD,
        items_UD.index_select(0, batch.target_index),
        items_UD.index_select(0, batch.negative_index),
        batch.target_ids,
        batch.negative_ids,
        objective.temperature,
        batch.target_log_q,
        batch.negative_log_q,
    )
