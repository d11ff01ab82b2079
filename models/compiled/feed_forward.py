"""The compiled feed-forward sub-layer: norm, both products, activation, dropout and residual sum in one pass over the rows.

Shapes: N rows, D width, W inner width.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from models.compiled.addresses import address_of
from models.compiled.build import AVX512, build_library, load_library
from models.compiled.projections import LARGEST_MATRIX, LAYER_NORM, RowNorm
from models.layers.dropout import factor_of, random_bytes

ActivationName = Literal["relu", "gelu", "silu"]


@dataclass(frozen=True)
class FeedForwardKernel:
    """The compiled library. It holds a path only, so that models can be copied."""

    library: Path
    """The library."""

    def takes(self, x_ND: Tensor, into: nn.Linear, out_of: nn.Linear) -> bool:
        """Return whether the kernel computes with these rows and weights, and faster: float32 on a CPU, and of small widths."""
        weights = (into.weight, out_of.weight)
        numbers = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x_ND, *weights))
        return numbers and x_ND.numel() > 0 and all(w.numel() <= LARGEST_MATRIX for w in weights)

    def add(
        self,
        x_ND: Tensor,
        norm: nn.LayerNorm | nn.RMSNorm | None,
        into: nn.Linear,
        out_of: nn.Linear,
        activation: ActivationName,
        gated: bool,
        thresholds: tuple[int, int],
    ) -> Tensor:
        """Return x + dropped(W2 dropped(a(W1 norm(x) + b1)) + b2), (N, D).

        Random numbers are those of torch's path. Of the inner numbers nothing is kept for the backward pass.

        Args:
            x_ND: the residual stream, float32.
            norm: is applied to the rows; None: no norm.
            into: W1, b1: (W, D), or of a gated activation (2 W, D): a(first half) * second half.
            out_of: W2, b2: (D, W).
            activation: a. "gelu" is the exact one, within 2e-7.
            gated: as above.
            thresholds: how many of 256 equally likely bytes drop an inner number, and one of the output.

        Raises:
            MemoryError: there is no memory for the weights' gradients.
        """
        own = RowNorm.of(norm)
        form = _Form(self, activation, gated, thresholds, own.kind, own.epsilon)
        weights = (own.weight, own.bias, into.weight, into.bias, out_of.weight, out_of.bias)
        sum_ND: Tensor = _FeedForward.apply(form, x_ND, *weights)
        return sum_ND

    def run(self, activation: str, problem: ctypes.Structure) -> None:
        """Run the kernel."""
        if load_library(self.library)[f"feed_forward_{activation}"](ctypes.byref(problem)):
            raise MemoryError("the compiled feed-forward sub-layer does not get its working memory")


@dataclass(frozen=True)
class _Form:
    """The form of a sub-layer, which both passes have."""

    kernel: FeedForwardKernel
    activation: str
    gated: bool
    thresholds: tuple[int, int]
    norm: int
    epsilon: float

    def problem(self, sizes: tuple[int, int, int], *tensors: Tensor | None) -> "_Problem":
        """Return the arguments of the kernel: (N, D, W), and its tensors in the order of the arguments."""
        inner, outer = self.thresholds
        return _Problem(
            *(*sizes, 1 + self.gated, torch.get_num_threads(), self.norm, self.epsilon),
            *map(address_of, tensors[:11]),
            *(inner, outer, factor_of(inner), factor_of(outer)),
            *map(address_of, tensors[11:]),
        )


class _FeedForward(torch.autograd.Function):
    """The autograd function of `FeedForwardKernel.add`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        form: _Form,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        into: Tensor,
        into_bias: Tensor | None,
        out_of: Tensor,
        out_bias: Tensor | None,
    ) -> Tensor:
        x = x.contiguous()
        norm_weight, norm_bias, *weights = (
            None if t is None else t.contiguous() for t in (norm_weight, norm_bias, into, into_bias, out_of, out_bias)
        )
        width, inner = out_of.shape
        num_rows = x.numel() // width
        inner_bytes, outer_bytes = (
            random_bytes(torch.Size((num_rows, size))) if threshold else None
            for size, threshold in zip((inner, width), form.thresholds, strict=True)
        )
        mean = x.new_empty(num_rows) if form.norm == LAYER_NORM else None
        scale = x.new_empty(num_rows) if form.norm else None
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept = (norm_weight, norm_bias, mean, scale, x, *weights, inner_bytes, outer_bytes)
        form.kernel.run(form.activation, form.problem((num_rows, width, inner), *kept, output))
        ctx.save_for_backward(*kept)  # type: ignore[arg-type]  # torch accepts None, which its types leave out
        ctx.form = form  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        norm_weight, norm_bias, _, _, x, *linear = kept[:9]
        weights = (norm_weight, norm_bias, *linear)
        width, inner = weights[4].shape
        gradients = [None if weight is None else torch.zeros_like(weight) for weight in weights]
        of_x = torch.empty_like(x)
        tensors = (*kept, None, gradient.contiguous(), of_x, *gradients)
        ctx.form.kernel.run(ctx.form.activation, ctx.form.problem((x.numel() // width, width, inner), *tensors))
        return None, of_x, *gradients


def build_feed_forward_kernel() -> FeedForwardKernel:
    """Compile the kernel.

    Raises:
        KernelBuildError: see build_library and load_library.
    """
    library = build_library("feed_forward.cpp", AVX512)
    load_library(library)
    return FeedForwardKernel(library)


class _Problem(ctypes.Structure):
    """The arguments of the kernel: FeedForward in feed_forward.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "inner", "parts", "threads", "norm")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("norm_weight", "norm_bias", "mean", "scale")),
        *((name, ctypes.c_void_p) for name in ("x", "into", "into_bias", "out_of", "out_bias")),
        *((name, ctypes.c_void_p) for name in ("inner_bytes", "bytes")),
        *((name, ctypes.c_int64) for name in ("inner_threshold", "threshold")),
        *((name, ctypes.c_float) for name in ("inner_factor", "factor")),
        *((name, ctypes.c_void_p) for name in ("out", "gradient", "x_gradient")),
        *(
            (f"{name}_gradient", ctypes.c_void_p)
            for name in ("norm_weight", "norm_bias", "into", "into_bias", "out_of", "out_bias")
        ),
    )
