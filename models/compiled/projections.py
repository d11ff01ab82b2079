"""The compiled products around an attention: norm and projection in front of it, and output and residual sum behind it.

Shapes: N rows, D width of the residual stream, S numbers of a projected row, V numbers that a row has seen.
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
from models.layers.dropout import factor_of, random_bytes

LARGEST_MATRIX = 1 << 15
"""Numbers of a matrix up to which the kernels are faster than products of a library; larger ones do not stay in the fast cache."""
LAYER_NORM, RMS_NORM = 1, 2  # as in row_products.h


@dataclass(frozen=True)
class RowNorm:
    """A norm of rows as the kernels compute it."""

    kind: int
    """0: none, LAYER_NORM or RMS_NORM."""
    epsilon: float
    """It is added to the variance."""
    weight: Tensor | None
    """(D), or None without a norm."""
    bias: Tensor | None
    """(D), or None."""

    @classmethod
    def of(cls, norm: nn.LayerNorm | nn.RMSNorm | None) -> "RowNorm":
        """Return the norm of a module, or none."""
        if norm is None:
            return cls(0, 0.0, None, None)
        assert norm.eps is not None
        if isinstance(norm, nn.LayerNorm):
            return cls(LAYER_NORM, norm.eps, norm.weight, norm.bias)
        return cls(RMS_NORM, norm.eps, norm.weight, None)


@dataclass(frozen=True)
class ProjectionKernels:
    """The compiled library. It holds a path only, so that models can be copied."""

    library: Path
    """The library."""

    def takes(self, x_ND: Tensor, *layers: nn.Linear) -> bool:
        """Return whether the kernels compute with these rows and weights, and faster: float32 on a CPU, and of small widths."""
        weights = [layer.weight for layer in layers]
        numbers = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x_ND, *weights))
        return numbers and x_ND.numel() > 0 and all(w.numel() <= LARGEST_MATRIX for w in weights)

    def project(self, x_ND: Tensor, norm: nn.LayerNorm | nn.RMSNorm | None, weight_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Return W norm(x), (N, S), and the rows.

        If what follows reads the rows that are returned instead of x_ND, the backward pass adds both gradients as it computes one.

        Args:
            x_ND: the residual stream, float32.
            norm: is applied to the rows; None: no norm.
            weight_SD: W.

        Raises:
            MemoryError: there is no memory for the weights' gradients.
        """
        form = RowNorm.of(norm)
        projected: Tensor
        kept: Tensor
        projected, kept = _Projection.apply(self, form.kind, form.epsilon, x_ND, form.weight, form.bias, weight_SD)
        return projected, kept

    def add(self, x_ND: Tensor, seen_NV: Tensor, output: nn.Linear, threshold: int) -> Tensor:
        """Return x + dropped(W seen + b), (N, D), with the random numbers of torch's path.

        Args:
            x_ND: the residual stream, float32.
            seen_NV: what each row has seen, float32.
            output: W, b.
            threshold: how many of 256 equally likely bytes drop a number.

        Raises:
            MemoryError: there is no memory for the weights' gradients.
        """
        sum_ND: Tensor = _Sum.apply(self, x_ND, seen_NV, output.weight, output.bias, threshold)
        return sum_ND

    def run(self, name: str, problem: ctypes.Structure) -> None:
        """Run a kernel."""
        if load_library(self.library)[name](ctypes.byref(problem)):
            raise MemoryError("a compiled projection does not get its working memory")


def build_projection_kernels() -> ProjectionKernels:
    """Compile the kernels.

    Raises:
        KernelBuildError: see build_library and load_library.
    """
    library = build_library("projections.cpp", AVX512)
    load_library(library)
    return ProjectionKernels(library)


