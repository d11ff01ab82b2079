"""The loss of a batch under the configured objective.

Shapes: T targets, U items of the batch, D model width.
"""

from torch import Tensor

from models.batch import FIRST_ITEM, HistoryBatch
from models.objectives.config import ObjectiveConfig, SampledSoftmaxConfig
from models.objectives.softmax import sampled_softmax_cross_entropy, scale_vectors, softmax_cross_entropy


def loss_of(objective: ObjectiveConfig, user_TD: Tensor, items_UD: Tensor, batch: HistoryBatch) -> Tensor:
    """Sum over the targets of the batch, a scalar. user_TD: what was encoded where each target is to be found."""
    user_TD, items_UD = scale_vectors(user_TD, objective.normalize), scale_vectors(items_UD, objective.normalize)
    if isinstance(objective, SampledSoftmaxConfig):
        positive_TD, negative_CD = items_UD[batch.target_index], items_UD[batch.negative_index]
        hit_TC = batch.target_ids[:, None] == batch.negative_ids[None, :]
        return sampled_softmax_cross_entropy(user_TD, positive_TD, negative_CD, hit_TC, objective.temperature)
    candidates_CD = items_UD[FIRST_ITEM : batch.num_candidates]
    return softmax_cross_entropy(user_TD, candidates_CD, batch.target_ids - FIRST_ITEM, objective.temperature)
