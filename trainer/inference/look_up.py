"""Look-ups in whole tables: plain indexing of their weights, without TorchRec's requests.

The rows are those of models.tables.EmbeddingTables, and bags are equal within rounding. TorchRec's path is made for shards, and
writes a warning to the terminal when it is used first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.features.request import ItemRequest

WEIGHTS = (".embeddings.", ".embedding_bags.")  # between the name of a collection and that of a table


@dataclass(frozen=True)
class WholeTables:
    """Tables that are in memory with all their rows."""

    weights: Mapping[str, Tensor]
    """(rows, width) by table."""

    @classmethod
    def of(cls, tables: nn.Module) -> "WholeTables":
        """Return the tables of a model that is not sharded. The weights are shared with it."""
        weights = {}
        for name, parameter in tables.named_parameters():
            for between in WEIGHTS:
                if between in f".{name}":
                    weights[name.rpartition(between)[2].removesuffix(".weight")] = parameter.detach()
        return cls(weights)

    def look_up(self, request: ItemRequest) -> dict[str, Tensor]:
        """Return the rows (R, width) of a request by table, and one vector per owner (M, width) by name of its bags."""
        bagged = {bags.table for bags in request.bags.values()}
        vectors = {
            table: self.weights[table].index_select(0, rows)
            for table, rows in request.rows.items()
            if table not in bagged
        }
        for name, bags in request.bags.items():
            offsets = torch.cat((bags.lengths.new_zeros(1), bags.lengths.cumsum(0)))
            vectors[name] = F.embedding_bag(
                bags.rows,
                self.weights[bags.table],
                offsets,
                mode="sum",
                per_sample_weights=bags.weights,
                include_last_offset=True,
            )
        return vectors
