"""Choice of the items that are explained to each user: the best ones, a given one, or for rankers the latest impressions.

Every worker yields the same number of batches; the last ones of a worker may be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from sharding.world import World
from trainer.data.stream.catalogue_reader import columns_for
from trainer.data.stream.columns import stretches, take_all
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.row_groups import RowGroupReader
from trainer.explanation.catalogue import Seen
from trainer.explanation.command.event_groups import grouped_features
from trainer.explanation.command.request import ExplainRequest
from trainer.explanation.explained import Explained
from trainer.explanation.questions import Questions, ask
from trainer.inference.candidates import Candidates
from trainer.inference.moments import latest_time
from trainer.inference.requests import Histories
from trainer.inference.stored import histories_in
from trainer.inference.trained_model import TrainedModel
from trainer.item_search.score_tiles import ItemShard
from trainer.recommend.chosen_rows import ChosenRows
from trainer.recommend.next_item import Chosen, NextItemLists
from trainer.recommend.request import RecommendRequest

NOTHING = np.zeros(0, np.int64)
POOL = 256  # histories of other users for baselines and replaced events


@dataclass(frozen=True)
class Batch:
    """Questions of some users. Those of a user follow one another, the best item or the latest impression first."""

    asked: Questions
    """B questions."""
    ranks: np.ndarray
    """(B,) place of each item in the user's list, from 1; 0 for a given item."""
    lengths: np.ndarray
    """(B,) number of events of the user before the request, of which the last ones are in the question."""
    num_users: int
    """Users with a question."""
    num_without: int
    """Users without one."""
    seen: Seen
    """Items that are no candidates, by question."""

    @property
    def firsts(self) -> np.ndarray:
        """The first question of each user."""
        keys = self.asked.keys
        return np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if keys.size else NOTHING


