"""Tables with dynamic ids in a run: between a batch and its look-up, raw ids become rows.

Requests hold raw 64-bit ids of these tables. In training `assign_rows` counts the global batch, lets the mappings
take it in and resets the rows that changed hands; evaluation only asks for `rows_of`. Everything behind, the model too,
knows rows only. The mappings are decided in sharding.dynamic_ids.mapping and lie whole on every rank.

A use of an id is an event of the global batch whose item has it: each input event, and the last target of each history, which is
the one event that is no input. Other targets are inputs too and count once; candidates and negatives are no use. Of what an
event itself says, each input event is a use; of what a user says, each history with events. In ranking, where histories are
encoded for what was shown, each impression is a use as well. So uses do not depend on the
number of ranks, on which all look up the same candidates, nor on the objective.

Not thread-safe and not to be run ahead: batches are settled when they are trained, in that order.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.batches.history_batch import HistoryBatch
from models.features.inputs import NO_INPUTS, Inputs
from models.features.items import ItemRequest
from models.features.values import BagRange, FeatureValues, InputFeature
from models.ranking.batch import RankingBatch
from sharding.config import DynamicIdsConfig, TableConfig
from sharding.dynamic_ids.id_counts import SeenIds, exchange_counts
from sharding.dynamic_ids.mapping import (
    Changes,
    DynamicIdsState,
    from_tensors,
    look_up,
    new_state,
    observe,
    state_tensors,
)
from sharding.tables.optimizers import Optimizers
from sharding.tables.reset_rows import reset_rows
from sharding.world import World
from trainer.data.dataset.features import MISSING

Int64 = NDArray[np.int64]
Owner = Literal["values", "events", "users", "candidates"]  # of a feature: where an ItemRequest has its values


class DynamicTables:
    """The mappings of a model's dynamic tables, by table, and what they counted. There may be none; then nothing is changed."""

    def __init__(
        self,
        tables: Mapping[str, TableConfig],
        features: tuple[InputFeature, ...],
        seed: int,
        inputs: Inputs = NO_INPUTS,
    ) -> None:
        self.states: dict[str, DynamicIdsState] = {
            name: new_state(table.ids) for name, table in tables.items() if isinstance(table.ids, DynamicIdsConfig)
        }
        self._stds = {name: table.init_std for name, table in tables.items()}
        owned: list[tuple[Owner, tuple[InputFeature, ...]]] = [
            ("values", features),
            ("events", inputs.events),
            ("users", inputs.users),
            ("candidates", inputs.candidates),
        ]
        self._features: dict[str, list[tuple[Owner, str]]] = {
            table: [(owner, feature.name) for owner, found in owned for feature in found if feature.table == table]
            for table in self.states
        }
        self._seed = seed
        self._counts: dict[str, Counter[str]] = {table: Counter() for table in self.states}

    def rows_of(self, request: ItemRequest) -> ItemRequest:
        """The same request (on the CPU) with rows in the place of raw ids, each row once. Changes nothing."""
        if not self.states:
            return request
        rows = dict(request.rows)
        values: dict[Owner, dict[str, FeatureValues]] = {
            owner: dict(getattr(request, owner)) for owner in get_args(Owner)
        }
        bags = {
            name: replace(given, rows=torch.from_numpy(look_up(self.states[given.table], given.rows.numpy()).rows))
            if given.table in self.states
            else given
            for name, given in request.bags.items()
        }
        for table, state in self.states.items():
            if table not in rows:
                continue
            rows[table], place = _each_once(look_up(state, rows[table].numpy()).rows)
            for owner, name in self._features[table]:
                if name in values[owner]:  # items that are looked up alone have no events beside them
                    given = values[owner][name]
                    values[owner][name] = replace(given, index=place[given.index])
        return replace(request, rows=rows, bags=bags, **values)  # type: ignore[arg-type]

    def assign_rows(
        self, batch: HistoryBatch, sharded_model: nn.Module, optimizers: Optimizers, world: World
    ) -> HistoryBatch:
        """Take in the global batch of which this rank has `batch` (on the CPU): its ids may get rows, which are reset, while
        others lose theirs. Returns the batch with rows. Collective.

        Whether the step is then applied is not known yet, and makes no difference: what was observed stays.
        """
        if not self.states:
            return batch
        for table, state in self.states.items():
            seen = exchange_counts(uses_of(batch, table, self._features[table]), world)
            changes = observe(state, seen)
            rows, generations = torch.from_numpy(changes.rows), torch.from_numpy(changes.generations)
            reset_rows(sharded_model, optimizers, table, rows, generations, self._seed, self._stds[table])
            self._count(table, seen, changes)
        return replace(batch, items=self.rows_of(batch.items))

    def _count(self, table: str, seen: SeenIds, changes: Changes) -> None:
        unknown = look_up(self.states[table], seen.ids).rows == 0
        self._counts[table].update(
            admitted=changes.admitted_ids.size,
            evicted=changes.evicted_ids.size,
            waiting=changes.num_waiting,
            forgotten=changes.num_forgotten,
            uncounted=changes.num_uncounted,
            uses=int(seen.counts.sum()),
            unknown_uses=int(seen.counts[unknown].sum()),
        )

    def report(self) -> dict[str, float]:
        """What the steps did since this was last asked, as flat names for the log; the same on every rank."""
        values: dict[str, float] = {}
        for table, state in self.states.items():
            counts, self._counts[table] = self._counts[table], Counter()
            uses, unknown = counts.pop("uses", 0), counts.pop("unknown_uses", 0)
            given = {"rows_used": state.num_rows_used, "candidates": state.num_candidates, **counts}
            values |= {f"ids.{table}.{name}": value for name, value in given.items()}
            values[f"ids.{table}.unknown"] = unknown / uses if uses else 0.0
        return values

    def tensors(self) -> dict[str, Tensor]:
        """The mappings by name, for a checkpoint: alike on all ranks, of shapes that follow from the config."""
        return {
            f"ids.{table}.{name}": tensor
            for table, state in self.states.items()
            for name, tensor in state_tensors(state).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for table, state in self.states.items():
            start = f"ids.{table}."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            self.states[table] = from_tensors(state.config, own)


def _each_once(rows: Int64) -> tuple[Tensor, Tensor]:
    """(distinct rows, the place of each of `rows` among them). No rows but 0 are repeated."""
    known = rows > 0
    has_unknown = not known.all()
    distinct = np.concatenate((np.zeros(int(has_unknown), np.int64), rows[known]))
    place = np.where(known, np.cumsum(known) - 1 + int(has_unknown), 0)
    return torch.from_numpy(distinct), torch.from_numpy(place)


def uses_of(batch: HistoryBatch | RankingBatch, table: str, features: list[tuple[Owner, str]]) -> SeenIds:
    """The raw ids of a table in this rank's events, and how many uses each has."""
    uses: dict[Owner, Int64] = {
        "values": _events_of_items(batch),
        "events": np.ones(batch.layout.num_events, np.int64),
        "users": (np.diff(batch.layout.offsets.numpy()) > 0).astype(np.int64),
        "candidates": np.ones(batch.num_targets, np.int64),
    }
    bags = [(owner, batch.items.bags[bags.name]) for owner, name in features if (bags := _bags(batch, owner, name))]
    if bags:
        ids, place = np.unique(np.concatenate([given.rows.numpy() for _, given in bags]), return_inverse=True)
        counts = np.zeros(ids.size, np.int64)
        np.add.at(
            counts, place, np.concatenate([np.repeat(uses[owner], given.lengths.numpy()) for owner, given in bags])
        )
    else:
        ids = batch.items.rows[table].numpy()
        counts = np.zeros(ids.size, np.int64)
        for owner, name in features:
            values: FeatureValues = getattr(batch.items, owner)[name]
            np.add.at(counts, values.index.numpy(), uses[owner][values.owner.numpy()])
    used = np.flatnonzero((counts > 0) & (ids != MISSING))
    used = used[np.argsort(ids[used])]
    return SeenIds(ids[used], counts[used])


def _bags(batch: HistoryBatch | RankingBatch, owner: Owner, name: str) -> BagRange | None:
    values: FeatureValues = getattr(batch.items, owner)[name]
    return values.bags


def _events_of_items(batch: HistoryBatch | RankingBatch) -> Int64:
    """(U,) how many of the histories' events, and of impressions, each item of the batch has."""
    if isinstance(batch, RankingBatch):
        items = np.concatenate((batch.history_index.numpy(), batch.candidate_index.numpy()))
        return np.bincount(items, minlength=batch.lookup_ids.numel())
    offsets = batch.layout.offsets.numpy()
    lasts = offsets[1:][np.diff(offsets) > 0] - 1
    targets = batch.target_index.numpy()
    target_event = np.arange(targets.size) if batch.target_event is None else batch.target_event.numpy()
    if batch.masked is None:
        items = np.concatenate((batch.history_index.numpy(), targets[np.isin(target_event, lasts)]))
    else:  # then every event is an input, and those without an item are the targets
        items = np.concatenate((batch.history_index.numpy()[~batch.masked.numpy()], targets))
    return np.bincount(items, minlength=batch.lookup_ids.numel())
