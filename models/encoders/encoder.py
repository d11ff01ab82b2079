"""Encoders of jagged histories: a stack of attention blocks, composed by the settings.

SASRec (Kang & McAuley 2018, arXiv:1808.09781), BERT4Rec (Sun et al. 2019, arXiv:1904.06690), HSTU (Zhai et al. 2024,
arXiv:2402.17152), LiGR (Borisyuk et al. 2025, arXiv:2502.03417), FuXi-alpha (Ye et al. 2025, arXiv:2502.03036) and two towers
are settings of this one class. docs/attention.md lists how each deviates from its paper.

Shapes: N total events, M candidates, n histories that are not empty, D model width.

The invariant: under a causal mask, output i is a function of the events up to i of its own history only. With positions that
count from the newest event, with truncation, or with token merge, it also depends on the number of later events.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.layer import Attention
from models.attention.traceable import traceable_newest
from models.batches.jagged import JaggedLayout, NewestEvents
from models.compiled.layers import LayerKernels
from models.encoders.block import EncoderBlock, OutputHead, norm_of
from models.encoders.config import EncoderConfig
from models.encoders.merge import TokenMerge
from models.encoders.pooling import AttentionPooling
from models.encoders.tower import Tower
from models.layers.dropout import Dropout
from models.layers.norms import normed


class Encoder(nn.Module):
    """A stack of blocks. By default learned positions count from the oldest event, so that none depends on later events."""

    def __init__(self, width: int, max_history: int, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.max_history = max_history
        self.input_scale = width**0.5 if config.scale_inputs else None
        self.positions = nn.Embedding(max_history, width) if config.positions == "learned" else None
        self.input_norm = norm_of(config, width) if config.input_norm else None
        self.dropout = Dropout(config.dropout)
        self.merge = None if config.merge_size is None else TokenMerge(width, max_history, config)
        self.depths = tuple(config.heads_of_blocks)  # of the blocks that are not left out, from 1
        self.blocks = nn.ModuleList(
            EncoderBlock(width, max_history, config, depth, heads) for depth, heads in config.heads_of_blocks.items()
        )
        self.final_norm = norm_of(config, width) if config.final_norm else nn.Identity()
        self.pooling = AttentionPooling(width, config.attention) if config.pooling == "attention" else None
        self.output_head = OutputHead(width, config) if config.output_head == "gelu" else None
        self.user_tower = Tower(width, config.user_tower)
        self.item_tower = Tower(width, config.item_tower, last_bias=False)

    def forward(self, x_ND: Tensor, context: AttentionContext, only_last: bool = False) -> tuple[Tensor, Tensor | None]:
        """Encode each history up to each event.

        Args:
            x_ND: vectors of the input events, before positions. Candidates of the context follow the events, (N + M, D).
            context: the layout of the batch. If it has candidates, they alone are encoded to the end.
            only_last: encode to the end only the last event of each history that is not empty. The last layer then has keys and
                values of all events, and everything else of these alone.

        Returns:
            The encoded events (N, D), or candidates (M, D), or last events (n, D) in the order of the histories, and the scaled
            penalty of the attention weights or None. With truncation or token merge the encoded events are the newest ones of each
            history, those of `layout.newest(config.num_newest)`. With token merge a traceable layout gives the rows of all tokens.
            A candidate is encoded as if it were the event after those that it sees. No event sees a candidate.
        """
        if self.input_scale is not None:
            x_ND = x_ND * self.input_scale
        if self.positions is not None:
            x_ND = x_ND + self.positions(self._places(context))
        if self.input_norm is not None:
            x_ND = normed(self.input_norm, x_ND, x_ND.shape[0], context.layer_kernels)
        x_ND = self._dropped(x_ND, context.layer_kernels)
        if self.merge is not None:
            x_ND, context = self.merge(x_ND, context)
        x_ND, context, penalties = self._through_blocks(x_ND, context, only_last)
        narrowed = _of_last_layer(context, only_last)
        if not self.blocks and self.pooling is None:
            x_ND = narrowed.output_rows(x_ND)
        x_ND = normed(self.final_norm, x_ND, x_ND.shape[0], context.layer_kernels)
        if self.pooling is not None:
            x_ND = self.pooling(x_ND, narrowed if only_last else context)
            if context.candidates is not None:
                x_ND = narrowed.output_rows(x_ND)
        if self.output_head is not None:
            x_ND = self.output_head(x_ND)
        return self.user_tower(x_ND), self._scaled(penalties)

    def _dropped(self, x_ND: Tensor, kernels: LayerKernels | None) -> Tensor:
        threshold = self.dropout.active_threshold
        if kernels is not None and threshold and kernels.takes(x_ND):
            return kernels.drop(x_ND, threshold)
        dropped: Tensor = self.dropout(x_ND)
        return dropped

    def _through_blocks(
        self, x_ND: Tensor, context: AttentionContext, only_last: bool
    ) -> tuple[Tensor, AttentionContext, list[Tensor]]:
        """Return the output of the blocks, the context of its rows, and the penalties of the attention weights."""
        penalties = []
        newest = self._newest(context.layout)
        for depth, block in zip(self.depths, self.blocks, strict=True):
            if newest is not None and self.config.is_truncated(depth):
                x_ND = x_ND.index_select(0, newest.index)
                context = context.narrowed_to_newest(newest)
                newest = None
            of_block = context
            if depth == self.depths[-1] and self.pooling is None:
                of_block = context = _of_last_layer(context, only_last)
            # The kernels of GPUs and traced programs compute all events of this block.
            may_narrow = not (x_ND.is_cuda or context.layout.traceable or context.outputs != "all")
            if newest is not None and depth == self.config.last_whole_block and may_narrow:
                of_block = context.narrowed_outputs(newest)
            if self.config.recompute and self.training:
                x_ND, penalty = checkpoint(block, x_ND, of_block, use_reentrant=False)
            else:
                x_ND, penalty = block(x_ND, of_block)
            if penalty is not None:
                penalties.append(penalty)
            if newest is not None and of_block.outputs == "newest":
                context = context.narrowed_to_newest(newest)
                newest = None
        if newest is not None and context.outputs == "all":  # all deeper blocks are left out
            x_ND = x_ND.index_select(0, newest.index)
            context = context.narrowed_to_newest(newest)
        return x_ND, context, penalties

    def _newest(self, layout: JaggedLayout) -> NewestEvents | None:
        """Return the events that are encoded to the end, and that truncated blocks receive; None if these are all."""
        number = self.config.num_newest
        if number is None or (layout.traceable and self.merge is not None):
            return None
        if layout.traceable:
            return traceable_newest(layout, number)
        newest = layout.newest(number)
        return None if newest.layout.num_events == layout.num_events else newest

    def _places(self, context: AttentionContext) -> Tensor:
        """Return the rows of the learned positions, (N,) int64. The last row is the newest event's if they count from it."""
        if self.config.positions_from == "oldest":
            return context.places
        assert context.candidates is None, "candidates have no learned positions"
        layout = context.layout
        lengths = context.lengths
        length_N = torch.repeat_interleave(lengths, lengths, output_size=layout.num_events)
        return self.max_history - length_N + layout.positions

    def _scaled(self, penalties: list[Tensor]) -> Tensor | None:
        attention = self.config.attention
        heads = self.config.heads_of_blocks
        maps = sum(heads.values()) / max(1, len(heads)) * (2 if attention.differential else 1)
        return torch.stack(penalties).mean() * (attention.penalty / maps) if penalties else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order: the same weights on every rank and device."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = self.config.initial_std or (2.0 / sum(parameter.shape)) ** 0.5
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        for module in self.modules():
            if isinstance(module, Attention | PositionBias | TimeBias):
                module.initialize()


def lay_out_parts(layout: JaggedLayout, config: EncoderConfig) -> None:
    """Lay out the newest events and the tokens of a batch on the host, so that an encoder finds them when it runs."""
    if config.num_newest is None:
        return
    layout.newest(config.num_newest)
    if config.merge_size is not None:
        layout.merged(config.merge_size, config.num_newest).layout.newest(config.num_newest)


def _of_last_layer(context: AttentionContext, only_last: bool) -> AttentionContext:
    """Return the context of the last layer, which returns only the rows that are used."""
    if context.outputs != "all":
        return context
    if context.candidates is not None:
        return context.narrowed_to_candidates()
    return context.narrowed_to_last() if only_last else context
