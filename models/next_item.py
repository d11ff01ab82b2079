"""The next-item model: item table, encoder of histories, objective. Single-device code; sharding is applied from outside.

Shapes: B histories, N input events, U looked-up ids, D model width.
The table's lookup and the rest are two separate calls, because between them lies the boundary where rows leave the sharded
tables: the trainer cuts the graph there, to see (check, clip, normalise) the gradient before the fused optimizer applies it.
"""

import torch
from torch import Tensor, nn

from models.batch import HistoryBatch
from models.config import ModelConfig, SampledSoftmaxConfig
from models.objectives import sampled_softmax_cross_entropy, scale_vectors, softmax_cross_entropy
from models.sasrec import SASRec
from models.tables import TableSpec, build_tables, lookup_request

FIRST_ITEM = 1  # row 0 is the declared row of unknown items: looked up in histories, never recommended


class NextItemModel(nn.Module):
    """Scores of all items for every prefix of a history.

    item_rows: (num_items + 1,) int64, the table row of every item id, where rows are shared (hashed ids); none where each id is
    its own row.
    """

    item_rows: Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        item_table: TableSpec,
        tables_device: torch.device,
        item_rows: Tensor | None = None,
    ) -> None:
        super().__init__()
        # A function of the dataset and the settings, so no checkpoint needs it.
        self.register_buffer("item_rows", item_rows, persistent=False)
        self.config = config
        self.item_table = item_table
        self.tables = build_tables([item_table], tables_device)
        self.encoder = SASRec(item_table.dim, config.max_history, config.encoder)

    @property
    def needs_whole_table(self) -> bool:
        return self.config.objective.kind == "full_softmax"

    def look_up(self, ids: Tensor) -> Tensor:
        """The vectors of item ids (U,) int64 -> (U, D). A collective operation once the tables are sharded."""
        if self.item_rows is not None:
            ids = self.item_rows[ids]
        rows: Tensor = self.tables(lookup_request(self.item_table.name, ids))[self.item_table.name].values()
        return rows

    def loss(self, rows_UD: Tensor, batch: HistoryBatch) -> Tensor:
        """Sum over all targets of the batch (not the mean: see models.objectives). `rows_UD` belongs to batch.lookup_ids."""
        objective = self.config.objective
        user_ND = scale_vectors(self._encode(rows_UD, batch), objective.normalize)
        rows_UD = scale_vectors(rows_UD, objective.normalize)
        if isinstance(objective, SampledSoftmaxConfig):
            positive_ND, negative_CD = rows_UD[batch.target_index], rows_UD[batch.negative_index]
            hit_NC = batch.target_ids[:, None] == batch.negative_ids[None, :]
            return sampled_softmax_cross_entropy(user_ND, positive_ND, negative_CD, hit_NC, objective.temperature)
        return softmax_cross_entropy(
            user_ND, rows_UD[FIRST_ITEM:], batch.target_ids - FIRST_ITEM, objective.temperature
        )

    def user_vectors(self, rows_UD: Tensor, batch: HistoryBatch) -> Tensor:
        """The vector of each whole history, ready for a dot product with `item_vectors`: (B, D); zeros if it is empty."""
        encoded_ND = self._encode(rows_UD, batch)
        lengths_B = batch.layout.offsets.diff()
        last_B = (batch.layout.offsets[1:] - 1).clamp(min=0)
        if encoded_ND.shape[0] == 0:
            return rows_UD.new_zeros((lengths_B.numel(), self.item_table.dim))
        user_BD = encoded_ND[last_B] * (lengths_B > 0)[:, None]
        return scale_vectors(user_BD, self.config.objective.normalize)

    def item_vectors(self, rows_UD: Tensor) -> Tensor:
        """What a table row looks like to a user vector. (U, D) -> (U, D)."""
        return scale_vectors(rows_UD, self.config.objective.normalize)

    def _encode(self, rows_UD: Tensor, batch: HistoryBatch) -> Tensor:
        encoded: Tensor = self.encoder(rows_UD[batch.history_index], batch.layout)
        return encoded
