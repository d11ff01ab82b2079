"""Tables with dynamic ids in a run: raw ids become rows between a batch and its look-up.

Requests hold raw 64-bit ids of these tables. In training, `assign_rows` counts the global batch and updates the mappings, and
`reset` resets the rows that got another id. Evaluation only calls `rows_of`. Everything after that, including the model, knows
rows only. The mappings themselves are in sharding.dynamic_ids.mapping. Each id belongs to one rank, and ranks ask each other for
rows, so both methods are collective. All their exchanges use CPU tensors: they do not wait for a GPU.

A use of an id is an event of the global batch with an item that has this id: each input event, and the last target of each history,
which is the only event that is not an input. Other targets are inputs too and count once. Candidates and negatives are not uses. A
value of an event is used by each input event, a value of a user by each history with events. In ranking, each impression is a use
as well. So uses depend neither on the world size, since all ranks look up the same candidates, nor on the objective.

Not thread-safe: rows are assigned to batches in the order of training. They may be assigned to the next batch while a step
computes, unless a checkpoint or an evaluation follows it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from sharding.dynamic_ids.id_counts import IdCounts
from sharding.dynamic_ids.mapping import Changes, look_up_anywhere, observe_shares
from sharding.dynamic_ids.saved import from_tensors, state_tensors
from sharding.dynamic_ids.state import DynamicIdsState, new_state
from sharding.tables.optimizers import Optimizers
from sharding.tables.reset_rows import reset_rows
from sharding.world import ALONE, World
from trainer.data.dataset.features import MISSING

Int64 = NDArray[np.int64]
Owner = Literal["values", "events", "users", "candidates"]  # of a feature: where an ItemRequest has its values
Find = Callable[[str, Int64], Int64]  # returns the rows of raw ids of a table


@dataclass(frozen=True)
class ChangedRows:
    """Rows of a table that got another id."""

    # name of the table.
    table: str
    # (R,) int64, the rows.
    rows: Tensor
    # (R,) int64, their new generations.
    generations: Tensor


class DynamicTables:
    """This rank's part of the mappings of a model's tables with dynamic ids, and their counts.

    Without such tables nothing is changed. Creating it is collective.
    """

    def __init__(
        self,
        tables: Mapping[str, TableConfig],
        features: tuple[InputFeature, ...],
        seed: int,
        inputs: ModelInputs = NO_INPUTS,
        world: World = ALONE,
    ) -> None:
        dynamic = {name: table.ids for name, table in tables.items() if isinstance(table.ids, DynamicIdsConfig)}
        if dynamic:
            world = world.on_cpu()
        self.states: dict[str, DynamicIdsState] = {name: new_state(ids, world) for name, ids in dynamic.items()}
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
        """Return the request, on the CPU, with rows instead of raw ids, each row once. Collective.

        The mappings do not change. Ranks may ask for different ids, or for none.
        """
        return self._with_rows(request, lambda table, ids: look_up_anywhere(self.states[table], ids).rows)

    def _with_rows(self, request: ItemRequest, find: Find) -> ItemRequest:
        """Return the request with rows instead of raw ids. `find` is called once per table, in the same order on all ranks."""
        if not self.states:
            return request
        rows = dict(request.rows)
        values: dict[Owner, dict[str, FeatureValues]] = {
            owner: dict(getattr(request, owner)) for owner in get_args(Owner)
        }
        bags = dict(request.bags)
        for table, state in self.states.items():
            of_table = [name for name, given in bags.items() if given.table == table]
            parts = [bags[name].rows.numpy() for name in of_table] + ([rows[table].numpy()] if table in rows else [])
            sizes = [part.size for part in parts]
            # A request without ids of this table takes part in the exchange as well.
            asked = np.concatenate(parts) if parts else np.empty(0, np.int64)
            if of_table and state.world.world_size > 1:
                # Bags repeat ids, and each is sent once.
                unique, place_of = np.unique(asked, return_inverse=True)
                mapped = find(table, unique)[place_of]
            else:
                mapped = find(table, asked)
            pieces = np.split(mapped, np.cumsum(sizes)[:-1]) if parts else []
            for name, piece in zip(of_table, pieces, strict=False):
                bags[name] = replace(bags[name], rows=torch.from_numpy(piece))
            if table not in rows:
                continue
            rows[table], place = _unique_rows(pieces[-1])
            for owner, name in self._features[table]:
                if name in values[owner]:  # a request for items alone has no values of events
                    given = values[owner][name]
                    values[owner][name] = replace(given, index=place[given.index])
        return replace(request, rows=rows, bags=bags, **values)  # type: ignore[arg-type]

    def assign_rows(self, batch: HistoryBatch) -> tuple[HistoryBatch, list[ChangedRows]]:
        """Update the mappings with the global batch. Collective.

        Ids of the batch may be admitted, and other ids evicted. The update stays even if the step is not applied.

        Args:
            batch: This rank's share, on the CPU.

        Returns:
            The batch with rows instead of ids, and the rows that got another id, for `reset`.
        """
        changed: list[ChangedRows] = []

        def observe_and_find(table: str, ids: Int64) -> Int64:
            used = uses_of(batch, table, self._features[table])
            changes, mapped = observe_shares(self.states[table], used, ids)
            changed.append(ChangedRows(table, torch.from_numpy(changes.rows), torch.from_numpy(changes.generations)))
            self._count(table, changes)
            return mapped

        return replace(batch, items=self._with_rows(batch.items, observe_and_find)), changed

    def reset(self, changed: list[ChangedRows], sharded_model: nn.Module, optimizers: Optimizers) -> None:
        """Reset rows that got another id, and their state in the optimizers. Call it after the update of the step before."""
        for rows in changed:
            std = self._stds[rows.table]
            reset_rows(sharded_model, optimizers, rows.table, rows.rows, rows.generations, self._seed, std)

    def _count(self, table: str, changes: Changes) -> None:
        self._counts[table].update(
            admitted=changes.admitted_ids.size,
            evicted=changes.evicted_ids.size,
            waiting=changes.num_waiting,
            forgotten=changes.num_forgotten,
            uncounted=changes.num_uncounted,
            uses=changes.num_uses,
            unknown_uses=changes.num_unknown_uses,
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
        """Return the mappings by name, for a checkpoint, divided over ranks. The config determines their shapes. Collective."""
        return {
            f"ids.{table}.{name}": tensor
            for table, state in self.states.items()
            for name, tensor in state_tensors(state).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, also that of another number of ranks. Collective."""
        for table, state in self.states.items():
            start = f"ids.{table}."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            self.states[table] = from_tensors(state.config, own, state.world)


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
