"""Recommendations for one user with a growing history, without encoding it from the start at each event."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shoal.loaded.given import OnUnknown, check_count
from trainer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.inference.candidates import Candidates
    from trainer.inference.requests import Histories
    from trainer.inference.trained_model import TrainedModel


class LiveRecommender:
    """Recommendations for one user with a growing history. `NextItemRecommender.follow` returns it.

    The lists equal those of `NextItemRecommender.recommend` for the same history. Attention keys and values of earlier events are
    kept from request to request, so only the newest events are encoded. Models with earlier events that depend on later ones,
    encoders with truncation or token merge, and histories longer than `model.max_history`, are encoded as a whole.
    """

    def __init__(
        self,
        trained: "TrainedModel",
        history: "Histories",
        item_vectors: "Tensor",
        encode: Callable[[Any], "Histories"],
        candidates_of: Callable[[Any, OnUnknown], "Candidates"],
    ) -> None:
        from trainer.inference.live_history import LiveHistory

        self._trained, self._item_vectors = trained, item_vectors
        self._encode, self._candidates_of = encode, candidates_of
        self._user = history.users
        self._live = LiveHistory(trained, history)

    @property
    def num_events(self) -> int:
        """Number of events of the history."""
        return self._live.num_events

    def append(self, events: Any) -> None:
        """Append newer events of the same user: a list of items, oldest first, or a table with the columns of the logs.

        Raises:
            UserError: an event is older than the last one, or the table has events of another user.
        """
        newer = self._encode(events)
        if not isinstance(events, list | tuple) and newer.users != self._user:
            raise UserError(f"events: are of the user {newer.users[0]}, and the history is of {self._user[0]}")
        try:
            self._live.append(newer)
        except ValueError as error:
            raise UserError(f"events: {error}") from None

    def recommend(
        self,
        k: int = 10,
        *,
        filter_viewed: bool = True,
        items: Any = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the best items, best first: columns user_id, item_id, score, rank (from 1).

        Args:
            k: number of items.
            filter_viewed: whether to leave out items of the history.
            items: the only items to recommend; by default all.
            at: time of the request, not before the last event; by default the latest time of the dataset, or of the history if
                that is later.
            on_unknown: reaction to `items` that the model does not know, as for `NextItemRecommender.recommend`.
        """
        from trainer.inference.lists import COLUMNS, list_table
        from trainer.inference.next_item import best_for

        k = check_count(k)
        candidates = self._candidates_of(items, on_unknown)
        users = self._live.vector(self._moment(at))[None]
        seen = self._live.seen
        offsets = np.asarray([0, seen.size])
        best = best_for(self._trained, users, seen, offsets, self._item_vectors, k, filter_viewed, candidates)
        return list_table(COLUMNS, self._user, best.items, best.scores, self._trained.item_values)

    def _moment(self, at: Any) -> int | None:
        """Return the time of a request in the unit of the dataset."""
        from trainer.inference.moments import latest_time, moment_of

        last, manifest = self._live.last_time, self._trained.manifest
        if at is None:
            return None if last is None else max(last, latest_time(manifest))
        moment = moment_of(at, manifest, self._trained.model.config)
        if last is not None and moment < last:
            raise UserError(
                f"at = {at!r}: is before the last event of the history ({last}); `recommend` leaves events out"
            )
        return moment
