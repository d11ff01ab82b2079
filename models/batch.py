"""What a model is given for one step: jagged histories, and which table rows they need.

Shapes: B histories, N input events, U looked-up ids, C shared negatives.
Every id that a step needs is looked up once: vectors are asked for by `lookup_ids`, and everything else is an index
into them. So a batch sends no duplicates between ranks, and gradients of one id are summed before they travel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.jagged import JaggedLayout, layout_of


@dataclass(frozen=True)
class HistoryBatch:
    """row_ids: (B,) int64, the histories' global row numbers; layout: of the input events.

    lookup_ids: (U,) int64; history_index: (N,) int64 into lookup_ids.
    target_ids, target_index: (N,) int64, the next event of each input event, as id and as index into lookup_ids;
    empty when nothing is learned. negative_ids, negative_index: (C,) int64, empty unless the objective samples.
    """

    row_ids: Tensor
    layout: JaggedLayout
    lookup_ids: Tensor
    history_index: Tensor
    target_ids: Tensor
    target_index: Tensor
    negative_ids: Tensor
    negative_index: Tensor

    def to(self, device: torch.device) -> "HistoryBatch":
        if device.type == "cpu":
            return self
        return HistoryBatch(
            self.row_ids.to(device),
            self.layout.to(device),
            self.lookup_ids.to(device),
            self.history_index.to(device),
            self.target_ids.to(device),
            self.target_index.to(device),
            self.negative_ids.to(device),
            self.negative_index.to(device),
        )


def build_batch(
    row_ids: np.ndarray,
    offsets: np.ndarray,
    history_ids: np.ndarray,
    target_ids: np.ndarray,
    negative_ids: np.ndarray,
    whole_table_rows: int | None,
) -> HistoryBatch:
    """Assemble a batch on the host from packed arrays: offsets (B + 1,), history_ids (N,), target_ids (N,) or (0,).

    `whole_table_rows`: number of rows of the item table if the objective needs all of them, else None.
    """
    if whole_table_rows is not None:
        lookup = np.arange(whole_table_rows, dtype=np.int64)
        history, target, negative = history_ids, target_ids, negative_ids
    else:
        wanted = np.concatenate((history_ids, target_ids, negative_ids))
        lookup, index = np.unique(wanted, return_inverse=True)
        history, target, negative = np.split(index, np.cumsum([history_ids.size, target_ids.size]))
    return HistoryBatch(
        row_ids=_tensor(row_ids),
        layout=layout_of(offsets),
        lookup_ids=_tensor(lookup),
        history_index=_tensor(history),
        target_ids=_tensor(target_ids),
        target_index=_tensor(target),
        negative_ids=_tensor(negative_ids),
        negative_index=_tensor(negative),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
