"""The compiled causal softmax attention of packed histories.

Shapes: N events, B histories, H heads of queries, G heads of keys and values, K head width, V width of values.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from models.compiled.build import AVX512, build_library, load_library

NUMBERS = (torch.float32, torch.bfloat16)  # of queries, keys and values


@dataclass(frozen=True)
class AttentionKernel:
    """The compiled library. It holds a path only, so that models can be copied."""

    library: Path
    """The library."""

    def takes(self, query_NHK: Tensor) -> bool:
        """Return whether the kernel computes with queries of this device and dtype. Keys and values have the same ones."""
        return query_NHK.device.type == "cpu" and query_NHK.dtype in NUMBERS and query_NHK.numel() > 0

    def attend(
        self,
        query_NHK: Tensor,
        key_NGK: Tensor,
        value_NGV: Tensor,
        offsets: Tensor,
        scale: float,
        joint_NS: Tensor | None = None,
    ) -> Tensor:
        """Return what each event attends to among itself and earlier events of its history, (N, H, V) float32.

        It computes in float32. Results do not depend on the number of threads.

        Args:
            query_NHK: queries.
            key_NGK: keys. A head of keys serves H / G consecutive heads of queries.
            value_NGV: values.
            offsets: where each history begins, and where the last one ends, (B + 1,) int64.
            scale: factor of scores.
            joint_NS: the tensor of which queries, keys and values are the columns, in this order, if there is one. The gradient
                is then that of this tensor.
        """
        sizes = _Sizes(query_NHK.shape[1], key_NGK.shape[1], key_NGK.shape[2], value_NGV.shape[2])
        packed = (query_NHK, key_NGK, value_NGV) if joint_NS is None else (joint_NS,)
        attended: Tensor = _CausalAttention.apply(self, offsets.contiguous(), scale, sizes, *packed)
        return attended

    def run(self, problem: "_Problem") -> None:
        """Run the kernel."""
        if load_library(self.library).causal_attention(ctypes.byref(problem)):
            raise MemoryError("the compiled attention does not get its working memory")


def build_attention_kernel() -> AttentionKernel:
    """Compile the kernel.

    Raises:
        KernelBuildError: see build_library and load_library.
    """
    library = build_library("attention.cpp", AVX512)
    load_library(library)
    return AttentionKernel(library)


@dataclass(frozen=True)
class _Sizes:
    """The shapes of queries, keys and values."""

    num_heads: int
    """H."""
    num_key_heads: int
    """G."""
    key_width: int
    """K."""
    value_width: int
    """V."""

    def columns(self, packed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return queries, keys and values with a row for each event, of themselves or of the tensor that joins them."""
        if len(packed) == 3:
            return tuple(part.flatten(1) for part in packed)
        query_width = self.num_heads * self.key_width
        key_width = self.num_key_heads * self.key_width
        value_width = self.num_key_heads * self.value_width
        query, key, value = packed[0].split((query_width, key_width, value_width), dim=1)
        return query, key, value


class _CausalAttention(torch.autograd.Function):
    """The autograd function of `AttentionKernel.attend`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, kernel: AttentionKernel, offsets: Tensor, scale: float, sizes: _Sizes, *packed: Tensor
    ) -> Tensor:
        # Rows need not follow one another, but the numbers of a row do.
        packed = tuple(part if part.stride(-1) == 1 and part.dim() == 2 else part.contiguous() for part in packed)
        num_events = packed[0].shape[0]
        output = packed[0].new_empty((num_events, sizes.num_heads, sizes.value_width), dtype=torch.float32)
        log_total = output.new_empty((num_events, sizes.num_heads))
        problem = _Problem.of(offsets, sizes, scale, sizes.columns(packed), output, log_total)
        kernel.run(problem)
        ctx.save_for_backward(offsets, output, log_total, *packed)
        ctx.kernel, ctx.sizes, ctx.scale = kernel, sizes, scale  # type: ignore[attr-defined]
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        offsets, output, log_total, *packed = ctx.saved_tensors  # type: ignore[attr-defined]
        sizes: _Sizes = ctx.sizes  # type: ignore[attr-defined]
        gradients = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in packed]
        problem = _Problem.of(
            *(offsets, sizes, ctx.scale, sizes.columns(packed), output, log_total),  # type: ignore[attr-defined]
            output_gradient=grad_outputs[0].contiguous(),
            gradients=sizes.columns(gradients),
        )
        ctx.kernel.run(problem)  # type: ignore[attr-defined]
        return None, None, None, None, *gradients


class _Problem(ctypes.Structure):
    """The arguments of the kernel: Problem in attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_histories", "num_heads", "num_key_heads", "key_width")),
        *((name, ctypes.c_int64) for name in ("value_width", "threads", "in_bfloat16")),
        ("offsets", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_row", "key_row", "value_row")),
        *((name, ctypes.c_void_p) for name in ("output", "log_total", "output_gradient")),
        *((name, ctypes.c_void_p) for name in ("query_gradient", "key_gradient", "value_gradient")),
        *((name, ctypes.c_int64) for name in ("query_gradient_row", "key_gradient_row", "value_gradient_row")),
        ("scale", ctypes.c_float),
    )

    @classmethod
    def of(
        cls,
        offsets: Tensor,
        sizes: _Sizes,
        scale: float,
        columns: Sequence[Tensor],
        output: Tensor,
        log_total: Tensor,
        output_gradient: Tensor | None = None,
        gradients: Sequence[Tensor] = (),
    ) -> "_Problem":
        """Return the arguments. The caller holds the tensors until the kernel has run."""
        num_histories = offsets.numel() - 1
        shape = (sizes.num_heads, sizes.num_key_heads, sizes.key_width, sizes.value_width)
        return cls(
            *(num_histories, *shape, torch.get_num_threads(), columns[0].dtype == torch.bfloat16, offsets.data_ptr()),
            *(column.data_ptr() for column in columns),
            *(column.stride(0) for column in columns),
            *(output.data_ptr(), log_total.data_ptr()),
            *(None if output_gradient is None else output_gradient.data_ptr(),),
            *([column.data_ptr() for column in gradients] or (None, None, None)),
            *([column.stride(0) for column in gradients] or (0, 0, 0)),
            scale,
        )
