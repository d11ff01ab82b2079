"""Lists of a ranker by all workers: the best of given candidates for each user.

A batch has as many users as can be scored with all candidates at once, or one user with a part of them after another. So memory
is bounded, and all workers look up equally often.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.ranking.reach import reach_of
from sharding.world import World
from trainer.data.stream.impressions import gather_impressions, ranking_batch
from trainer.inference.lists import COLUMNS, list_table
from trainer.inference.moments import latest_time
from trainer.inference.ranking import (
    BATCH_ENTRIES,
    RankedCandidates,
    best_candidates,
    leave_out_viewed,
    with_candidates,
)
from trainer.inference.requests import Histories
from trainer.inference.stored import histories_in
from trainer.inference.trained_model import TrainedModel
from trainer.recommend.chosen_rows import RowBatches
from trainer.recommend.request import RecommendRequest


@dataclass(frozen=True)
class RankerLists:
    """Recommendations of a ranker on this worker."""

    trained: TrainedModel
    """The model, with sharded tables."""
    request: RecommendRequest
    """What is asked for."""
    world: World
    """The workers."""

    def scores(self, histories: Histories, at: np.ndarray, candidates: RankedCandidates, chunk: int) -> np.ndarray:
        """Return the weighted sum of the labels' probabilities, (B, C) float32. Collective.

        Args:
            histories: of B users.
            at: (B,) times at which the candidates are shown.
            candidates: the items.
            chunk: candidates that are scored at a time.
        """
        model: Any = self.trained.model
        reach = reach_of(model.config)
        names = tuple(self.trained.manifest.labels["names"])
        weights = torch.tensor(self.request.weights, dtype=torch.float32, device=self.world.device)
        number = histories.lengths.size
        rows = np.arange(number)
        pieces = []
        for start in range(0, candidates.ids.size, chunk):
            part = candidates.part(start, start + chunk)
            packed = with_candidates(histories.packed, histories.lengths, at, part, names)
            gathered = gather_impressions(packed, rows, np.zeros_like(rows), np.full_like(rows, chunk), rows, reach)
            batch = ranking_batch(gathered, self.trained.catalogue, reach)
            batch = replace(batch, items=self.trained.dynamic.rows_of(batch.items)).to(self.world.device)
            logits = model.logits(model.look_up(batch.items), batch)
            pieces.append((torch.sigmoid(logits) @ weights).cpu().numpy().reshape(number, chunk))
        scores: np.ndarray = np.concatenate(pieces, axis=1)[:, : candidates.ids.size]
        return scores


def users_at_a_time(num_candidates: int) -> int:
    """Return the number of users of a worker that are scored with all candidates at once."""
    return max(1, BATCH_ENTRIES // num_candidates)


def recommended(
    lists: RankerLists, batches: RowBatches, candidates: RankedCandidates
) -> Iterator[tuple[pa.Table, int, int]]:
    """Yield for each batch of this worker its lists as rows, the number of users, and 0. Collective.

    batches: batches of users, with at most `users_at_a_time` for each worker.
    """
    trained, request = lists.trained, lists.request
    latest = latest_time(trained.manifest)
    chunk = min(candidates.ids.size, BATCH_ENTRIES)
    for packed, _, rows in batches:
        assert packed.users is not None
        at = None if request.at is None else np.full(rows.size, request.at, np.int64)
        given = histories_in(packed, rows, packed.users.take(pa.array(rows)), at, latest)
        shown_at = given.requested_at + (at is None)
        scores = lists.scores(given, shown_at, candidates, chunk)
        if request.filter_viewed:
            leave_out_viewed(scores, given, candidates.ids)
        ids, best = best_candidates(scores, candidates.ids, request.k)
        yield list_table(COLUMNS, given.users, ids, best, trained.item_values), rows.size, 0
