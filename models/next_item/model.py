"""The next-item model: item table, encoder of histories, objective. Single-device code; sharding is applied from outside.

Shapes: B histories, n of them not empty, N input events, U looked-up ids, D model width.

The look-up and the rest of the model are two calls, since rows leave the sharded tables between them. The trainer cuts the
graph there, to check, clip and normalise the gradient before the fused optimizer applies it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.continued import ContinuedContext, PastEvents
from models.batches.history_batch import HistoryBatch
from models.batches.micro_batches import parts_of
from models.compiled.kernels import CompiledKernels
from models.config import NextItemConfig
from models.encoders.encoder import Encoder
from models.features.composer import ItemComposer
from models.features.inputs import NO_INPUTS, EventInputs, ModelInputs
from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import InputFeature
from models.next_item.later_targets import LaterHeads, later_targets
from models.next_item.masking import MaskVector
from models.objectives.loss import loss_of
from models.objectives.softmax import scale_vectors
from models.tables import EmbeddingTables, TableModel, TableSpec


class NextItemModel(TableModel):
    """Scores of all items for every prefix of a history.

    Args:
        config: the settings.
        tables: of items ("item") and of the features in `item_features` and `inputs`, each as wide as its TableSpec.
        tables_device: the device of the tables that are sharded later.
        item_features: the features of items.
        inputs: the inputs besides items.
    """

    def __init__(
        self,
        config: NextItemConfig,
        tables: list[TableSpec],
        tables_device: torch.device,
        item_features: tuple[InputFeature, ...] = (),
        inputs: ModelInputs = NO_INPUTS,
    ) -> None:
        super().__init__()
        self.config = config
        self.width = next(table.dim for table in tables if table.name == ITEM_TABLE)
        self.tables = EmbeddingTables(tables, tables_device)
        self.encoder = Encoder(self.width, config.max_history, config.encoder)
        self.items = ItemComposer(self.width, item_features)
        self.inputs = EventInputs(self.width, inputs)
        self.mask = MaskVector(self.width) if config.masks_items else None
        self.later = LaterHeads(self.width, config.later_targets) if config.later_targets else None
        # Of the loss with its encoder, and of encoding alone. Without them torch computes these.
        self.kernels: CompiledKernels | None = None
        self.encoding_kernels: CompiledKernels | None = None

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the dense weights, in a fixed order. Tables are initialised by key, after they are sharded."""
        self.encoder.initialize(generator)
        self.items.initialize(generator)
        self.inputs.initialize(generator)
        if self.mask is not None:
            self.mask.initialize(generator)
        if self.later is not None:
            self.later.initialize()

    def loss(self, rows: Mapping[str, Tensor], batch: HistoryBatch) -> Tensor:
        """Return the sum of the loss over all targets of the batch (not the mean: see models.objectives.softmax).

        rows: the looked-up vectors of batch.items.
        """
        items_UD = self.items(rows, batch.items)
        context = _context_of(batch, self.kernels)
        user_ND, penalty = self._encode_in(context, rows, items_UD, batch)
        place_T, position_N = self._places_of_targets(batch)
        user_TD = user_ND if place_T is None else user_ND.index_select(0, place_T)
        softmax = None if self.kernels is None else self.kernels.softmax
        candidates_UD = self._candidates(items_UD)
        loss = loss_of(self.config.objective, user_TD, candidates_UD, batch, softmax)
        if self.later is not None:
            place_T = torch.arange(batch.num_targets, device=user_ND.device) if place_T is None else place_T
            number = self.config.later_targets
            for further, encoded_TD, part in later_targets(user_ND, place_T, position_N, batch, number):
                later_TD = self.later(encoded_TD, further)
                later_loss = loss_of(self.config.objective, later_TD, candidates_UD, part, softmax)
                loss = loss + self.config.later_weight**further * later_loss
        return loss if penalty is None else loss + penalty

    def _places_of_targets(self, batch: HistoryBatch) -> tuple[Tensor | None, Tensor]:
        """Return the encoded event of each target, (T,), or None if these are all; and the positions of the encoded events."""
        target_T = batch.target_event
        kept = self.config.encoder.num_newest
        if kept is None:
            return target_T, batch.layout.positions
        newest = batch.layout.newest(kept)
        assert target_T is not None or newest.layout.num_events == batch.layout.num_events, (
            "older events are no targets"
        )
        place_T = None if target_T is None else torch.searchsorted(newest.index, target_T)
        return place_T, newest.layout.positions

    def user_vectors(self, rows: Mapping[str, Tensor], batch: HistoryBatch) -> Tensor:
        """Return the vector of each whole history for a dot product with `item_vectors`, (B, D); zeros if empty.

        A batch that is cut (models.batches.micro_batches) is encoded piece by piece.
        """
        items_UD = self.items(rows, batch.items)
        vectors = [self._last_vectors(rows, items_UD, part) for part in parts_of(batch)]
        return scale_vectors(torch.cat(vectors), self.config.objective.normalize)

    def _last_vectors(self, rows: Mapping[str, Tensor], items_UD: Tensor, batch: HistoryBatch) -> Tensor:
        """Return the encoded last event of each history, (B, D); zeros if it is empty."""
        last_nD, _ = self._encode(rows, items_UD, batch, only_last=True)
        return self._of_filled(last_nD, batch)

    def _of_filled(self, last_nD: Tensor, batch: HistoryBatch) -> Tensor:
        """Return a vector for every history, (B, D): those of the n histories that are not empty, and zeros."""
        is_filled_B = batch.layout.offsets.diff() > 0
        user_BD = last_nD.new_zeros((is_filled_B.numel(), self.width))
        user_BD[is_filled_B] = last_nD
        return user_BD

    def event_vectors(self, rows: Mapping[str, Tensor], batch: HistoryBatch) -> Tensor:
        """Return the vector of each input event, with its features and times, before positions and the mask, (N, D)."""
        return self._event_vectors(rows, self.items(rows, batch.items), batch)

    def user_vectors_from(self, events_ND: Tensor, batch: HistoryBatch) -> Tensor:
        """Return what `user_vectors` returns if its input events have these vectors, (B, D).

        events_ND: in the form of `event_vectors`.
        """
        context = _context_of(batch, self.encoding_kernels)
        last_nD, _ = self._encode_vectors(context, events_ND, batch, only_last=True)
        return scale_vectors(self._of_filled(last_nD, batch), self.config.objective.normalize)

    @property
    def can_continue(self) -> bool:
        """Return whether earlier events keep their keys and values when a history grows (models.attention.continued)."""
        encoder = self.config.encoder
        return not encoder.bidirectional and encoder.positions_from == "oldest" and encoder.num_newest is None

    def continued_vectors(
        self, rows: Mapping[str, Tensor], batch: HistoryBatch, past: PastEvents, num_final: Tensor
    ) -> tuple[Tensor, PastEvents]:
        """Return the vectors (B, D) of histories of which the batch holds the newest events, and what to keep of them.

        They equal those of `user_vectors` for the whole histories. None of the histories may be longer than max_history.

        Args:
            rows: the looked-up vectors of batch.items.
            batch: at least one new event of each history; its times count from the first event of the whole history.
            past: of the earlier events.
            num_final: (B,) int64, how many of the new events, the oldest ones, no later event changes. With request times the
                newest one changes: its request is that of the event that follows.
        """
        context = ContinuedContext(batch.layout, batch.times, batch.request_times, past=past)
        encoded_ND, _ = self._encode_in(context, rows, self.items(rows, batch.items), batch)
        user_BD = encoded_ND[batch.layout.offsets[1:] - 1]
        return scale_vectors(user_BD, self.config.objective.normalize), context.kept(num_final)

    def item_vectors(self, rows: Mapping[str, Tensor], request: ItemRequest) -> Tensor:
        """Return the vectors of the items of a request for a dot product with `user_vectors`, (U, D)."""
        return scale_vectors(self._candidates(self.items(rows, request)), self.config.objective.normalize)

    def _candidates(self, items_UD: Tensor) -> Tensor:
        """Return the vectors that are scored. They differ from those in histories if items have a tower of their own."""
        candidates_UD: Tensor = self.encoder.item_tower(items_UD)
        return candidates_UD.to(items_UD.dtype)

    def _encode(
        self, rows: Mapping[str, Tensor], items_UD: Tensor, batch: HistoryBatch, only_last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        context = _context_of(batch, self.encoding_kernels)
        return self._encode_in(context, rows, items_UD, batch, only_last)

    def _encode_in(
        self,
        context: AttentionContext,
        rows: Mapping[str, Tensor],
        items_UD: Tensor,
        batch: HistoryBatch,
        only_last: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        encoded_ND, penalty = self._encode_vectors(
            context, self._event_vectors(rows, items_UD, batch), batch, only_last
        )
        # Under autocast an encoder may end in another precision than that of the vectors.
        return encoded_ND.to(items_UD.dtype), penalty

    def _event_vectors(self, rows: Mapping[str, Tensor], items_UD: Tensor, batch: HistoryBatch) -> Tensor:
        request = batch.items
        index_N = batch.history_index
        # The same rows. Without a gradient index_select takes a third of the time on a CPU.
        of_events = items_UD[index_N] if torch.is_grad_enabled() else items_UD.index_select(0, index_N)
        x_ND: Tensor = self.inputs(
            of_events, rows, request.events, request.users, batch.layout.offsets, batch.time_rows
        )
        return x_ND

    def _encode_vectors(
        self, context: AttentionContext, x_ND: Tensor, batch: HistoryBatch, only_last: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.mask is not None and batch.masked is not None:
            x_ND = self.mask(x_ND, batch.masked)
        encoded: tuple[Tensor, Tensor | None] = self.encoder(x_ND, context, only_last)
        return encoded


def _context_of(batch: HistoryBatch, kernels: CompiledKernels | None) -> AttentionContext:
    """Return the context of a batch for an encoder with these kernels."""
    attention, layers = (None, None) if kernels is None else (kernels.attention, kernels.layers)
    return AttentionContext(batch.layout, batch.times, batch.request_times, kernel=attention, layer_kernels=layers)
