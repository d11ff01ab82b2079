"""A ranker in this process: probabilities of impressions, and recommendations among candidates, as Arrow tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.loaded.given import OnUnknown, as_table, as_values, check_count
from shoal.loaded.trained import Model
from trainer.errors import UserError
from trainer.inference.lists import COLUMNS

if TYPE_CHECKING:
    from trainer.data.stream.packed import PackedHistories
    from trainer.inference.ranking import RankedCandidates

SCORES_AT_A_TIME = 1 << 20


class ImpressionRanker(Model):
    """A ranker in this process. Histories are tables (Arrow or pandas) of events with the columns of the logs."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model predicts, in the order of the columns."""
        labels: tuple[str, ...] = self._trained.model.labels
        return labels

    def score(self, histories: Any, impressions: Any, *, user_features: Any = None) -> pa.Table:
        """Return the probability of each label: columns user_id, item_id, time and one per label, in the order of the impressions.

        An impression is scored from the events of its user strictly before its time.

        Args:
            histories: a table of events; None: those of the dataset.
            impressions: a table with the columns of the logs for users, items and times, and the features of impressions that the
                model uses.
            user_features: a table with the columns of the files of users. By default, users whom the dataset has keep their
                features, and others have none.
        """
        from trainer.inference.ranking import probabilities

        table = as_table(impressions, "impressions")
        packed, order = self._with_impressions(histories, table, user_features, "impressions")
        values = probabilities(self._trained, packed)
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        columns = {
            "user_id": table.column(self._logs.user),
            "item_id": table.column(self._logs.item),
            "time": table.column(self._logs.time),
        }
        return pa.table(columns | {name: pa.array(value[back]) for name, value in values.items()})

    def recommend(
        self,
        histories: Any = None,
        k: int = 10,
        *,
        items: Any,
        label: str | Mapping[str, float] | None = None,
        users: Any = None,
        filter_viewed: bool = False,
        user_features: Any = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the best candidates for each user, best first: columns user_id, item_id, score, rank (from 1).

        Args:
            histories: a table of events. By default the histories of the dataset.
            k: number of items per user. There are fewer if fewer are left.
            items: the candidates of every user: a list, or a table with the column of items of the logs and the features of
                impressions that the model uses.
            label: the label that orders the candidates by its probability, or a dictionary from labels to weights of
                a weighted sum, the score. It can be left out for a model of one label.
            users: users of the dataset, instead of `histories`; by default all of them.
            filter_viewed: whether to leave out items of the user's history.
            user_features: as for `score`.
            at: time at which the candidates are shown, as for NextItemRecommender.recommend. Events count if they are strictly
                earlier. By default one tick after the latest time of the dataset, or of the user's history if that is later.
            on_unknown: reaction to users or items that the dataset does not have. "raise": a UserError. "warn": a warning, and
                they are left out. "skip": they are left out.
        """
        from trainer.inference.ranking import best_candidates, candidate_scores, leave_out_viewed

        k = check_count(k)
        weights = self.weights_of(label)
        candidates = self.candidates(items, on_unknown)
        given = self._given(histories, users, user_features, at, on_unknown)
        shown_at = given.requested_at + (at is None)
        step = max(1, SCORES_AT_A_TIME // candidates.ids.size)
        number = given.lengths.size
        ids = np.zeros((number, min(k, candidates.ids.size)), np.int64)
        scores = np.zeros(ids.shape, np.float32)
        for start in range(0, number, step):
            part = slice(start, min(start + step, number))
            some = given.part(part.start, part.stop)
            matrix = candidate_scores(self._trained, some, shown_at[part], candidates, weights)
            if filter_viewed:
                leave_out_viewed(matrix, some, candidates.ids)
            ids[part], scores[part] = best_candidates(matrix, candidates.ids, k)
        return self._lists(COLUMNS, given.users, ids, scores)

    def explain(
        self,
        history: Any,
        impression: Any,
        *,
        label: str | None = None,
        method: str = "occlusion",
        user_features: Any = None,
        seed: int = 0,
    ) -> pa.Table:
        """Return the value of each event of a history for the logit of a label, the newest event first.

        Columns: position (1 for the oldest event of the history), item_id, time, value. An event with a larger value raises the
        probability more. Events at or after the time of the impression, and those that the model does not receive, are left out.
        docs/explain.md says which method to trust.

        Args:
            history: a table of the events of one user, with the columns of the logs; None: the history that the dataset has of the
                user of the impression.
            impression: a table with one row, in the form of `score`.
            label: the label to explain. It can be left out for a model of one label.
            method: "occlusion", "integrated_gradients_sampled" and others (docs/explain.md). Methods that compare with other
                histories draw them from the dataset.
            user_features: as for `score`.
            seed: seed of the draws of a method.

        Raises:
            UserError: there is no such method or label, the model does not know the item, or no event is before the impression.
        """
        from trainer.explanation.history import explain_impression

        table = as_table(impression, "impression")
        if table.num_rows != 1:
            raise UserError(f"impression: must have one row, not {table.num_rows}")
        packed, _ = self._with_impressions(history, table, user_features, "impression")
        assert packed.impressions is not None
        if packed.starts.size != 1:
            raise UserError("history: must be of the user of the impression alone")
        if not packed.impressions.items[0]:
            value = table.column(self._logs.item)[0].as_py()
            raise UserError(f"impression: the model does not know the item {value!r}")
        return explain_impression(self._trained, self._stored, packed, label, method, seed)

    def _with_impressions(
        self, histories: Any, table: pa.Table, user_features: Any, what: str
    ) -> "tuple[PackedHistories, np.ndarray]":
        """Return histories with impressions of their users, and the order in which these are packed."""
        if self._logs.user not in table.column_names:
            raise UserError(
                f'{what}: no column "{self._logs.user}" (logs.user); there are {", ".join(table.column_names)}'
            )
        shown_to = pc.unique(as_values(table.column(self._logs.user), self._type_of("user"), what))
        if histories is None:
            given = self._given(None, shown_to, user_features, None, "raise")
        else:
            given = self._histories(histories, user_features, None, shown_to)
        return self._encoder.with_impressions(given, table)

    def weights_of(self, label: str | Mapping[str, float] | None) -> np.ndarray:
        """Return the weight of each label, (labels,) float64. Raises UserError for labels that the model does not predict."""
        if label is None and len(self.labels) > 1:
            raise UserError(
                f"label: the model predicts {', '.join(self.labels)}; choose one, or give a dictionary of weights"
            )
        given = {self.labels[0] if label is None else label: 1.0} if not isinstance(label, Mapping) else label
        unknown = [name for name in given if name not in self.labels]
        if unknown or not given:
            raise UserError(
                f"label: the model predicts {', '.join(self.labels)}, and not {', '.join(unknown) or 'nothing'}"
            )
        return np.asarray([float(given.get(name, 0.0)) for name in self.labels])

    def candidates(self, items: Any, on_unknown: OnUnknown = "raise") -> "RankedCandidates":
        """Return candidates as `recommend` scores them, each item once."""
        from trainer.data.stream.columns import take_all
        from trainer.inference.ranking import RankedCandidates

        needed = [feature.name for feature in self._trained.catalogue.inputs.candidates]
        if hasattr(items, "column_names") or hasattr(items, "columns"):
            values, features = self._encoder.candidates(as_table(items, "items"))
        elif needed:
            raise UserError(
                f"items: the model uses the features {', '.join(needed)} of impressions; give a table with the column "
                f'"{self._logs.item}" and theirs'
            )
        else:
            values, features = as_values(items, self._type_of("item"), "items"), {}
        ids, places = np.unique(self._item_ids(values, on_unknown, "items"), return_index=True)
        ids, places = ids[ids > 0], places[ids > 0]
        if not ids.size:
            raise UserError("items: the model knows none of them, so nothing can be recommended")
        return RankedCandidates(ids, take_all(features, places))
