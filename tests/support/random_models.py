"""Next-item models with random weights, in double precision, for comparisons with references."""

import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from models.next_item.model import NextItemModel
from models.tables import TableSpec


def random_model(config: NextItemConfig, num_rows: int, width: int) -> NextItemModel:
    """Return a model in which no weight is 0 or 1, such as initial biases and factors of norms."""
    model = NextItemModel(config, [TableSpec("item", num_rows, width)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return model.double()


def looked_up(model: NextItemModel, batch: HistoryBatch) -> dict[str, Tensor]:
    """Return the rows of a batch by table, in double precision."""
    return {name: rows.double() for name, rows in model.look_up(batch.items).items()}
