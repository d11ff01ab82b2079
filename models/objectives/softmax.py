"""Next-item objectives: sums of cross-entropies over targets, never averages.

The sum is divided by the number of targets of the *global* batch by the trainer, so that the gradient does not
depend on how many ranks share the batch. Shapes: T targets, C candidates, D model width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.objectives.products import add_product, product

CHUNK_ELEMENTS = 1 << 20  # logits held at a time; 4 MiB in float32 stays in the last-level cache


def scale_vectors(vectors: Tensor, normalize: bool) -> Tensor:
    """Divide each row by its Euclidean length if asked (rows of zeros stay zero)."""
    return F.normalize(vectors, dim=-1, eps=1e-6) if normalize else vectors


def softmax_cross_entropy_reference(user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float) -> Tensor:
    """sum_t -log softmax(user_t . item / temperature)[target_t], holding all T x C logits. Returns a scalar."""
    return F.cross_entropy(user_TD @ item_CD.T / temperature, target_T, reduction="sum")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy whose logits exist one chunk of targets at a time.

    The gradient of the sum needs only softmax - onehot, so it is formed while the chunk's logits are still in cache:
    three matrix products and one exponential in all, and backward is a multiplication by the incoming scalar.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float
    ) -> Tensor:
        num_targets, num_candidates = user_TD.shape[0], item_CD.shape[0]
        rows = max(1, min(num_targets, CHUNK_ELEMENTS // num_candidates))
        buffer = user_TD.new_empty((rows, num_candidates))
        user_gradient, item_gradient = torch.empty_like(user_TD), torch.zeros_like(item_CD)
        losses = []
        for start in range(0, num_targets, rows):
            user_cD, target_c = user_TD[start : start + rows], target_T[start : start + rows]
            logits = buffer[: user_cD.shape[0]]
            product(user_cD / temperature, item_CD.T, logits)
            target_logit = logits.gather(1, target_c[:, None])
            largest = logits.amax(dim=1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            total = weights.sum(dim=1, keepdim=True)
            losses.append((total.log() + largest - target_logit).sum())
            # From here `weights` is softmax - onehot, the gradient of the sum with respect to the logits.
            weights.mul_(1.0 / total)
            weights.scatter_add_(1, target_c[:, None], weights.new_full((target_c.numel(), 1), -1.0))
            product(weights, item_CD, user_gradient[start : start + rows])
            add_product(item_gradient, weights.T, user_cD)
        ctx.save_for_backward(user_gradient.div_(temperature), item_gradient.div_(temperature))
        return torch.stack(losses).sum() if losses else user_TD.new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        user_gradient, item_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return user_gradient * grad_outputs[0], item_gradient * grad_outputs[0], None, None


def softmax_cross_entropy(user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float) -> Tensor:
    """Equal to the reference in value and gradient; memory O(CHUNK_ELEMENTS + T D + C D) instead of O(T C)."""
    loss: Tensor = _ChunkedCrossEntropy.apply(user_TD, item_CD, target_T, temperature)
    return loss


def sampled_softmax_cross_entropy(
    user_TD: Tensor, positive_TD: Tensor, negative_CD: Tensor, hit_TC: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of each target against its own vector and C shared negatives.

    Negatives are drawn uniformly, so the logQ correction (Bengio & Senecal 2008) is the same constant for all
    and cancels. hit_TC marks negatives that equal the row's target: they are left out of its denominator.
    """
    positive_T = (user_TD * positive_TD).sum(dim=-1) / temperature
    negative_TC = (user_TD @ negative_CD.T / temperature).masked_fill(hit_TC, float("-inf"))
    denominator_T = torch.logsumexp(torch.cat((positive_T[:, None], negative_TC), dim=1), dim=1)
    return (denominator_T - positive_T).sum()
