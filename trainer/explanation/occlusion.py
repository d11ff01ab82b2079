"""Leave-one-event-out occlusion: how much the score falls when one event is removed (Zeiler & Fergus 2014, arXiv:1311.2901).

    a_j = score(history) - score(history without event j)

One variant per event is scored, many of them in one batch.
"""

from collections.abc import Callable

import numpy as np
import torch

from trainer.explanation.attribution import Attribution
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, pieces, score
from trainer.explanation.questions import Questions
from trainer.explanation.removal import Removal, variants

RemovedOf = Callable[[np.ndarray], np.ndarray]


def attribute(
    model: Explained,
    asked: Questions,
    how: Removal = "deleted",
    pool: Questions | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
) -> Attribution:
    """Return the fall of the score for each event. Collective.

    Args:
        model: the model.
        asked: the questions.
        how: what removal means.
        pool: for "replaced", questions with the events to draw from; the same on every worker.
        seed: for "replaced".
        internal_batch_size: number of events that are encoded at a time.
    """
    base = score(model, asked, internal_batch_size)

    def only_one(numbers: np.ndarray) -> np.ndarray:
        """Return which event each variant removes: variant n removes event n."""
        lengths = asked.lengths[asked.owner[numbers]]
        ends = np.cumsum(lengths)
        removed = np.zeros(int(lengths.sum()), np.bool_)
        removed[ends - lengths + asked.places[numbers]] = True
        return removed

    without = score_variants(model, asked, asked.owner, only_one, how, pool, seed, internal_batch_size)
    return Attribution("occlusion", base[asked.owner] - without, asked.offsets, base)


@torch.no_grad()
def score_variants(
    model: Explained,
    asked: Questions,
    owner: np.ndarray,
    removed_of: RemovedOf,
    how: Removal = "deleted",
    pool: Questions | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
) -> np.ndarray:
    """Return the scores of variants of questions, (V,) float32. Collective.

    Args:
        model: the model.
        asked: the questions.
        owner: (V,) question of each variant, in any order.
        removed_of: returns for the numbers of some variants, (n,), which events of `asked.take(owner[numbers])` are removed,
            as packed bool.
        how: what removal means.
        pool: for "replaced", questions with the events to draw from.
        seed: for "replaced".
        internal_batch_size: number of events that are encoded at a time.
    """
    scores = np.zeros(owner.size, np.float32)
    parts = pieces(asked.lengths[owner], internal_batch_size or INTERNAL_BATCH_EVENTS, model)
    for piece, variant in variants(asked, owner, removed_of, how, parts, pool, seed):
        prepared = model.prepare(variant)
        scores[piece] = model.scores(prepared, model.vectors(prepared)).cpu().numpy()
    return scores
