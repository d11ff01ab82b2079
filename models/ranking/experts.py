"""Layers between the fields and the logits of labels, shared or of one label.

    shared bottom   h_t = f(x)
    MMoE            h_t = sum_e softmax(W_t x)_e f_e(x)                        (Ma et al. 2018, doi:10.1145/3219819.3220007)
    PLE             h_t = sum_e softmax(W_t x_t)_e f_e,  f_e: label t's own experts of x_t and the shared ones of x_s; with several
                    levels each level's h_t and h_s are the next one's x_t and x_s, h_s mixed from all experts
                                                                               (Tang et al. 2020, doi:10.1145/3383313.3412236)

The logit of label t is the output of its own tower on h_t. All experts of a level, and all towers, are computed side by side.

Shapes: M impressions, F width of the crossed fields, T labels, E experts, H width of an expert's output.
"""

import torch
from torch import Tensor, nn

from models.ranking.config import ExpertsConfig
from models.ranking.layers import SideBySide


class Experts(nn.Module):
    """Experts and towers, from crossed fields (M, F) to logits (M, T) in float32 at least."""

    def __init__(self, width: int, num_labels: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_levels(width, num_labels, config))
        mixed = config.hidden[-1] if config.hidden else width
        self.towers = SideBySide(
            num_labels, [mixed, *config.tower, 1], config.activation, config.dropout, linear_end=True
        )

    def forward(self, x_MF: Tensor) -> Tensor:
        x: Tensor = x_MF
        shared: Tensor | None = None
        for level in self.levels:
            x, shared = level(x, shared)
        logits_MT: Tensor = self.towers(x).squeeze(2)
        return logits_MT

    def initialize(self, generator: torch.Generator, start_T: Tensor | None = None) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order.

        start_T: (T,), the initial mean of the logits, 0 by default.
        """
        for module in self.modules():
            if isinstance(module, SideBySide):
                module.initialize(generator)
        if start_T is not None:
            with torch.no_grad():
                self.towers.biases[-1].copy_(start_T[:, None])


def _levels(width: int, num_labels: int, config: ExpertsConfig) -> list[nn.Module]:
    match config.kind:
        case "shared_bottom":
            return [_SharedBottom(width, config)]
        case "mmoe":
            return [_MixtureLevel(width, num_labels, config)]
        case "ple":
            inputs = [width, *[config.hidden[-1]] * (config.num_levels - 1)]
            return [
                _ProgressiveLevel(entry, num_labels, config, is_last=number == config.num_levels)
                for number, entry in enumerate(inputs, start=1)
            ]


class _SharedBottom(nn.Module):
    """Shared bottom: (M, H), one for all labels."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.network = SideBySide(1, [width, *config.hidden], config.activation, config.dropout)

    def forward(self, x_MF: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.network(x_MF).squeeze(1), None


class _MixtureLevel(nn.Module):
    """MMoE: (M, T, H)."""

    def __init__(self, width: int, num_labels: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.experts = SideBySide(config.num_experts, [width, *config.hidden], config.activation, config.dropout)
        self.gates = SideBySide(num_labels, [width, config.num_experts], linear_end=True, bias=False)

    def forward(self, x_MF: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gates_MTE = self.gates(x_MF).softmax(dim=2)
        return _mixed(gates_MTE, self.experts(x_MF)), None


class _ProgressiveLevel(nn.Module):
    """PLE: (M, T, H) of labels and (M, H) shared, from (M, F) for all, or from these two of the level before."""

    def __init__(self, width: int, num_labels: int, config: ExpertsConfig, is_last: bool) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.num_own = config.num_label_experts
        widths = [width, *config.hidden]
        self.own = SideBySide(num_labels * self.num_own, widths, config.activation, config.dropout)
        self.shared = SideBySide(config.num_experts, widths, config.activation, config.dropout)
        self.gates = SideBySide(num_labels, [width, self.num_own + config.num_experts], linear_end=True, bias=False)
        num_all = num_labels * self.num_own + config.num_experts
        self.shared_gate = None if is_last else SideBySide(1, [width, num_all], linear_end=True, bias=False)

    def forward(self, x: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        per_expert = x if x.dim() == 2 else x.repeat_interleave(self.num_own, dim=1)
        entry_MF = x if shared is None else shared
        own_MEH = self.own(per_expert)
        shared_MEH = self.shared(entry_MF)
        gates_MTE = self.gates(x).softmax(dim=2)
        own_MTEH = own_MEH.unflatten(1, (self.num_labels, self.num_own))
        from_own = (gates_MTE[:, :, : self.num_own, None] * own_MTEH).sum(dim=2)
        labels_MTH = from_own + _mixed(gates_MTE[:, :, self.num_own :], shared_MEH)
        if self.shared_gate is None:
            return labels_MTH, None
        gate_M1E = self.shared_gate(entry_MF).softmax(dim=2)
        return labels_MTH, _mixed(gate_M1E, torch.cat((own_MEH, shared_MEH), dim=1)).squeeze(1)


def _mixed(gates_MTE: Tensor, experts_MEH: Tensor) -> Tensor:
    """Return the mixture of the experts for each label, (M, T, H)."""
    return torch.bmm(gates_MTE, experts_MEH)
