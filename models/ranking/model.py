"""The ranking model: tables, interest, fields, crosses, experts, labels. Single-device code.

    candidate m of user u at time t:  interest(events of u before t, v(m)) | v(m) | features  ->  crosses  ->  experts  ->  logits

Every history is looked up once for all of its candidates. A candidate sees the events strictly before it
(models.ranking.batch). After the interest each candidate is computed by itself.

Shapes: B histories, N events, M candidates, U looked-up items, D model width, W width of the interest, T labels.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from models.features.composer import ItemComposer
from models.features.inputs import NO_INPUTS, EventInputs, ModelInputs
from models.features.request import ITEM_TABLE
from models.features.values import InputFeature
from models.ranking.batch import RankingBatch
from models.ranking.config import LabelConfig, RankingConfig
from models.ranking.crossing import crossing_of, draw_crossing
from models.ranking.experts import Experts
from models.ranking.fields import Fields, Owners
from models.ranking.labels import Labels, Rates, rate_logits
from models.tables import EmbeddingTables, TableModel, TableSpec


class HistoryInterest(Protocol):
    """A module that turns the history before a candidate into `width` numbers."""

    @property
    def width(self) -> int: ...

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights, in a fixed order."""

    def __call__(self, events_ND: Tensor, candidates_MD: Tensor, batch: RankingBatch) -> tuple[Tensor, Tensor | None]:
        """Return the interest (M, W), and a penalty that is added to the loss, or None.

        events_ND, candidates_MD: vectors of events and candidates, in the form of an encoder's input.
        """


class RankingModel(TableModel):
    """Logits of every label for candidates.

    Args:
        config: the settings.
        labels: the learned labels by name.
        tables: of items ("item") and of features, each as wide as its TableSpec.
        tables_device: the device of the tables that are sharded later.
        interest: None for a model that does not use histories.
        item_features: the features of items.
        inputs: the inputs besides items.
        kept: the share of impressions without any label that the logs contain (logs.negative_sampling_rate).
        rates: of the labels in training, for initial logits; None: a rate of one half.
    """

    def __init__(
        self,
        config: RankingConfig,
        labels: Mapping[str, LabelConfig],
        tables: list[TableSpec],
        tables_device: torch.device,
        interest: HistoryInterest | None,
        item_features: tuple[InputFeature, ...] = (),
        inputs: ModelInputs = NO_INPUTS,
        kept: float = 1.0,
        rates: Rates | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.width = next(table.dim for table in tables if table.name == ITEM_TABLE)
        self.tables = EmbeddingTables(tables, tables_device)
        self.items = ItemComposer(self.width, item_features)
        self.inputs = EventInputs(self.width, inputs) if interest is not None else None
        self.interest = interest
        self.fields = Fields(self.width, interest.width if interest is not None else 0, item_features, inputs)
        self.crossing = crossing_of(config.crossing, list(self.fields.widths.values()))
        self.experts = Experts(self.crossing.width, len(labels), config.experts)
        self.label_losses = Labels(labels, kept, config.negative_sampling)
        self.rates = rates

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the learned labels, in the order of the columns of logits."""
        return self.label_losses.names

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the dense weights, in a fixed order. Tables are initialised by key, after they are sharded."""
        self.items.initialize(generator)
        if self.inputs is not None and self.interest is not None:
            self.inputs.initialize(generator)
            self.interest.initialize(generator)
        draw_crossing(self.crossing, generator)
        self.experts.initialize(generator, None if self.rates is None else rate_logits(self.label_losses, self.rates))

    def loss(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """Return the sum of the loss over all candidates and labels of the batch, never a mean.

        rows: the looked-up vectors of batch.items.
        """
        raw_MT, penalty = self._raw_logits(rows, batch)
        loss = self.label_losses.loss(raw_MT, batch.labels, batch.history_of, batch.num_histories)
        return loss if penalty is None else loss + penalty

    def logits(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """Return the logits of each label where it is defined, (M, T) float32.

        They are those of the full log, also if the logs are a sample of it.
        """
        return self.label_losses.logits(self._raw_logits(rows, batch)[0]).float()

    def event_vectors(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """Return the vector of each event of the histories, with its features and times, (N, D); zeros without interest."""
        items_UD: Tensor = self.items(rows, batch.items)
        if self.inputs is None:
            return items_UD.new_zeros((batch.layout.num_events, self.width))
        return self._event_vectors(self.inputs, rows, items_UD, batch)

    def logits_from(self, events_ND: Tensor, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """Return what `logits` returns if the events have these vectors, (M, T) float32.

        events_ND: in the form of `event_vectors`.
        """
        return self.label_losses.logits(self._raw_logits(rows, batch, events_ND)[0]).float()

    def _raw_logits(
        self, rows: Mapping[str, Tensor], batch: RankingBatch, events_ND: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        request = batch.items
        items_UD = self.items(rows, request)
        items_MD = items_UD.index_select(0, batch.candidate_index)
        interest_MW, penalty = self._interest(rows, items_UD, items_MD, batch, events_ND)
        owners = Owners(batch.candidate_index, batch.history_of, batch.lookup_ids.numel(), batch.num_histories)
        fields = self.fields.gather(interest_MW, items_MD, rows, request, owners)
        logits_MT: Tensor = self.experts(self.crossing(fields))
        return logits_MT, penalty

    def _interest(
        self,
        rows: Mapping[str, Tensor],
        items_UD: Tensor,
        items_MD: Tensor,
        batch: RankingBatch,
        events_ND: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.interest is None or self.inputs is None:
            return None, None
        request = batch.items
        if events_ND is None:
            events_ND = self._event_vectors(self.inputs, rows, items_UD, batch)
        candidates_MD = self.inputs(
            items_MD, rows, request.candidates, request.users, batch.candidate_offsets, batch.candidate_time_rows
        )
        # Under autocast the interest may end in another precision than that of the vectors.
        interest_MW, penalty = self.interest(events_ND, candidates_MD, batch)
        return interest_MW.to(items_MD.dtype), penalty

    def _event_vectors(
        self, inputs: EventInputs, rows: Mapping[str, Tensor], items_UD: Tensor, batch: RankingBatch
    ) -> Tensor:
        request = batch.items
        events_ND: Tensor = inputs(
            items_UD.index_select(0, batch.history_index),
            rows,
            request.events,
            request.users,
            batch.layout.offsets,
            batch.time_rows,
        )
        return events_ND
