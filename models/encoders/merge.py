"""Token merge: groups of adjacent older events become one token each before the blocks.

LONGER (Chai et al. 2025, arXiv:2505.04421):

    token of x_1 .. x_K = W [y_1; ...; y_K],    y = x, or y = block(x_1 .. x_K) with an inner transformer

The newest events of a history stay whole. Only their outputs are used, and all groups are older than each of them, so none
depends on a later event. Deviations from the paper: a token is projected to the width of the model, where the paper keeps the
joined vectors as a wider one; there are no global tokens.

Shapes: N events, O older events, G groups of K slots, T tokens, D model width.
"""

import torch
from torch import Tensor, nn

from models.attention.blocks import AttentionContext
from models.attention.traceable import traceable_merged
from models.batches.jagged import MergedEvents
from models.encoders.block import EncoderBlock
from models.encoders.config import EncoderConfig, inner_encoder


class TokenMerge(nn.Module):
    """The merge of older events into tokens. Missing events of the oldest group of a history are zeros."""

    def __init__(self, width: int, max_history: int, config: EncoderConfig) -> None:
        super().__init__()
        assert config.merge_size is not None
        assert config.merge_recent is not None
        self.size = config.merge_size
        self.recent = config.merge_recent
        self.max_history = max_history
        self.inner: EncoderBlock | None = None
        if config.merge_form == "transformer":
            inner = inner_encoder(config)
            self.inner = EncoderBlock(width, self.size, inner, 1, inner.attention.num_heads)
        self.projection = nn.Linear(self.size * width, width, bias=False)

    def forward(self, x_ND: Tensor, context: AttentionContext) -> tuple[Tensor, AttentionContext]:
        """Return the tokens of all histories, (T, D), and their context.

        Args:
            x_ND: vectors of the events, with positions.
            context: the layout of the events.
        """
        merged = self._merged(context)
        older_OD = x_ND.index_select(0, merged.older)
        if self.inner is not None:
            older_OD, _ = self.inner(older_OD, AttentionContext(merged.groups))
        num_slots = (merged.groups.offsets.shape[0] - 1) * self.size
        slots = _in_slots(older_OD, merged, num_slots)
        merged_GD = self.projection(slots.view(-1, self.size * x_ND.shape[1]))
        tokens_TD = torch.cat((merged_GD, x_ND)).index_select(0, merged.rows)
        return tokens_TD, context.of_tokens(merged)

    def _merged(self, context: AttentionContext) -> MergedEvents:
        if context.layout.traceable:
            return traceable_merged(context.layout, self.size, self.recent, self.max_history)
        return context.layout.merged(self.size, self.recent)


def _in_slots(older_OD: Tensor, merged: MergedEvents, num_slots: int) -> Tensor:
    """Return the vector of each slot of the groups, (num_slots, D): that of its event, or zeros."""
    if merged.is_event is not None:
        return torch.where(merged.is_event[:, None], older_OD, 0.0)
    nothing = older_OD.new_zeros((num_slots, older_OD.shape[1]))
    return nothing.index_copy(0, merged.slots, older_OD)
