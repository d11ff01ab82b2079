"""The loss of a batch under the configured objective.

Shapes: T targets, U items of the batch, D model width.
"""

import torch
from torch import Tensor

from models.batch import FIRST_ITEM, HistoryBatch
from models.objectives.config import (
    BceConfig,
    FullSoftmaxConfig,
    GbceConfig,
    ObjectiveConfig,
    SampledObjectiveConfig,
    SampledSoftmaxConfig,
)
from models.objectives.sampled import Sample, binary_cross_entropy, gbce_beta, sampled_softmax_cross_entropy
from models.objectives.softmax import scale_vectors, softmax_cross_entropy


def loss_of(objective: ObjectiveConfig, user_TD: Tensor, items_UD: Tensor, batch: HistoryBatch) -> Tensor:
    """Sum over the targets of the batch, a scalar. user_TD: what was encoded where each target is to be found.

    The sum and all scores are in float32 at least; under autocast the factors of matrix products are rounded.
    """
    exact = torch.promote_types(torch.promote_types(user_TD.dtype, items_UD.dtype), torch.float32)
    user_TD, items_UD = (scale_vectors(vectors.to(exact), objective.normalize) for vectors in (user_TD, items_UD))
    match objective:
        case FullSoftmaxConfig():
            candidates_CD, target_T = items_UD[FIRST_ITEM : batch.num_candidates], batch.target_ids - FIRST_ITEM
            smoothing = objective.label_smoothing
            return softmax_cross_entropy(user_TD, candidates_CD, target_T, objective.temperature, smoothing)
        case SampledSoftmaxConfig():
            return sampled_softmax_cross_entropy(_sample(objective, user_TD, items_UD, batch))
        case BceConfig():
            weight = objective.negatives_per_target / objective.num_negatives
            return binary_cross_entropy(_sample(objective, user_TD, items_UD, batch), 1.0, weight)
        case GbceConfig():
            num_items = batch.num_candidates - FIRST_ITEM
            beta = gbce_beta(objective.num_negatives, num_items, objective.calibration)
            return binary_cross_entropy(_sample(objective, user_TD, items_UD, batch), beta, 1.0)


def _sample(objective: SampledObjectiveConfig, user_TD: Tensor, items_UD: Tensor, batch: HistoryBatch) -> Sample:
    return Sample(
        user_TD,
        items_UD.index_select(0, batch.target_index),
        items_UD.index_select(0, batch.negative_index),
        batch.target_ids,
        batch.negative_ids,
        objective.temperature,
        batch.target_log_q,
        batch.negative_log_q,
    )
