"""One worker's part of a request: explanations are written as they are computed."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sharding.world import World
from trainer.explanation import methods
from trainer.explanation.aggregates.sums import AttentionSums, attention_sums, merged
from trainer.explanation.attribution import Attribution
from trainer.explanation.command.event_groups import EventGroups
from trainer.explanation.command.folder import EVENTS, HEADS, SETS
from trainer.explanation.command.measure import measured_of, together
from trainer.explanation.command.questions import Batch, Chooser
from trainer.explanation.command.request import ExplainRequest, Measurements, PartResult
from trainer.explanation.command.rows import event_rows, head_rows, set_rows
from trainer.explanation.explained import Explained, ExplainedNextItem, explained_model
from trainer.explanation.heads import head_effects
from trainer.explanation.methods import WITH_POOL, MethodOptions
from trainer.explanation.smallest_set import smallest_sets
from trainer.explanation.top_items import CatalogueTop
from trainer.inference.trained_model import TrainedModel
from trainer.item_search.score_tiles import ItemShard
from trainer.recommend.folder import PartWriter

OnBatch = Callable[[int, int, int], None]
"""Called after each batch with the number of batches done, of all batches, and of users so far."""
LARGEST_SET = 6  # events that are removed to change the answer
ATTENTION = "attention"


@dataclass
class _Part:
    """The work of one worker, and what it has done so far."""

    model: Explained
    request: ExplainRequest
    groups: EventGroups
    shard: ItemShard | None
    options: MethodOptions
    users: int = 0
    without: int = 0
    questions: int = 0
    rows: int = 0
    sums: list[AttentionSums] = field(default_factory=list)
    measured: list[Measurements] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """The tables that are written. A ranker, and a given item, have no best item that could change."""
        return (EVENTS, HEADS, SETS) if self.shard is not None and self.request.item is None else (EVENTS, HEADS)

    def tables(self, batch: Batch) -> dict[str, pa.Table]:
        """Return the rows of a batch by name of the table, and count it. Collective."""
        asked = batch.asked
        wanted = {*self.request.methods, ATTENTION}
        chosen = [name for name in methods.METHODS if name in wanted]
        computed = methods.explain_all(self.model, asked, chosen, self.options)
        self._add_attention(batch, computed[ATTENTION])
        if self.request.measure:
            self.measured.append(measured_of(self.model, self.shard, batch, computed, self.options))
        own = {name: computed[name] for name in self.request.methods}
        tables = {
            EVENTS: event_rows(self.model.trained, batch, own),
            HEADS: head_rows(self.model.trained, batch, head_effects(self.model, asked)),
        }
        if SETS in self.names:
            tables[SETS] = self._sets(batch)
        self.users += batch.num_users
        self.without += batch.num_without
        self.questions += asked.size
        self.rows += tables[EVENTS].num_rows
        return tables

    def _add_attention(self, batch: Batch, attention: Attribution) -> None:
        """Add the attention to the histories of users, once for each user. Rankers attend from each impression."""
        if not attention.maps or attention.detail is None or not batch.asked.size:
            return
        asked = batch.asked
        events = np.isin(asked.owner, batch.firsts)
        first = asked.take(batch.firsts)
        codes = self.groups.codes(first)
        self.sums.append(attention_sums(attention.maps, attention.detail[events].T, first.offsets, codes))

    def _sets(self, batch: Batch) -> pa.Table:
        """Return the smallest sets that change the best item of each user. Collective."""
        assert isinstance(self.model, ExplainedNextItem)
        assert self.shard is not None
        firsts = batch.firsts
        top = CatalogueTop(self.model, self.shard, batch.seen.of(firsts))
        options = self.options
        sets = smallest_sets(
            top,
            batch.asked.take(firsts),
            max_size=LARGEST_SET,
            how=options.removal,
            pool=options.pool,
            seed=options.seed,
        )
        return set_rows(self.model.trained, batch, firsts, sets, LARGEST_SET)


def write_part(trained: TrainedModel, request: ExplainRequest, world: World, on_batch: OnBatch) -> PartResult:
    """Write this worker's files of explanations. Collective.

    Args:
        trained: the model, with sharded tables.
        request: what is asked for.
        world: the workers.
        on_batch: called after each batch.
    """
    started = time.monotonic()
    model = explained_model(trained, world, request.label)
    chooser = Chooser(model, request, world)
    needs_pool = request.removal == "replaced" or bool(set(request.methods) & set(WITH_POOL))
    options = MethodOptions(pool=chooser.pool() if needs_pool else None, removal=request.removal, seed=request.seed)
    part = _Part(model, request, EventGroups.of(trained), chooser.item_shard(), options)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(PartWriter(request.parts / name, world.rank)) for name in part.names}
        for number, batch in enumerate(chooser.batches(part.shard), start=1):
            for name, table in part.tables(batch).items():
                writers[name].write(table)
            on_batch(number, chooser.num_batches(), part.users)
    return PartResult(
        num_users=part.users,
        num_without=part.without,
        num_questions=part.questions,
        num_rows=part.rows,
        seconds=time.monotonic() - started,
        attention=merged(part.sums),
        groupings=tuple(part.groups.groupings()),
        measured=together(part.measured),
    )
