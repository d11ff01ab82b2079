"""Tables with dynamic ids in a run: raw ids become rows between a batch and its look-up.

Requests hold raw 64-bit ids of these tables. In training, `assign_rows` counts the global batch, updates the mappings and resets
the rows that got another id. Evaluation only calls `rows_of`. Everything after that, including the model, knows rows only. The
mappings themselves are in sharding.dynamic_ids.mapping; every rank holds all of them.

A use of an id is an event of the global batch with an item that has this id: each input event, and the last target of each history,
which is the only event that is not an input. Other targets are inputs too and count once. Candidates and negatives are not uses. A
value of an event is used by each input event, a value of a user by each history with events. In ranking, each impression is a use
as well. So uses depend neither on the world size, since all ranks look up the same candidates, nor on the objective.

Not thread-safe, and it must not run ahead: rows are assigned to batches when they are trained, in that order.
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
from models.features.inputs import NO_INPUTS, ModelInputs
from models.features.request import ItemRequest
from models.features.values import BagRange, FeatureValues, InputFeature
from models.ranking.batch import RankingBatch
from sharding.config import DynamicIdsConfig, TableConfig
from sharding.dynamic_ids.id_counts import IdCounts, exchange_counts
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
    """The mappings of a model's tables with dynamic ids, and their counts. Without such tables nothing is changed."""

    def __init__(
        self,
        tables: Mapping[str, TableConfig],
        features: tuple[InputFeature, ...],
        seed: int,
        inputs: ModelInputs = NO_INPUTS,
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
            table: [
                (owner, feature.name) for owner, owned_by in owned for feature in owned_by if feature.table == table
            ]
            for table in self.states
        }
        self._seed = seed
        self._counts: dict[str, Counter[str]] = {table: Counter() for table in self.states}

    def rows_of(self, request: ItemRequest) -> ItemRequest:
        """Return the request, on the CPU, with rows instead of raw ids, each row once. The mappings do not change."""
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
            rows[table], place = _unique_rows(look_up(state, rows[table].numpy()).rows)
            for owner, name in self._features[table]:
                if name in values[owner]:  # a request for items alone has no values of events
                    given = values[owner][name]
                    values[owner][name] = replace(given, index=place[given.index])
        return replace(request, rows=rows, bags=bags, **values)  # type: ignore[arg-type]

    def assign_rows(
        self, batch: HistoryBatch, sharded_model: nn.Module, optimizers: Optimizers, world: World
    ) -> HistoryBatch:
        """Update the mappings with the global batch, and return this rank's batch with rows instead of ids. Collective.

        Ids of the batch may be admitted, and other ids evicted. Rows that get another id are reset. The update stays even if the
        step is not applied.

        Args:
            batch: This rank's share, on the CPU.
            sharded_model: The model with the rows to reset.
            optimizers: The optimizers with the state to reset.
            world: All ranks.
        """
        if not self.states:
            return batch
        for table, state in self.states.items():
            seen = exchange_counts(uses_of(batch, table, self._features[table]), world)
            changes = observe(state, seen)
            rows = torch.from_numpy(changes.rows)
            generations = torch.from_numpy(changes.generations)
            reset_rows(sharded_model, optimizers, table, rows, generations, self._seed, self._stds[table])
            self._count(table, seen, changes)
        return replace(batch, items=self.rows_of(batch.items))

    def _count(self, table: str, seen: IdCounts, changes: Changes) -> None:
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
        """Return the counts since the last call, as flat names for the log. They are the same on every rank."""
        values: dict[str, float] = {}
        for table, state in self.states.items():
            counts = self._counts[table]
            self._counts[table] = Counter()
            uses = counts.pop("uses", 0)
            unknown = counts.pop("unknown_uses", 0)
            given = {"rows_used": state.num_rows_used, "candidates": state.num_candidates, **counts}
            values |= {f"ids.{table}.{name}": value for name, value in given.items()}
            values[f"ids.{table}.unknown"] = unknown / uses if uses else 0.0
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Return the mappings by name, for a checkpoint. They are the same on all ranks; the config determines their shapes."""
        return {
            f"ids.{table}.{name}": tensor
            for table, state in self.states.items()
            for name, tensor in state_tensors(state).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for table, state in self.states.items():
            start = f"ids.{table}."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            self.states[table] = from_tensors(state.config, own)


def _unique_rows(rows: Int64) -> tuple[Tensor, Tensor]:
    """Return (distinct rows, the index of each of `rows` among them). Only row 0 may be repeated."""
    known = rows > 0
    has_unknown = not known.all()
    distinct = np.concatenate((np.zeros(int(has_unknown), np.int64), rows[known]))
    place = np.where(known, np.cumsum(known) - 1 + int(has_unknown), 0)
    return torch.from_numpy(distinct), torch.from_numpy(place)


def uses_of(batch: HistoryBatch | RankingBatch, table: str, features: list[tuple[Owner, str]]) -> IdCounts:
    """Return the raw ids of a table in this rank's events, and the number of uses of each."""
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
    return IdCounts(ids[used], counts[used])


def _bags(batch: HistoryBatch | RankingBatch, owner: Owner, name: str) -> BagRange | None:
    values: FeatureValues = getattr(batch.items, owner)[name]
    return values.bags


def _events_of_items(batch: HistoryBatch | RankingBatch) -> Int64:
    """Return the number of events of histories, and of impressions, of each item of the batch, (U,)."""
    if isinstance(batch, RankingBatch):
        items = np.concatenate((batch.history_index.numpy(), batch.candidate_index.numpy()))
        return np.bincount(items, minlength=batch.lookup_ids.numel())
    offsets = batch.layout.offsets.numpy()
    lasts = offsets[1:][np.diff(offsets) > 0] - 1
    targets = batch.target_index.numpy()
    target_event = np.arange(targets.size) if batch.target_event is None else batch.target_event.numpy()
    if batch.masked is None:
        items = np.concatenate((batch.history_index.numpy(), targets[np.isin(target_event, lasts)]))
    else:  # every event is an input, and the masked events are the targets
        items = np.concatenate((batch.history_index.numpy()[~batch.masked.numpy()], targets))
    return np.bincount(items, minlength=batch.lookup_ids.numel())
