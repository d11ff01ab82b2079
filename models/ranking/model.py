"""The ranking model: tables, interest of a candidate in its user's history, fields, crosses, experts, labels. Single-device code.

    candidate m of user u at time t:  interest(events of u before t, v(m)) | v(m) | features  ->  crosses  ->  experts  ->  logits

Every history is looked up once for all of its candidates; what of it a candidate sees is the interest's to say, and by
models.ranking.batch that is what happened strictly before. Behind the interest each candidate is on its own.

Shapes: B histories, N events, M candidates, U looked-up items, D model width, W width of the interest, T labels.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from models.features.inputs import NO_INPUTS, EventInputs, Inputs
from models.features.items import ITEM_TABLE, ItemComposer, ItemRequest
from models.features.values import InputFeature
from models.ranking.batch import RankingBatch
from models.ranking.config import LabelConfig, RankingConfig
from models.ranking.crossing import crossing_of, draw_crossing
from models.ranking.experts import Experts
from models.ranking.fields import Fields, Owners
from models.ranking.labels import Labels, Rates, rate_logits
from models.tables import EmbeddingTables, TableSpec


class Interest(Protocol):
    """What of a user's history bears on a candidate: a module that says so in `width` numbers for each candidate."""

    @property
    def width(self) -> int: ...

    def initialize(self, generator: torch.Generator) -> None:
        """Draw its weights, in a fixed order."""

    def __call__(self, events_ND: Tensor, candidates_MD: Tensor, batch: RankingBatch) -> tuple[Tensor, Tensor | None]:
        """(M, W), and a penalty to be added to the loss, or none.

        events_ND, candidates_MD: vectors of the events of histories and of candidates, as an encoder takes them.
        """


class RankingModel(nn.Module):
    """Logits of every label for candidates.

    labels: those that are learned, by name; tables: of items ("item") and of features, each as wide as its TableSpec says;
    tables_device: where those are built that are sharded later; interest: none for a model that does not look at histories;
    kept: the share of impressions without any label that the logs have (logs.negative_sampling_rate); rates: of the labels in
    training, from which it begins, else at one in two.
    """

    def __init__(
        self,
        config: RankingConfig,
        labels: Mapping[str, LabelConfig],
        tables: list[TableSpec],
        tables_device: torch.device,
        interest: Interest | None,
        item_features: tuple[InputFeature, ...] = (),
        inputs: Inputs = NO_INPUTS,
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
        """The labels that are learned, in the order of the columns of logits."""
        return self.label_losses.names

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the dense weights, in a fixed order; tables are initialised by key, after they are placed."""
        self.items.initialize(generator)
        if self.inputs is not None and self.interest is not None:
            self.inputs.initialize(generator)
            self.interest.initialize(generator)
        draw_crossing(self.crossing, generator)
        self.experts.initialize(generator, None if self.rates is None else rate_logits(self.label_losses, self.rates))

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        """By table, the rows (R, width) that a request asks for, and by name its bags. Collective once the tables are sharded."""
        found: dict[str, Tensor] = self.tables(request.rows, request.bags)
        return found

    def loss(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """Sum over all candidates and labels of the batch, never a mean. rows: what was looked up for batch.items."""
        raw_MT, penalty = self._raw_logits(rows, batch)
        loss = self.label_losses.loss(raw_MT, batch.labels, batch.history_of, batch.num_histories)
        return loss if penalty is None else loss + penalty

    def logits(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> Tensor:
        """(M, T) float32, of each label where it is defined: of impressions of the full log, if the logs are a sample of it."""
        return self.label_losses.logits(self._raw_logits(rows, batch)[0]).float()

    def _raw_logits(self, rows: Mapping[str, Tensor], batch: RankingBatch) -> tuple[Tensor, Tensor | None]:
        asked = batch.items
        items_UD = self.items(rows, asked)
        items_MD = items_UD.index_select(0, batch.candidate_index)
        interest_MW, penalty = self._interest(rows, items_UD, items_MD, batch)
        owners = Owners(batch.candidate_index, batch.history_of, batch.lookup_ids.numel(), batch.num_histories)
        fields = self.fields.gather(interest_MW, items_MD, rows, asked, owners)
        logits_MT: Tensor = self.experts(self.crossing(fields))
        return logits_MT, penalty

    def _interest(
        self, rows: Mapping[str, Tensor], items_UD: Tensor, items_MD: Tensor, batch: RankingBatch
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.interest is None or self.inputs is None:
            return None, None
        asked = batch.items
        events_ND = self.inputs(
            items_UD.index_select(0, batch.history_index),
            rows,
            asked.events,
            asked.users,
            batch.layout.offsets,
            batch.time_rows,
        )
        candidates_MD = self.inputs(
            items_MD, rows, asked.candidates, asked.users, batch.candidate_offsets, batch.candidate_time_rows
        )
        # Under autocast the interest may end in another precision than that of the vectors.
        interest_MW, penalty = self.interest(events_ND, candidates_MD, batch)
        return interest_MW.to(items_MD.dtype), penalty