@dataclass(frozen=True)
class Chooser:
    """Chooses the questions on one worker."""

    model: Explained
    """The model, with sharded tables."""
    request: ExplainRequest
    """What is asked for."""
    world: World
    """The workers."""

    @property
    def trained(self) -> TrainedModel:
        """The model with its dataset."""
        return self.model.trained

    def num_batches(self) -> int:
        """Return the number of batches, which is the same on every worker."""
        return self._chosen().num_batches()

    def item_shard(self) -> ItemShard | None:
        """Return this worker's share of the items; None for rankers. Collective."""
        if self.trained.manifest.task == "ranking":
            return None
        return self._lists().item_shard(Candidates(self.trained.num_items))

    def pool(self) -> Questions:
        """Return questions with other histories, those of a row group, the same on every worker."""
        reader = self._reader()
        group = int(np.random.default_rng(self.request.seed).integers(len(reader.group_rows)))
        packed = reader.read([group])[group]
        rows = np.arange(min(POOL, packed.starts.size))
        if packed.impressions is not None:
            alone = replace(self.request, item=None, at=None, k=1)
            return replace(self, request=alone)._impressions(packed, self._row_ids(group, reader), rows).asked
        assert packed.users is not None
        given = histories_in(packed, rows, packed.users.take(pa.array(rows)), None, latest_time(self.trained.manifest))
        filled = np.flatnonzero(given.lengths)
        return self._ask(given, filled, np.ones(filled.size, np.int64), self._row_ids(group, reader)[rows])

    def _row_ids(self, group: int, reader: RowGroupReader) -> np.ndarray:
        return np.arange(reader.first_rows[group], reader.first_rows[group + 1])

    def batches(self, shard: ItemShard | None) -> Iterator[Batch]:
        """Yield the questions of this worker. Collective.

        shard: this worker's share of the items, for a next-item model.
        """
        if self.trained.manifest.task == "ranking":
            for packed, row_ids, rows in self._chosen().batches():
                yield self._impressions(packed, row_ids, rows)
            return
        lists = self._lists()
        assert shard is not None
        for packed, row_ids, rows in self._chosen().batches():
            yield self._best_items(packed, row_ids, rows, lists, shard)

    def _best_items(
        self,
        packed: PackedHistories,
        row_ids: np.ndarray,
        rows: np.ndarray,
        lists: NextItemLists,
        shard: ItemShard,
    ) -> Batch:
        """Return the questions about the best items of users, or about the given item. Collective."""
        request = self.request
        assert packed.users is not None
        at = None if request.at is None else np.full(rows.size, request.at, np.int64)
        given = histories_in(packed, rows, packed.users.take(pa.array(rows)), at, latest_time(self.trained.manifest))
        seen, offsets = given.seen()
        if request.item is not None:
            targets = np.full((rows.size, 1), request.item, np.int64)
        else:
            vectors = lists.user_vectors(given)
            ranked = lists.rank(vectors, seen, offsets, shard, self.trained.num_items, request.filter_viewed)
            targets = ranked.top_items
        there = (targets > 0) & (given.lengths > 0)[:, None]
        owners, places = np.nonzero(there)
        asked = self._ask(given, owners, targets[there], row_ids[rows])
        ranks = np.zeros(owners.size, np.int64) if request.item is not None else places + 1
        filled = int((given.lengths > 0).sum())
        left_out = Seen(seen, offsets).of(owners)
        if not request.filter_viewed:
            left_out = Seen(NOTHING, np.zeros_like(left_out.offsets))
        elif request.item is not None:  # a given item is a candidate, even if the user has seen it
            kept = left_out.items != request.item
            left_out = Seen(left_out.items[kept], np.concatenate(([0], np.cumsum(kept)))[left_out.offsets])
        return Batch(asked, ranks, given.lengths[owners], filled, rows.size - filled, left_out)

    def _ask(self, given: Histories, owners: np.ndarray, targets: np.ndarray, row_ids: np.ndarray) -> Questions:
        at = None if given.packed.times is None else given.requested_at[owners]
        return ask(
            given.packed, owners, given.lengths[owners], targets, at, self.model.max_events, keys=row_ids[owners]
        )

    def _impressions(self, packed: PackedHistories, row_ids: np.ndarray, rows: np.ndarray) -> Batch:
        """Return the questions about the latest impressions of users, of the given item if there is one."""
        request = self.request
        shown = packed.impressions
        assert shown is not None
        places, offsets = stretches(shown.starts[rows], shown.ends[rows])
        owners = np.repeat(np.arange(rows.size), np.diff(offsets))
        kept = np.ones(places.size, np.bool_)
        if request.at is not None:
            kept &= shown.times[places] <= request.at
        if request.item is not None:
            kept &= shown.items[places] == request.item
        kept &= shown.history_end[places] > 0
        places, owners = places[kept], owners[kept]
        # From the end of each user: 0 for the latest impression.
        ends = np.searchsorted(owners, owners, side="right")
        from_latest = ends - 1 - np.arange(owners.size)
        first = from_latest < (1 if request.item is not None else request.k)
        places, owners, from_latest = places[first], owners[first], from_latest[first]
        order = np.lexsort((from_latest, owners))
        places, owners, from_latest = places[order], owners[order], from_latest[order]
        asked = ask(
            packed,
            rows[owners],
            shown.history_end[places],
            shown.items[places],
            shown.times[places],
            self.model.max_events,
            take_all(shown.features, places),
            keys=row_ids[rows[owners]],
        )
        users = np.unique(owners).size
        none = np.zeros(owners.size + 1, np.int64)
        return Batch(asked, from_latest + 1, shown.history_end[places], users, rows.size - users, Seen(NOTHING, none))

    def _as_recommendations(self) -> RecommendRequest:
        """Return the part of the request that asks for recommendations."""
        request = self.request
        return RecommendRequest(
            parts=request.parts,
            k=request.k,
            filter_viewed=request.filter_viewed,
            item_to_item=False,
            at=request.at,
            weights=None,
            users=request.users,
        )

    def _lists(self) -> NextItemLists:
        block_items = self.trained.job.config.evaluate.score_block_items
        return NextItemLists(self.trained, self._as_recommendations(), self.world, block_items)

    def _reader(self) -> RowGroupReader:
        """Return the reader of what the model uses, and of the features by which attention is added up."""
        trained = self.trained
        columns = columns_for(trained.catalogue, users=True)
        grouped = {f.column for f in grouped_features(tuple(trained.manifest.features)) if f.owner == "event"}
        named = columns.features if isinstance(columns.features, frozenset) else frozenset()
        ranks = trained.manifest.task == "ranking"
        columns = replace(columns, times=True, features=named | grouped, impressions=ranks)
        return RowGroupReader(trained.job.dataset_dir, trained.manifest, columns)

    def _chosen(self) -> ChosenRows:
        """Return the assignment of the users to workers and batches."""
        rows = Chosen.of(self._as_recommendations()).rows
        assert rows is not None
        size = self.trained.job.config.evaluate.batch_size
        return ChosenRows(self._reader(), rows, size, self.world.rank, self.world.world_size)