class _Projection(torch.autograd.Function):
    """The autograd function of `ProjectionKernels.project`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernels: ProjectionKernels,
        kind: int,
        epsilon: float,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kept = x
        x, weight = x.contiguous(), weight.contiguous()
        norm_weight, norm_bias = (None if t is None else t.contiguous() for t in (norm_weight, norm_bias))
        size, width = weight.shape
        num_rows = x.numel() // width
        mean = x.new_empty(num_rows) if kind == LAYER_NORM else None
        scale = x.new_empty(num_rows) if kind else None
        projected = x.new_empty((*x.shape[:-1], size))
        saved = (norm_weight, norm_bias, mean, scale, x, weight)
        shape = (num_rows, width, size, torch.get_num_threads(), kind, epsilon)
        kernels.run("projection", _ProjectionProblem(*shape, *map(address_of, (*saved, projected))))
        ctx.save_for_backward(*saved)  # type: ignore[arg-type]  # torch accepts None, which its types leave out
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.kind = kernels, kind  # type: ignore[attr-defined]
        return projected, kept

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor | None, of_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, of_kept, None, None, None
        saved = ctx.saved_tensors
        norm_weight, norm_bias, _, _, x, weight = saved
        size, width = weight.shape
        gradient, of_kept = gradient.contiguous(), None if of_kept is None else of_kept.contiguous()
        of_x = torch.empty_like(x)
        sums = [None if t is None else torch.zeros_like(t) for t in (norm_weight, norm_bias, weight)]
        shape = (x.numel() // width, width, size, torch.get_num_threads(), ctx.kind, 0.0)
        tensors = (*saved, None, gradient, of_kept, of_x, *sums)
        ctx.kernels.run("projection", _ProjectionProblem(*shape, *map(address_of, tensors)))
        return None, None, None, of_x, *sums


class _Sum(torch.autograd.Function):
    """The autograd function of `ProjectionKernels.add`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernels: ProjectionKernels,
        x: Tensor,
        seen: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        threshold: int,
    ) -> Tensor:
        x, seen, weight = x.contiguous(), seen.contiguous(), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        drawn = random_bytes(x.shape) if threshold else None
        output = torch.empty_like(x)
        saved = (seen, weight, bias, drawn)
        problem = _sum_problem(weight, x.numel(), threshold, (x, *saved), (output,))
        kernels.run("projected_sum", problem)
        ctx.save_for_backward(*saved)  # type: ignore[arg-type]
        ctx.kernels, ctx.threshold = kernels, threshold  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        seen, weight, bias, _ = saved
        given = gradient.contiguous()
        of_seen = torch.empty_like(seen)
        sums = [None if t is None else torch.zeros_like(t) for t in (weight, bias)]
        problem = _sum_problem(weight, gradient.numel(), ctx.threshold, (None, *saved), (None, given, of_seen, *sums))
        ctx.kernels.run("projected_sum", problem)
        return None, gradient if ctx.needs_input_grad[1] else None, of_seen, *sums, None


class _ProjectionProblem(ctypes.Structure):
    """The arguments of a projection: Projection in projections.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "size", "threads", "norm")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("norm_weight", "norm_bias", "mean", "scale", "x", "weight", "out")),
        *((name, ctypes.c_void_p) for name in ("gradient", "kept_gradient", "x_gradient")),
        *((f"{name}_gradient", ctypes.c_void_p) for name in ("norm_weight", "norm_bias", "weight")),
    )


class _SumProblem(ctypes.Structure):
    """The arguments of an output with its sum: Sum in projections.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "size", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "seen", "weight", "bias", "bytes")),
        *(("threshold", ctypes.c_int64), ("factor", ctypes.c_float)),
        *((name, ctypes.c_void_p) for name in ("out", "gradient", "seen_gradient", "weight_gradient", "bias_gradient")),
    )


def _sum_problem(
    weight: Tensor, numbers: int, threshold: int, given: tuple[Tensor | None, ...], results: tuple[Tensor | None, ...]
) -> _SumProblem:
    """Return the arguments: the tensors up to the random bytes, and those from the output on."""
    width, size = weight.shape
    return _SumProblem(
        *(numbers // width, width, size, torch.get_num_threads(), *map(address_of, given)),
        *(threshold, factor_of(threshold), *map(address_of, results)),
    )
