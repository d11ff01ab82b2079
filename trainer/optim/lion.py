"""Lion, a sign-based optimizer of dense weights that torch does not have.

Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, Algorithm 2. For gradient g, weights w, momentum
m, learning rate r and weight decay d:

    w <- w - r (sign(b1 m + (1 - b1) g) + d w)
    m <- b2 m + (1 - b2) g

Every weight changes by the same amount, so learning rates are about 3 to 10 times smaller than AdamW's, and weight decay is larger
by the same factor (section 5 of the paper). It has one slot per weight; Adam has two. The code operates on lists of tensors, so the
only loops over parameters collect them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class Lion(torch.optim.Optimizer):
    """The optimizer Lion. betas: (b1, b2) above. weight_decay: d, decoupled. State: exp_avg, m above, shaped like the weight."""

    def __init__(
        self, params: ParamsT, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Apply the gradients. A weight without a gradient keeps its value and its momentum."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["exp_avg"] for weight in weights]
            rate = group["lr"]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_lerp(momenta, gradients, 1.0 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(weights, 1.0 - rate * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-rate)
            torch._foreach_lerp_(momenta, gradients, 1.0 - beta2)
        return loss
