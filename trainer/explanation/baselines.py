"""Baselines of integrated gradients: the vectors of events from which a path to the history begins.

    zero       vectors of zeros
    mean       for every event the mean vector of the events of a pool
    sampled    the events of real histories of a pool (Erion et al. 2021, arXiv:1906.10670), several for each question

A sampled history is aligned at the newest event. A shorter one begins again from its newest event. It is never the history of the
question itself. The pool is the same on every worker, and draws depend on the key of a question, so results do not depend on the
number of workers.

Shapes: N events, P events of the pool, D model width, S samples of each question.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.explanation.explained import Explained, pieces
from trainer.explanation.questions import Questions
from trainer.explanation.removal import draws


@dataclass(frozen=True)
class Baselines:
    """Baselines of one kind."""

    kind: str
    """"zero", "mean" or "sampled"."""
    vectors: Tensor
    """(P, D) vectors to choose from."""
    num_samples: int = 1
    """S, number of baselines of each question."""
    keys: np.ndarray | None = None
    """For "sampled", keys of the histories of the pool; None: the only vector is that of every event."""
    offsets: np.ndarray | None = None
    """For "sampled", bounds of these histories among the vectors."""
    seed: int = 0
    """Seed of the draws."""

    def index(self, asked: Questions, samples: np.ndarray) -> np.ndarray:
        """Return the vector of the baseline of each event, (N,) int64 among `vectors`.

        Args:
            asked: the questions.
            samples: (B,) which of its baselines each question gets, from 0.
        """
        if self.keys is None or self.offsets is None:
            return np.zeros(asked.items.size, np.int64)
        number = self.keys.size
        chosen = draws(asked.keys, samples, number, self.seed)
        chosen = np.where(self.keys[chosen] == asked.keys, (chosen + 1) % number, chosen)
        lengths = np.diff(self.offsets)
        from_newest = asked.lengths[asked.owner] - 1 - asked.places
        source = chosen[asked.owner]
        index: np.ndarray = self.offsets[source + 1] - 1 - from_newest % lengths[source]
        return index


def zero_baseline(model: Explained) -> Baselines:
    """Return the baseline of zeros."""
    return Baselines("zero", torch.zeros((1, model.trained.model.width)))


def mean_baseline(model: Explained, pool: Questions) -> Baselines:
    """Return the mean vector of the events of a pool, which is the same on every worker. Collective."""
    return Baselines("mean", pool_vectors(model, pool).double().mean(dim=0, keepdim=True).float())


def sampled_baselines(model: Explained, pool: Questions, num_samples: int = 5, seed: int = 0) -> Baselines:
    """Return sampled histories of a pool, which is the same on every worker. Collective.

    Args:
        model: the model.
        pool: questions with the histories; their targets are not used. Histories without events are left out.
        num_samples: number of histories for each question.
        seed: seed of the draws.
    """
    filled = pool.take(np.flatnonzero(pool.lengths))
    return Baselines("sampled", pool_vectors(model, filled), num_samples, filled.keys, filled.offsets, seed)


@torch.no_grad()
def pool_vectors(model: Explained, pool: Questions, most_events: int = 65_536) -> Tensor:
    """Return the vectors of the events of a pool, (P, D). Collective."""
    vectors = [
        model.vectors(model.prepare(pool.part(piece.start, piece.stop)))
        for piece in pieces(pool.lengths, most_events, model)
    ]
    return torch.cat(vectors)
