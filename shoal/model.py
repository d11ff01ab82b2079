"""A trained model in this process: recommendations, scores and vectors from raw values, as Arrow tables.

Importing this module loads torch, which takes some seconds; neither Ray nor a process group is started.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.config.run_config import job_of
from cluster.doctor.packages import TRAINING, check_installed
from shoal.config import Config
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from trainer.inference.requests import Histories
    from trainer.inference.trained_model import TrainedModel

# A table of events with the columns of the logs, the items of each user in order, or the items of one user after another.
HistoriesLike = "pa.Table | pd.DataFrame | Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]]"
OnUnknown = Literal["raise", "warn", "skip"]


def load(
    run: str | Path, checkpoint: str | None = None, dataset: str | Path | None = None
) -> "NextItemRecommender | ImpressionRanker":
    """Load the trained model of a run into this process. It needs no Ray and no process group.

    Args:
        run: folder of a run, or of one of its checkpoints.
        checkpoint: name of a checkpoint of the run; by default the best, or the newest if none is marked best.
        dataset: folder of the run's dataset, if it was moved.

    Raises:
        UserError: there is no such run, dataset or package. The message says what to do.
        CheckpointError: there is no such checkpoint, or it is damaged. It is a UserError.
    """
    check_installed("load", TRAINING)
    from trainer.inference.trained_model import load_trained_model

    folder, stored = _find(Path(run), checkpoint)
    config = Config.load(folder / "config.json")
    moved = folder / "dataset" if config.run.dataset is None else config.dataset_dir
    config = config.replace({"run.dir": str(folder), "run.dataset": str(dataset or moved)})
    trained = load_trained_model(job_of(config), stored)
    return ImpressionRanker(trained) if trained.manifest.task == "ranking" else NextItemRecommender(trained)


def _find(path: Path, checkpoint: str | None) -> tuple[Path, StoredCheckpoint]:
    """Return the run folder, and the verified checkpoint."""
    if (path / "config.json").exists():
        if checkpoint is None:
            return path, checkpoint_folder.to_evaluate(path / "checkpoints")
        own = path / "checkpoints" / checkpoint
        return path, StoredCheckpoint(own, checkpoint_folder.verify(own))
    folder = path.resolve().parent.parent
    if checkpoint is None and (folder / "config.json").exists():
        return folder, StoredCheckpoint(path, checkpoint_folder.verify(path))
    raise UserError(f"{path}: is neither the folder of a run (with config.json) nor of a checkpoint in one")


class _Model:
    """What models of both tasks share."""

    def __init__(self, trained: "TrainedModel") -> None:
        from trainer.inference.encoder import HistoryEncoder
        from trainer.inference.stored import StoredHistories

        self._trained = trained
        self._encoder = HistoryEncoder(trained)
        self._stored = StoredHistories(trained)
        self._logs = trained.job.config.logs

    @property
    def checkpoint(self) -> Path:
        """Folder of the loaded checkpoint."""
        return self._trained.checkpoint.path

    @property
    def items(self) -> pa.Array:
        """Items that can be scored, as in the logs."""
        return self._trained.item_values

    def _histories(
        self,
        given: Any,
        users: "pa.Table | pd.DataFrame | None",
        at: int | None,
        others: pa.Array | None = None,
    ) -> "Histories":
        """Encode histories in any form, with empty ones of `others`."""
        table, empty = self._events(given)
        if empty is not None:
            others = empty if others is None else pa.concat_arrays([empty, others])
        return self._encoder.encode(table, None if users is None else as_table(users), at, others)

    def _events(self, given: Any) -> tuple[pa.Table, pa.Array | None]:
        """Return histories as a table of events, and the users without any."""
        if not isinstance(given, Mapping | list | tuple):
            return as_table(given), None
        if self._encoder.needs_times:
            raise UserError(
                "histories: the model uses the times of events, and lists of items have none; give a table with the columns "
                f'"{self._logs.user}", "{self._logs.item}" and "{self._logs.time}"'
            )
        by_user: Mapping[Any, Sequence[Any]] = given if isinstance(given, Mapping) else dict(enumerate(given))
        lengths = [len(items) for items in by_user.values()]
        names = pa.array(by_user.keys(), self._type_of("user") if isinstance(given, Mapping) else pa.int64())
        names = names.cast(self._type_of("user"))
        items = [item for history in by_user.values() for item in history]
        table = pa.table(
            {
                self._logs.user: names.take(pa.array(np.repeat(np.arange(len(lengths)), lengths))),
                self._logs.item: pa.array(items, self._type_of("item")),
            }
        )
        return table, names.filter(pa.array(np.asarray(lengths, np.int64) == 0))

    def _type_of(self, column: Literal["user", "item"]) -> pa.DataType:
        return self._encoder.type_of(column)

    def _item_ids(self, items: "Iterable[Any] | pa.Array", on_unknown: OnUnknown, what: str) -> np.ndarray:
        """Return the ids of items, 0 for unknown ones, after the reaction to those."""
        values = items if isinstance(items, pa.Array) else pa.array(list(items), self._type_of("item"))
        ids = self._trained.item_ids(values)
        unknown = np.flatnonzero(ids == 0)
        if unknown.size:
            some = ", ".join(repr(value) for value in values.take(pa.array(unknown[:3])).to_pylist())
            _react(on_unknown, f"{what}: {unknown.size} items that the model does not know, such as {some}")
        return ids

    def _of_users(self, users: "Iterable[Any] | pa.Array", on_unknown: OnUnknown, at: int | None) -> "Histories":
        """Return the stored histories of users, without those that the dataset does not have."""
        values = users if isinstance(users, pa.Array) else pa.array(list(users), self._type_of("user"))
        rows = self._stored.rows_of(values)
        unknown = np.flatnonzero(rows < 0)
        if unknown.size:
            some = ", ".join(repr(value) for value in values.take(pa.array(unknown[:3])).to_pylist())
            _react(on_unknown, f"users: {unknown.size} users without a history in the dataset, such as {some}")
        return self._stored.read(rows[rows >= 0], at)


class NextItemRecommender(_Model):
    """A next-item model in this process."""

    def recommend(
        self,
        histories: Any = None,
        k: int = 10,
        *,
        users: "Iterable[Any] | pa.Array | None" = None,
        filter_viewed: bool = True,
        items: "Iterable[Any] | pa.Array | None" = None,
        user_features: "pa.Table | pd.DataFrame | None" = None,
        at: int | None = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the best items for each user, best first: columns user_id, item_id, score, rank (from 1).

        Users without any event get the most popular items of the training part, with a score of null.

        Args:
            histories: a table (Arrow or pandas) of events with the columns of the logs; or a dictionary from users to their items,
                oldest first; or a list of such lists, whose users are 0, 1, 2 and so on. By default the histories of the dataset.
            k: number of items per user.
            users: users of the dataset, instead of `histories`; by default all of them.
            filter_viewed: whether to leave out items of the user's history.
            items: the only items to recommend; by default all.
            user_features: a table with the columns of the files of users, if the model uses features of users.
            at: time of the request in the unit of the dataset; by default the latest time of the histories.
            on_unknown: what to do about users or items that the dataset does not have: raise a UserError, warn and leave them out,
                or leave them out.
        """
        from trainer.inference import next_item

        if k < 1:
            raise UserError(f"k = {k}: must be at least 1")
        given = self._given(histories, users, user_features, at, on_unknown)
        candidates = None
        if items is not None:
            candidates = np.unique(self._item_ids(items, on_unknown, "items"))
            candidates = candidates[candidates > 0]
            if not candidates.size:
                raise UserError("items: the model knows none of them, so nothing can be recommended")
        best = next_item.recommend(self._trained, given, self._item_vectors, k, filter_viewed, candidates)
        ids = best.items
        scores = best.scores.astype(np.float32)
        cold = given.lengths == 0
        if cold.any():
            popular = self._popular if candidates is None else self._popular[np.isin(self._popular, candidates)]
            ids = ids.copy()
            ids[cold] = 0
            ids[cold, : min(k, popular.size)] = popular[:k]
            scores = np.where(cold[:, None], np.nan, scores)
        return self._lists("user_id", given.users, ids, scores)

    def score(
        self,
        histories: Any,
        candidates: Any,
        *,
        user_features: "pa.Table | pd.DataFrame | None" = None,
        at: int | None = None,
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
        from trainer.inference import next_item

        given = self._given(histories, None, user_features, at, on_unknown)
        pairs = self._pairs(candidates)
        rows = pc.index_in(pairs.column("user_id").combine_chunks(), value_set=given.users)
        if rows.null_count:
            raise UserError(f"candidates: {rows.null_count} are of users without a history")
        ids = self._item_ids(pairs.column("item_id").combine_chunks(), on_unknown, "candidates")
        scores = next_item.score(self._trained, given, rows.to_numpy().astype(np.int64), ids)
        return pairs.append_column("score", pa.array(scores, mask=np.isnan(scores)))

    def user_vectors(
        self,
        histories: Any = None,
        *,
        users: "Iterable[Any] | pa.Array | None" = None,
        user_features: "pa.Table | pd.DataFrame | None" = None,
        at: int | None = None,
        on_unknown: OnUnknown = "raise",
    ) -> pa.Table:
        """Return the vector of each user: columns user_id, vector (float32). Arguments as for `recommend`.

        The score of an item is the dot product with its vector.
        """
        from trainer.inference import next_item

        given = self._given(histories, users, user_features, at, on_unknown)
        vectors = next_item.user_vectors(self._trained, given).numpy()
        return pa.table({"user_id": given.users, "vector": _vectors(vectors)})

    def item_vectors(self, items: "Iterable[Any] | pa.Array | None" = None) -> pa.Table:
        """Return the vector of each item: columns item_id, vector (float32). By default of all items that can be scored."""
        ids = np.arange(1, self._trained.num_items + 1) if items is None else self._item_ids(items, "raise", "items")
        vectors = self._item_vectors.numpy()[ids - 1]
        return pa.table({"item_id": self._trained.item_values.take(pa.array(ids - 1)), "vector": _vectors(vectors)})

    def similar_items(self, items: "Iterable[Any] | pa.Array", k: int = 10) -> pa.Table:
        """Return the items with the most similar vectors by cosine: columns item_id, similar_item_id, score, rank."""
        from trainer.inference import next_item

        ids = self._item_ids(items, "raise", "items")
        best = next_item.similar_items(self._trained, ids, self._item_vectors, k)
        values = self._trained.item_values.take(pa.array(ids - 1))
        table = self._lists("of", values, best.items, best.scores)
        return table.rename_columns(["item_id", "similar_item_id", "score", "rank"])

    @cached_property
    def _item_vectors(self) -> Any:
        from trainer.inference import next_item

        return next_item.item_vectors(self._trained)

    @cached_property
    def _popular(self) -> np.ndarray:
        """All items by their training events, most first, equal ones by id."""
        vocabulary = read_vocabulary(
            self._trained.job.dataset_dir, self._trained.manifest, self._trained.catalogue.scores_unknown
        )
        return np.argsort(-vocabulary.train_events, kind="stable") + 1

    def _given(
        self, histories: Any, users: Any, user_features: Any, at: int | None, on_unknown: OnUnknown
    ) -> "Histories":
        if histories is not None and users is not None:
            raise UserError("give either histories, or users of the dataset")
        if histories is not None:
            return self._histories(histories, user_features, at)
        return self._of_users(self._stored.users if users is None else users, on_unknown, at)

    def _pairs(self, candidates: Any) -> pa.Table:
        if isinstance(candidates, Mapping | list | tuple):
            by_user: Mapping[Any, Sequence[Any]] = (
                candidates if isinstance(candidates, Mapping) else dict(enumerate(candidates))
            )
            lengths = [len(items) for items in by_user.values()]
            names = pa.array(by_user.keys()).cast(self._type_of("user"))
            users = names.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
            items = pa.array([item for of_user in by_user.values() for item in of_user], self._type_of("item"))
            return pa.table({"user_id": users, "item_id": items})
        table = as_table(candidates)
        for name in (self._logs.user, self._logs.item):
            if name not in table.column_names:
                raise UserError(f'candidates: no column "{name}"; there are {", ".join(table.column_names)}')
        users, items = table.column(self._logs.user), table.column(self._logs.item)
        return pa.table({"user_id": users.cast(self._type_of("user")), "item_id": items.cast(self._type_of("item"))})

    def _lists(self, name: str, owners: pa.Array, ids: np.ndarray, scores: np.ndarray) -> pa.Table:
        """Return lists as one row per entry, without empty places."""
        there = ids > 0
        rows, places = np.nonzero(there)
        kept = scores[there]
        return pa.table(
            {
                name: owners.take(pa.array(rows)),
                "item_id": self._trained.item_values.take(pa.array(ids[there] - 1)),
                "score": pa.array(kept, pa.float32(), mask=np.isnan(kept)),
                "rank": pa.array((places + 1).astype(np.int32)),
            }
        )


class ImpressionRanker(_Model):
    """A ranker in this process."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model predicts, in the order of the columns."""
        labels: tuple[str, ...] = self._trained.model.labels
        return labels

    def score(
        self,
        histories: Any,
        impressions: "pa.Table | pd.DataFrame",
        *,
        user_features: "pa.Table | pd.DataFrame | None" = None,
    ) -> pa.Table:
        """Return the probability of each label: columns user_id, item_id, time and one per label, in the order of the impressions.

        An impression is scored from the events of its user strictly before its time.

        Args:
            histories: a table (Arrow or pandas) of events with the columns of the logs; None: those of the dataset.
            impressions: a table with the columns of the logs for users, items and times, and the features of impressions that the
                model uses.
            user_features: a table with the columns of the files of users, if the model uses features of users.
        """
        from trainer.inference.ranking import probabilities

        table = as_table(impressions)
        if self._logs.user not in table.column_names:
            raise UserError(
                f'impressions: no column "{self._logs.user}" (logs.user); there are {", ".join(table.column_names)}'
            )
        shown_to = pc.unique(table.column(self._logs.user)).cast(self._type_of("user"))
        if histories is None:
            given = self._with_stored(shown_to, user_features)
        else:
            given = self._histories(histories, user_features, None, shown_to)
        packed, order = self._encoder.with_impressions(given, table)
        values = probabilities(self._trained, packed)
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        columns = {
            "user_id": table.column(self._logs.user),
            "item_id": table.column(self._logs.item),
            "time": table.column(self._logs.time),
        }
        return pa.table(columns | {name: pa.array(value[back]) for name, value in values.items()})

    def _with_stored(self, users: pa.Array, user_features: Any) -> "Histories":
        rows = self._stored.rows_of(users)
        unknown = int((rows < 0).sum())
        if unknown:
            raise UserError(
                f"impressions: {unknown} of {rows.size} users have no history in the dataset; give `histories`, where a user may "
                "have no event"
            )
        if user_features is not None:
            raise UserError(
                "user_features: the dataset's histories come with its own features of users; give `histories`"
            )
        return self._stored.read(rows)


def as_table(given: Any) -> pa.Table:
    """Return an Arrow table of a table of Arrow or pandas. Raises UserError for anything else."""
    match given:
        case pa.Table():
            return given
        case pa.RecordBatch():
            return pa.Table.from_batches([given])
        case _ if hasattr(given, "to_dict") and hasattr(given, "columns"):
            return pa.Table.from_pandas(given, preserve_index=False)
        case _:
            raise UserError(f"a table of Arrow or pandas is needed, not {type(given).__name__}")


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
