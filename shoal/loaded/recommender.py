"""A next-item model in this process: recommendations, scores and vectors from raw values, as Arrow tables."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.loaded.given import OnUnknown, as_lists, as_table, as_values, check_count
from shoal.loaded.live_recommender import LiveRecommender
from shoal.loaded.trained import Model
from trainer.errors import UserError
from trainer.inference.lists import COLUMNS, SIMILAR_COLUMNS

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.inference.candidates import Candidates
    from trainer.inference.requests import Histories


class NextItemRecommender(Model):
    """A next-item model in this process.

    Histories are given in one of these forms: a table (Arrow or pandas) of events with the columns of the logs; a dictionary from
    users to their items, oldest first; or a list of such lists, for users 0, 1, 2 and so on. Models that use times need
    tables. Items that the model does not know count as one unknown item.
    """

    def recommend(
        self,
        histories: Any = None,
        k: int = 10,
        *,
        users: Any = None,
        filter_viewed: bool = True,
        items: Any = None,
        user_features: Any = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the best items for each user, best first: columns user_id, item_id, score, rank (from 1).

        Users without any event get the most popular items of the training part, with a score of null.

        Args:
            histories: the histories, see the class. By default those of the dataset.
            k: number of items per user. There are fewer if fewer are left.
            users: users of the dataset, instead of `histories`; by default all of them.
            filter_viewed: whether to leave out items of the user's history.
            items: the only items to recommend; by default all.
            user_features: a table with the columns of the files of users. By default, users whom the dataset has keep their
                features, and others have none.
            at: time of the requests: a datetime, ISO text or an integer in the unit of the logs' times, or a dictionary from
                users to such times. Later events are left out. By default the latest time of the dataset, or of the user's
                history if that is later.
            on_unknown: reaction to users or items that the dataset does not have. "raise": a UserError. "warn": a warning;
                users get the most popular items, and items are left out. "skip": both are left out.
        """
        from trainer.inference import next_item

        k = check_count(k)
        given = self._given(histories, users, user_features, at, on_unknown)
        candidates = self._candidates(items, on_unknown)
        best = next_item.recommend(self._trained, given, self._item_vectors, k, filter_viewed, candidates)
        return self._lists(COLUMNS, given.users, best.items, best.scores)

    def explain(
        self,
        history: Any,
        item: Any,
        *,
        method: str = "occlusion",
        user_features: Any = None,
        at: Any = None,
        seed: int = 0,
    ) -> pa.Table:
        """Return the value of each event of a history for the score of an item, the newest event first.

        Columns: position (1 for the oldest event of the history), item_id, time (if the history has times), value. An event with
        a larger value raises the score more. Events that the model does not receive, because the history is too long, are left
        out. docs/explain.md says which method to trust.

        Args:
            history: the history of one user: a list of items, oldest first, or a table with the columns of the logs.
            item: the item to explain, as in the logs.
            method: "occlusion", "integrated_gradients_sampled" and others (docs/explain.md). Methods that compare with other
                histories draw them from the dataset.
            user_features: as for `recommend`.
            at: as for `recommend`.
            seed: seed of the draws of a method.

        Raises:
            UserError: there is no such method, the model does not know the item, or the history has no events.
        """
        from trainer.explanation.history import explain_history

        given = self._histories([history] if isinstance(history, list | tuple) else history, user_features, at)
        if given.lengths.size != 1 or not given.lengths[0]:
            raise UserError(f"history: must be of one user with events, not of {given.lengths.size} users")
        target = self._item_ids([item], "raise", "item")
        return explain_history(self._trained, self._stored, given, target, method, seed)

    def follow(self, history: Any, *, user_features: Any = None) -> LiveRecommender:
        """Follow a user with a growing history: `append` newer events to what is returned, and ask it to `recommend`.

        Attention keys and values of the events are kept, so that a new event is encoded without the earlier ones.

        Args:
            history: the history so far, of one user: a list of items, oldest first, or a table with the columns of the logs.
            user_features: as for `recommend`.
        """

        def encode(given: Any, features: Any = None) -> "Histories":
            encoded = self._histories([given] if isinstance(given, list | tuple) else given, features, None)
            if encoded.lengths.size != 1:
                raise UserError(f"history: must be of one user, not of {encoded.lengths.size}")
            return encoded

        first = encode(history, user_features)
        return LiveRecommender(self._trained, first, self._item_vectors, encode, self._candidates)

    def score(
        self,
        histories: Any,
        candidates: Any,
        *,
        user_features: Any = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the score of pairs: columns user_id, item_id, score. A higher score is a more likely next item.

        The order is that of the candidates. The score of a user without events is null.

        Args:
            histories: the histories, see the class; None: those of the dataset.
            candidates: the items to score for each user, in the form of `histories`; times and features are not needed.
            user_features: as for `recommend`.
            at: as for `recommend`.
            on_unknown: reaction to items that the model does not know; with "warn" and "skip" their score is null.
        """
        from trainer.inference import next_item

        anonymous = isinstance(histories, list | tuple)
        pairs = self._pairs(candidates, pa.int64() if anonymous else self._type_of("user"))
        owners = pairs.column("user_id").combine_chunks()
        if histories is None:
            given = self._given(None, pc.unique(owners), user_features, at, "raise")
        else:
            given = self._given(histories, None, user_features, at, on_unknown)
        rows = pc.index_in(owners, value_set=given.users)
        if rows.null_count:
            raise UserError(
                f"candidates: {rows.null_count} of {len(rows)} are of users whom `histories` does not have; a dictionary of "
                "histories may have an empty list"
            )
        ids = self._item_ids(pairs.column("item_id"), on_unknown, "candidates")
        scores = next_item.score(self._trained, given, rows.to_numpy().astype(np.int64), ids)
        return pairs.append_column("score", pa.array(scores, mask=np.isnan(scores)))

    def user_vectors(
        self,
        histories: Any = None,
        *,
        users: Any = None,
        user_features: Any = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the vector of each user: columns user_id, vector (float32). Arguments as for `recommend`.

        The score of an item is the dot product with its vector. The vector of a user without events is zero.
        """
        from trainer.inference import next_item

        given = self._given(histories, users, user_features, at, on_unknown)
        vectors = next_item.user_vectors(self._trained, given).numpy()
        return pa.table({"user_id": given.users, "vector": _vectors(vectors)})

    def item_vectors(self, items: Any = None) -> pa.Table:
        """Return the vector of each item: columns item_id, vector (float32). By default of all items that can be scored."""
        ids = np.arange(self._trained.num_items) + 1 if items is None else self._item_ids(items, "raise", "items")
        vectors = self._item_vectors.numpy()[ids - 1]
        return pa.table({"item_id": self._trained.item_values.take(pa.array(ids - 1)), "vector": _vectors(vectors)})

    def similar_items(self, items: Any = None, k: int = 10, *, on_unknown: OnUnknown = "raise") -> pa.Table:
        """Return the items with the most similar vectors by cosine: columns item_id, similar_item_id, score, rank.

        Args:
            items: the items to compare with all others; by default all.
            k: number of similar items for each.
            on_unknown: as for `recommend`; with "warn" and "skip" unknown items are left out.
        """
        from trainer.inference import next_item

        ids = np.arange(self._trained.num_items) + 1 if items is None else self._item_ids(items, on_unknown, "items")
        ids = ids[ids > 0]
        best = next_item.similar_items(ids, self._item_vectors, check_count(k))
        values = self._trained.item_values.take(pa.array(ids - 1))
        return self._lists(SIMILAR_COLUMNS, values, best.items, best.scores)

    def _candidates(self, items: Any, on_unknown: OnUnknown) -> "Candidates":
        """Return the items that may be recommended. Raises UserError if there are none."""
        from trainer.inference.candidates import Candidates

        ids = None if items is None else self._item_ids(items, on_unknown, "items")
        candidates = Candidates.of(self._trained.num_items, ids)
        if not candidates.size:
            raise UserError("items: the model knows none of them, so nothing can be recommended")
        return candidates

    @cached_property
    def _item_vectors(self) -> "Tensor":
        from trainer.inference import next_item

        return next_item.item_vectors(self._trained)

    def _pairs(self, candidates: Any, user_type: pa.DataType) -> pa.Table:
        lists = as_lists(candidates, "candidates")
        if lists is not None:
            lengths = [len(items) for items in lists.values()]
            names = as_values(list(lists), user_type, "candidates")
            users = names.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
            items = [item for of_user in lists.values() for item in of_user]
            return pa.table({"user_id": users, "item_id": as_values(items, self._type_of("item"), "candidates")})
        table = as_table(candidates, "candidates")
        for name in (self._logs.user, self._logs.item):
            if name not in table.column_names:
                raise UserError(f'candidates: no column "{name}"; there are {", ".join(table.column_names)}')
        users = as_values(table.column(self._logs.user), user_type, "candidates")
        return pa.table(
            {
                "user_id": users,
                "item_id": as_values(table.column(self._logs.item), self._type_of("item"), "candidates"),
            }
        )


def _vectors(values: np.ndarray) -> pa.Array:
    """Return a matrix (n, D) as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
