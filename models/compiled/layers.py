"""The compiled layers between the matrix products of an encoder: residual sums with dropout and gate, activations, and norms.

Shapes: N rows, D width, W inner width of a feed-forward sub-layer.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from models.compiled.addresses import address_of
from models.compiled.build import AVX512, build_library, load_library
from models.compiled.feed_forward import ActivationName, FeedForwardKernel, build_feed_forward_kernel
from models.compiled.projections import ProjectionKernels, build_projection_kernels
from models.layers.dropout import factor_of, random_bytes

ROWS_OF_SUM = 512  # as in layers.cpp
SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class LayerKernels:
    """The compiled libraries. It holds paths only, so that models can be copied."""

    library: Path
    """The library of single layers."""
    feed_forward: FeedForwardKernel
    """The kernel of whole feed-forward sub-layers."""
    projections: ProjectionKernels
    """The kernels of the products around an attention."""

    def takes(self, *tensors: Tensor) -> bool:
        """Return whether the kernels compute with these tensors: on a CPU, in float32 or bfloat16, at least one number of each."""
        return all(t.device.type == "cpu" and t.dtype in SUFFIXES and t.numel() for t in tensors)

    def add_dropped(
        self,
        x_ND: Tensor,
        said_ND: Tensor,
        threshold: int,
        bias_D: Tensor | None = None,
        gate_ND: Tensor | None = None,
    ) -> Tensor:
        """Return x + sigmoid(gate) * dropped(said + bias), (N, D) float32.

        Without bias and gate this equals torch bit by bit, with the same random numbers.

        Args:
            x_ND: the residual stream, float32.
            said_ND: the output of a sub-layer, float32 or bfloat16.
            threshold: how many of 256 equally likely bytes drop a number.
            bias_D: is added to said, float32.
            gate_ND: the inputs of the sigmoid, with the dtype of said_ND.
        """
        sum_ND: Tensor = _Sum.apply(self, x_ND, said_ND, bias_D, gate_ND, threshold)
        return sum_ND

    def drop(self, x: Tensor, threshold: int) -> Tensor:
        """Return x with each number dropped with probability threshold / 256, as models.layers.dropout.drop does."""
        dropped: Tensor = _Sum.apply(self, None, x, None, None, threshold)
        return dropped

    def activate(
        self,
        hidden: Tensor,
        activation: ActivationName,
        gated: bool = False,
        threshold: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return dropped(activation(hidden)), (N, W), or of gated ones dropped(activation(first half) * second half).

        Args:
            hidden: (N, W), or (N, 2 W) if it is gated.
            activation: the function. "gelu" is the exact one, within 2e-7.
            gated: whether the second half of a row multiplies the first.
            threshold: how many of 256 equally likely bytes drop a number.
            bias: is added to each row of `hidden`, float32.
        """
        output: Tensor = _Activation.apply(self, hidden, bias, activation, gated, threshold)
        return output

    def normalise(
        self, norm: nn.LayerNorm | nn.RMSNorm, x_ND: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Return the norm of rows, (N, D) in this dtype, and the rows. It is computed in float32.

        If what follows reads the rows that are returned instead of x_ND, the backward pass adds both gradients as it computes one.

        Args:
            norm: its weights, of the last dimension.
            x_ND: float32.
            dtype: of the result, float32 or bfloat16.
        """
        centred = isinstance(norm, nn.LayerNorm)
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        assert norm.eps is not None
        output: Tensor
        kept: Tensor
        output, kept = _Norm.apply(self, x_ND, norm.weight, bias, centred, norm.eps, dtype)
        return output, kept

    def run(self, name: str, problem: ctypes.Structure) -> None:
        """Run a kernel."""
        load_library(self.library)[name](ctypes.byref(problem))


def build_layer_kernels() -> LayerKernels:
    """Compile the kernels.

    Raises:
        KernelBuildError: see build_library and load_library.
    """
    library = build_library("layers.cpp", AVX512)
    load_library(library)
    return LayerKernels(library, build_feed_forward_kernel(), build_projection_kernels())


class _Sum(torch.autograd.Function):
    """The autograd function of `LayerKernels.add_dropped` and `LayerKernels.drop`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernels: LayerKernels,
        x: Tensor | None,
        said: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        threshold: int,
    ) -> Tensor:
        given = [None if tensor is None else tensor.contiguous() for tensor in (x, said, gate, bias)]
        drawn = random_bytes(said.shape) if threshold else None
        has_slopes = gate is not None and any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        slopes = [_like(said) for _ in range(2)] if has_slopes else [None, None]
        output = _like(said if x is None else x)
        problem = _SumProblem(
            *(*_rows_of(said), torch.get_num_threads(), *map(address_of, given), address_of(drawn)),
            *(threshold, factor_of(threshold), address_of(output), *map(address_of, slopes)),
        )
        kernels.run(f"sum_{SUFFIXES[said.dtype]}", problem)
        ctx.save_for_backward(drawn, *slopes)  # type: ignore[arg-type]  # torch accepts None, which its types leave out
        ctx.kernels, ctx.threshold, ctx.dtype = kernels, threshold, said.dtype  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        drawn, said_slope, gate_slope = ctx.saved_tensors
        of_x = gradient if ctx.needs_input_grad[1] else None
        has_bias = ctx.needs_input_grad[3]
        dropped = drawn, ctx.threshold
        of_said, of_bias = _scaled(ctx.kernels, gradient, ctx.dtype, said_slope, dropped, has_bias)
        of_gate = None
        if gate_slope is not None:
            of_gate, _ = _scaled(ctx.kernels, gradient, ctx.dtype, gate_slope)
        return None, of_x, of_said, of_bias, of_gate, None


