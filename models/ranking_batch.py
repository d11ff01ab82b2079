"""What a ranking model is given for one step: jagged histories, and beside each the candidates that were shown to its user.

Shapes: B histories, N events of histories, M candidates, U looked-up ids.
The invariant: candidate m may see event j of its history (counted from the start of what the batch has of it) if and only if
j < history_end[m]; these are the events strictly before it. So a history is encoded once for all of its candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.batch import FeatureTensor, moved
from models.item_features import ItemRequest
from models.jagged import JaggedLayout


@dataclass(frozen=True)
class RankingBatch:
    """row_ids: (B,) int64, the ids of the examples; layout: of the events of histories.

    lookup_ids: (U,) int64, every item of histories and candidates once; items: what has to be looked up for them;
    history_index: (N,) int64, candidate_index: (M,) int64, into lookup_ids.
    candidate_offsets: (B + 1,) int64: history b owns the candidates from candidate_offsets[b] to candidate_offsets[b + 1], in the
    order in which they were shown. candidate_ids, candidate_times, history_end: (M,) int64; labels by name: (M,) float32.
    times: (N,) int64; features, candidate_features, user_features by name: an entry per event, per candidate, per history; these
    four are there only if the reader was asked for them.
    """

    row_ids: Tensor
    layout: JaggedLayout
    lookup_ids: Tensor
    items: ItemRequest
    history_index: Tensor
    candidate_offsets: Tensor
    candidate_index: Tensor
    candidate_ids: Tensor
    candidate_times: Tensor
    history_end: Tensor
    labels: Mapping[str, Tensor]
    times: Tensor | None = None
    features: Mapping[str, FeatureTensor] = field(default_factory=dict)
    candidate_features: Mapping[str, FeatureTensor] = field(default_factory=dict)
    user_features: Mapping[str, FeatureTensor] = field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        """What the loss is a sum over: candidates."""
        return self.candidate_ids.numel()

    def to(self, device: torch.device) -> "RankingBatch":
        return self if device.type == "cpu" else moved(self, device)
