"""Later targets: each event also predicts events after the next one (multi-token prediction).

Gloeckle et al. 2024, arXiv:2404.19737. The vector of an event for the event that is `o` further than the next one is
x + silu(W_o x), with the residual head of Cai et al. 2024 (arXiv:2401.10774). Scores use x alone, so the heads are part of training
only.

Shapes: N encoded events, T targets, D model width.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batches.history_batch import HistoryBatch


class LaterHeads(nn.Module):
    """A head for each later target. Their weights begin as zeros, so that at first all targets are predicted by one vector."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(number))
        self.initialize()

    def forward(self, encoded_TD: Tensor, further: int) -> Tensor:
        """Return the vectors for the target that is `further` than the next one, 1 or more."""
        head = self.heads[further - 1]
        return encoded_TD + F.silu(head(encoded_TD))

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the weights to zeros."""
        for weight in self.parameters():
            weight.zero_()


def later_targets(
    encoded_ND: Tensor, place_T: Tensor, position_N: Tensor, batch: HistoryBatch, number: int
) -> Iterator[tuple[int, Tensor, HistoryBatch]]:
    """Yield for each later target (how much further it is, the encoded events that predict it, the batch of these targets).

    Args:
        encoded_ND: the encoded events.
        place_T: the encoded event after which each target of the batch follows.
        position_N: position of each encoded event in its history, from 0.
        batch: the targets.
        number: of later targets.
    """
    for further in range(1, number + 1):
        # The target after event f is also predicted by the event `further` places before f, if the history has it.
        chosen = (position_N[place_T] >= further).nonzero().squeeze(1)
        log_q = None if batch.target_log_q is None else batch.target_log_q[chosen]
        part = replace(
            batch, target_ids=batch.target_ids[chosen], target_index=batch.target_index[chosen], target_log_q=log_q
        )
        yield further, encoded_ND.index_select(0, place_T[chosen] - further), part
