"""An exported next-item model in this process."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.exported.exported_model import ExportedModel, owners_of
from shoal.loaded.given import OnUnknown, as_table
from trainer.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from trainer.export.folder import Manifest
    from trainer.inference.requests import Histories


class ExportedRecommender(ExportedModel):
    """An exported next-item model. Methods and columns of results are those of `shoal.NextItemRecommender`."""

    def __init__(self, folder: Path, manifest: "Manifest") -> None:
        from trainer.export import folder as export_folder
        from trainer.export import index
        from trainer.export.search import FloatVectors, Int8Vectors, Vectors, expanded

        super().__init__(folder, manifest)
        self._vectors: Vectors
        if manifest.precision == "float32":
            self._vectors = FloatVectors(np.load(folder / export_folder.ITEM_VECTORS, mmap_mode="c"))
        else:
            codes, steps = (
                np.load(folder / name, mmap_mode="c") for name in (export_folder.ITEM_CODES, export_folder.ITEM_STEPS)
            )
            self._vectors = expanded(Int8Vectors(codes, steps))
        self._width = int(self._vectors.rows(slice(0, 1)).shape[1])
        self._index_file = folder / export_folder.INDEX if manifest.index else None
        self._read_index = index.read_index
        self._index: Any = None
        self._popular = np.argsort(-self._source.train_events, kind="stable") + 1

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        *,
        filter_viewed: bool = True,
        items: "Iterable[Any] | pa.Array | None" = None,
        user_features: "pa.Table | pd.DataFrame | None" = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
        approximate: bool = False,
    ) -> pa.Table:
        """Return the best items for each user, best first: columns user_id, item_id, score, rank (from 1).

        Users without any event get the most popular items of the training part, with a score of null.

        Args:
            histories: a table (Arrow or pandas) of events with the columns of the logs; or a dictionary from users to their items,
                oldest first; or a list of such lists, for users 0, 1, 2 and so on.
            k: number of items per user.
            filter_viewed: whether to leave out items of the user's history.
            items: the only items to recommend; by default all.
            user_features: a table with the columns of the files of users, if the model uses features of users.
            at: time of the request in the unit of the dataset.
            on_unknown: what to do about unknown `items`: raise a UserError, warn and leave them out, or leave them out.
            approximate: search with the index of the export, which is faster for many items and may miss some.
        """
        if k < 1:
            raise UserError(f"k = {k}: must be at least 1")
        if approximate and (self._index_file is None or items is not None):
            raise UserError(
                "approximate: this export has no index" if items is None else "approximate: not with `items`"
            )
        given = self._encode(histories, user_features, at)
        candidates = None if items is None else self._candidates(items, on_unknown)
        return self._best(given, k, filter_viewed, candidates, approximate)

    def recommend_to(
        self,
        users: Mapping[str, Sequence[Mapping[str, Any]]],
        k: int = 10,
        *,
        filter_viewed: bool = True,
        approximate: bool = False,
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the best items of each user as plain values, for a server: a list of item_id and score, best first.

        Args:
            users: the events of each user, oldest first: values by column of the logs, without the user.
            k: as for `recommend`.
            filter_viewed: as for `recommend`.
            approximate: as for `recommend`.
        """
        lengths = np.asarray([len(events) for events in users.values()], np.int64)
        names = pa.array(users.keys(), pa.string()).cast(self._encoder.type_of("user"))
        rows = [event for events in users.values() for event in events]
        columns = {
            name: pa.array([event.get(name) for event in rows]) for name in dict.fromkeys(n for e in rows for n in e)
        }
        if not rows:  # columns without any value have no type of their own
            columns = self._encoder.empty_columns()
        table = pa.table({**columns, self._logs.user: names.take(pa.array(owners_of(lengths)))})
        given = self._encode(table, None, None, names)
        best = self._best(given, k, filter_viewed, None, approximate)
        result: dict[str, list[dict[str, Any]]] = {user: [] for user in users}
        by_value = dict(zip(names.to_pylist(), users, strict=True))
        for row in best.to_pylist():
            result[by_value[row["user_id"]]].append({"item_id": row["item_id"], "score": row["score"]})
        return result

    def _best(
        self, given: "Histories", k: int, filter_viewed: bool, candidates: np.ndarray | None, approximate: bool
    ) -> pa.Table:
        from trainer.export.search import Seen, best_items

        users = self._users(given)
        seen = Seen(*given.seen()) if filter_viewed else None
        if approximate:
            ids, scores = self._approximate(users.numpy(), k, seen)
        else:
            ids, scores = best_items(users, self._vectors, k, seen, candidates)
        cold = given.lengths == 0
        popular = self._popular if candidates is None else self._popular[np.isin(self._popular, candidates)]
        ids[cold] = 0
        ids[cold, : min(k, popular.size)] = popular[:k]
        scores[cold] = np.nan
        return self._lists(given.users, ids, scores)

    def score(
        self,
        histories: Any,
        candidates: Any,
        *,
        user_features: "pa.Table | pd.DataFrame | None" = None,
        at: Any = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the score of pairs: columns user_id, item_id, score. A higher score is a more likely next item.

        Args:
            histories: as for `recommend`.
            candidates: the items to score for each user, in the form of `histories`; times and features are not needed.
            user_features: as for `recommend`.
            at: as for `recommend`.
            on_unknown: what to do about unknown items; left out, or warned of, they have the score null.
        """
        given = self._encode(histories, user_features, at)
        if isinstance(candidates, Mapping | list | tuple):
            names, lengths, values = self._lists_of(candidates)
            owners = names.take(pa.array(owners_of(lengths)))
        else:
            table = as_table(candidates, "candidates")
            owners = table.column(self._logs.user).cast(self._encoder.type_of("user")).combine_chunks()
            values = table.column(self._logs.item).cast(self._encoder.type_of("item")).combine_chunks()
        rows = pc.index_in(owners, value_set=given.users)
        if rows.null_count:
            raise UserError(f"candidates: {rows.null_count} are of users without a history")
        ids = self._ids(values, on_unknown, "candidates")
        products = self._users(given)[rows.to_numpy().astype(np.int64)] * self._vectors.rows(np.maximum(ids - 1, 0))
        scores = products.sum(dim=1).numpy()
        return pa.table({"user_id": owners, "item_id": values, "score": pa.array(scores, mask=ids == 0)})

    def user_vectors(
        self, histories: Any, *, user_features: "pa.Table | pd.DataFrame | None" = None, at: Any = None
    ) -> pa.Table:
        """Return the vector of each user: columns user_id, vector (float32). Arguments as for `recommend`."""
        given = self._encode(histories, user_features, at)
        return pa.table({"user_id": given.users, "vector": _vectors(self._users(given).numpy())})

    def _users(self, given: "Histories") -> Any:
        from trainer.export.run_program import user_vectors

        return user_vectors(self._run, self._names, self._form, given.packed, given.lengths, self._width)

    def _ids(self, values: pa.Array, on_unknown: OnUnknown, what: str) -> np.ndarray:
        ids = self._source.item_ids(values)
        unknown = np.flatnonzero(ids == 0)
        if unknown.size:
            some = ", ".join(repr(value) for value in values.take(pa.array(unknown[:3])).to_pylist())
            _react(on_unknown, f"{what}: {unknown.size} items that the model does not know, such as {some}")
        return ids

    def _candidates(self, items: "Iterable[Any] | pa.Array", on_unknown: OnUnknown) -> np.ndarray:
        values = items if isinstance(items, pa.Array) else pa.array(list(items), self._encoder.type_of("item"))
        ids = np.unique(self._ids(values, on_unknown, "items"))
        ids = ids[ids > 0]
        if not ids.size:
            raise UserError("items: the model knows none of them, so nothing can be recommended")
        return ids

    def _approximate(self, users: np.ndarray, k: int, seen: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return about the best items. More are searched than asked for, since seen ones are left out afterwards."""
        from trainer.export.index import search

        if self._index is None:
            assert self._index_file is not None
            self._index = self._read_index(self._index_file)
        most = 0 if seen is None else int(np.diff(seen.offsets).max(initial=0))
        ids, scores = search(self._index, users, min(k + most, self._vectors.num_items))
        left = ids > 0
        if seen is not None:
            for row, (first, last) in enumerate(zip(seen.offsets[:-1], seen.offsets[1:], strict=True)):
                left[row] &= ~np.isin(ids[row], seen.items[first:last])
        order = np.argsort(~left, axis=1, kind="stable")[:, :k]
        ids = np.take_along_axis(np.where(left, ids, 0), order, axis=1)
        scores = np.take_along_axis(np.where(left, scores, -np.inf), order, axis=1)
        missing = ((0, 0), (0, k - ids.shape[1]))
        return np.pad(ids, missing), np.pad(scores, missing, constant_values=-np.inf)

    def _lists(self, owners: pa.Array, ids: np.ndarray, scores: np.ndarray) -> pa.Table:
        there = ids > 0
        rows, places = np.nonzero(there)
        kept = scores[there]
        return pa.table(
            {
                "user_id": owners.take(pa.array(rows)),
                "item_id": self.items.take(pa.array(ids[there] - 1)),
                "score": pa.array(kept, pa.float32(), mask=np.isnan(kept)),
                "rank": pa.array((places + 1).astype(np.int32)),
            }
        )


def _react(on_unknown: OnUnknown, message: str) -> None:
    match on_unknown:
        case "raise":
            raise UserError(f'{message}; leave them out, or set on_unknown="warn" or "skip"')
        case "warn":
            warnings.warn(message, stacklevel=4)
        case "skip":
            pass


def _vectors(values: np.ndarray) -> pa.Array:
    """Return a matrix (n, D) as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