class _Activation(torch.autograd.Function):
    """The autograd function of `LayerKernels.activate`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernels: LayerKernels,
        hidden: Tensor,
        bias: Tensor | None,
        activation: str,
        gated: bool,
        threshold: int,
    ) -> Tensor:
        hidden, bias = hidden.contiguous(), None if bias is None else bias.contiguous()
        num_rows, width = _rows_of(hidden)
        width //= 2 if gated else 1
        output = hidden.new_empty((*hidden.shape[:-1], width))
        drawn = random_bytes(output.shape) if threshold else None
        slopes = _like(hidden) if any(ctx.needs_input_grad) else None  # type: ignore[attr-defined]
        problem = _ActivationProblem(
            *(num_rows, width, gated, torch.get_num_threads(), address_of(hidden), address_of(bias), address_of(drawn)),
            *(threshold, factor_of(threshold), address_of(output), address_of(slopes)),
        )
        kernels.run(f"{activation}_{SUFFIXES[hidden.dtype]}", problem)
        ctx.save_for_backward(slopes)  # type: ignore[arg-type]
        ctx.kernels = kernels  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        of_hidden, of_bias = _scaled(ctx.kernels, gradient, slopes.dtype, slopes, has_sums=ctx.needs_input_grad[2])
        return None, of_hidden, of_bias, None, None, None


def _scaled(
    kernels: LayerKernels,
    gradient: Tensor,
    dtype: torch.dtype,
    slopes: Tensor | None,
    dropped: tuple[Tensor | None, int] = (None, 0),
    has_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient times slopes, or times what dropout kept, and its sum over rows.

    Args:
        kernels: compute it.
        gradient: (..., D).
        dtype: of the result.
        slopes: (..., D), or (..., 2 D) for both halves of a row.
        dropped: the random bytes and the threshold of dropout, without slopes.
        has_sums: whether the sums, float32, are needed.
    """
    drawn, threshold = dropped
    if slopes is None and drawn is None and not has_sums:
        return gradient.to(dtype), None
    num_rows, width = _rows_of(gradient)
    gradient = gradient.contiguous()
    result = _like(gradient if slopes is None else slopes, dtype)
    size = result.shape[-1]
    sums = gradient.new_empty((-(-num_rows // ROWS_OF_SUM), size), dtype=torch.float32) if has_sums else None
    problem = _ScaledProblem(
        *(
            num_rows,
            width,
            size // width,
            torch.get_num_threads(),
            address_of(gradient),
            address_of(slopes),
            address_of(drawn),
        ),
        *(threshold, factor_of(threshold), address_of(result), address_of(sums)),
    )
    kernels.run(f"scaled_{SUFFIXES[gradient.dtype]}_{SUFFIXES[dtype]}", problem)
    return result, None if sums is None else sums.sum(dim=0)


class _Norm(torch.autograd.Function):
    """The autograd function of `LayerKernels.normalise`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernels: LayerKernels,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        centred: bool,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        kept, x, weight = x, x.contiguous(), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        output = _like(x, dtype)
        num_rows, width = _rows_of(x)
        mean = x.new_empty(num_rows) if centred else None
        scale = x.new_empty(num_rows)
        problem = _NormProblem(
            *(num_rows, width, centred, torch.get_num_threads(), address_of(x), address_of(weight), address_of(bias)),
            *(epsilon, address_of(output), address_of(mean), address_of(scale)),
        )
        kernels.run(f"norm_{SUFFIXES[dtype]}", problem)
        ctx.save_for_backward(x, weight, mean, scale)  # type: ignore[arg-type]
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.centred, ctx.has_bias = kernels, centred, bias is not None  # type: ignore[attr-defined]
        return output, kept

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor | None, of_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, of_kept, None, None, None, None, None
        x, weight, mean, scale = ctx.saved_tensors
        gradient, of_kept = gradient.contiguous(), None if of_kept is None else of_kept.contiguous()
        of_x = _like(x)
        num_rows, width = _rows_of(x)
        of_weight = weight.new_empty((-(-num_rows // ROWS_OF_SUM), *weight.shape))
        of_bias = torch.empty_like(of_weight) if ctx.has_bias else None
        problem = _NormProblem(
            *(num_rows, width, ctx.centred, torch.get_num_threads(), address_of(x), address_of(weight), None),
            *(
                0.0,
                None,
                address_of(mean),
                address_of(scale),
                address_of(gradient),
                address_of(of_kept),
                address_of(of_x),
            ),
            *(address_of(of_weight), address_of(of_bias)),
        )
        ctx.kernels.run(f"norm_{SUFFIXES[gradient.dtype]}", problem)
        return None, of_x, of_weight.sum(dim=0), None if of_bias is None else of_bias.sum(dim=0), None, None, None


def _like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous tensor of this shape, without setting its numbers."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _rows_of(tensor: Tensor) -> tuple[int, int]:
    """Return the number of rows and their width."""
    width = tensor.shape[-1]
    return tensor.numel() // width, width


class _SumProblem(ctypes.Structure):
    """The arguments of a residual sum: Sum in layers.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "said", "gate", "bias", "bytes")),
        *(("threshold", ctypes.c_int64), ("factor", ctypes.c_float)),
        *((name, ctypes.c_void_p) for name in ("out", "said_slope", "gate_slope")),
    )


class _ActivationProblem(ctypes.Structure):
    """The arguments of an activation: Activation in layers.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "gated", "threads")),
        *((name, ctypes.c_void_p) for name in ("hidden", "bias", "bytes")),
        *(("threshold", ctypes.c_int64), ("factor", ctypes.c_float)),
        *((name, ctypes.c_void_p) for name in ("out", "slopes")),
    )


class _ScaledProblem(ctypes.Structure):
    """The arguments of a backward pass of these: Scaled in layers.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "parts", "threads")),
        *((name, ctypes.c_void_p) for name in ("gradient", "slopes", "bytes")),
        *(("threshold", ctypes.c_int64), ("factor", ctypes.c_float)),
        *((name, ctypes.c_void_p) for name in ("out", "sums")),
    )


class _NormProblem(ctypes.Structure):
    """The arguments of a norm: Norm in layers.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "centred", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("out", "mean", "scale")),
        *((name, ctypes.c_void_p) for name in ("out_gradient", "kept_gradient", "x_gradient")),
        *((name, ctypes.c_void_p) for name in ("weight_gradient", "bias_gradient")),
    )
