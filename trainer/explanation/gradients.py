"""Gradients of scores with respect to the vectors of events, and gradient x input.

    a_j = sum over d of  x_jd  dF/dx_jd          (Shrikumar et al. 2016, arXiv:1605.01713, section 3)

x_j is the vector of event j with its features and times, before positions are added: what differs between events that stand at the
same place. Shapes: B questions, N events, D model width.
"""

import numpy as np
import torch
from torch import Tensor

from trainer.explanation.attribution import Attribution
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, Prepared, pieces
from trainer.explanation.questions import Questions


def score_and_gradient(model: Explained, prepared: Prepared, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores (B,) at some vectors of events, and the gradient of each with respect to the vectors, (N, D).

    No question depends on another one's events, so that the gradient of the sum is the gradient of each.
    """
    leaf = vectors.detach().requires_grad_()
    with torch.enable_grad():
        scores = model.scores(prepared, leaf)
        gradient = None
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    return scores.detach(), torch.zeros_like(leaf) if gradient is None else gradient


def attribute(model: Explained, asked: Questions, internal_batch_size: int | None = None) -> Attribution:
    """Return gradient x input of each event. Collective.

    Args:
        model: the model.
        asked: the questions.
        internal_batch_size: number of events that are encoded at a time.
    """
    values = np.zeros(asked.items.size, np.float32)
    scores = np.zeros(asked.size, np.float32)
    for piece in pieces(asked.lengths, internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        prepared = model.prepare(asked.part(piece.start, piece.stop))
        with torch.no_grad():
            vectors = model.vectors(prepared)
        of_piece, gradient = score_and_gradient(model, prepared, vectors)
        scores[piece] = of_piece.cpu().numpy()
        values[asked.offsets[piece.start] : asked.offsets[piece.stop]] = (gradient * vectors).sum(dim=1).cpu().numpy()
    return Attribution("gradient_x_input", values, asked.offsets, scores)
