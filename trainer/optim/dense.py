"""The optimizer of the dense weights: which of them decay, and which optimizer a config names."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainer.config.train import TrainConfig
from trainer.optim.lion import Lion


def dense_optimizer(parameters: Iterable[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer over `parameters`, in up to two groups: those that decay, and the others."""
    groups = decay_groups(parameters, config.weight_decay)
    rate, first, second = config.learning_rate, *config.betas_used
    match config.optimizer:
        case "adamw":
            # The fused form also exists on CPUs, where it takes a third of the time of the loop over parameters.
            return torch.optim.AdamW(groups, lr=rate, betas=(first, second), eps=config.eps, fused=True)
        case "lion":
            return Lion(groups, lr=rate, betas=(first, second))
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices (and whatever has more dimensions) decay. Biases, scales of norms and all else of one dimension do not: shrinking
    them takes away what they are there for, an offset or a unit scale, and bounds no product of weights."""
    every = list(parameters)
    decaying, others = [p for p in every if p.dim() >= 2], [p for p in every if p.dim() < 2]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
