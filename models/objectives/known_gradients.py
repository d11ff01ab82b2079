"""Losses with gradients that were computed along with their value."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from models import devices


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar that has these gradients by its inputs. The backward pass multiplies them by the incoming scalar.

    The gradient of the result cannot be differentiated again.

    Args:
        value: the scalar, which is computed without a graph.
        inputs: the tensors on which it depends.
        gradients: the gradient by each of them.
    """
    result: Tensor = _KnownGradients.apply(value, tuple(gradients), *inputs)
    return result


class _KnownGradients(torch.autograd.Function):
    """The autograd function of `with_gradients`."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = grad_outputs
        if devices.is_host(factor.device) and factor == 1.0:  # a device would be waited for
            return None, None, *ctx.saved_tensors  # type: ignore[attr-defined]
        return None, None, *(gradient * factor for gradient in ctx.saved_tensors)  # type: ignore[attr-defined]
