"""The compiled causal attention of packed histories: softmax, SiLU, sparsemax and entmax, with or without biases.

Shapes: N events, B histories, H heads of queries, G heads of keys and values, K head width, V width of values, L distances of the
longest history, A buckets of ages.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from models.compiled.addresses import address_of
from models.compiled.build import AVX512, build_library, load_library

NUMBERS = (torch.float32, torch.bfloat16)  # of queries, keys and values
NORMALISATIONS = ("softmax", "silu", "sparsemax", "entmax15")
MAX_BUCKETS = 256  # the kernel stores a bucket in a byte
_READ_BEYOND = 64  # bytes that it reads after the last bucket


@dataclass(frozen=True)
class PairBuckets:
    """The bucket of the age of each pair of events of a history, for all layers of a batch."""

    buckets: Tensor
    """The buckets (L, L) of each history with L events, one after another, uint8. Pairs with a later key are not set."""
    first_pair: Tensor
    """The index of the first pair of each history, (B + 1,) int64."""


@dataclass(frozen=True)
class WeightForm:
    """The form of weights and the biases of scores."""

    normalisation: str = "softmax"
    """One of NORMALISATIONS."""
    divisor: float = 1.0
    """Divides the weights of "silu"."""
    position: Tensor | None = None
    """The bias of each distance of positions, (H, L), or None."""
    time: Tensor | None = None
    """The bias of each bucket of ages, (H, A), or None."""
    pairs: PairBuckets | None = None
    """The buckets, with `time`."""


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
        weights: WeightForm = WeightForm(),
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
            weights: how scores become weights, by default by a softmax without biases.
        """
        sizes = _Sizes(query_NHK.shape[1], key_NGK.shape[1], key_NGK.shape[2], value_NGV.shape[2])
        packed = (query_NHK, key_NGK, value_NGV) if joint_NS is None else (joint_NS,)
        form = _Form(scale, sizes, weights)
        attended: Tensor = _Attention.apply(self, offsets.contiguous(), form, weights.position, weights.time, *packed)
        return attended

    def pair_buckets(self, offsets: Tensor, times: Tensor, request_times: Tensor, bounds: Tensor) -> PairBuckets:
        """Return the bucket of the age of each pair of events: the time from the key to the request of the query.

        Args:
            offsets: of the histories, (B + 1,) int64, from 0.
            times: of the events, (N,) int64.
            request_times: of the queries, (N,) int64.
            bounds: the lowest age of each bucket but the first, (A - 1,) int64.
        """
        assert bounds.numel() < MAX_BUCKETS
        offsets, times, request_times, bounds = (t.contiguous() for t in (offsets, times, request_times, bounds))
        first_pair = torch.cat((offsets.new_zeros(1), offsets.diff().square().cumsum(0)))
        buckets = torch.empty(int(first_pair[-1]) + _READ_BEYOND, dtype=torch.uint8)
        load_library(self.library).age_buckets(
            *(ctypes.c_void_p(offsets.data_ptr()), ctypes.c_int64(offsets.numel() - 1)),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (first_pair, times, request_times, bounds)),
            *(ctypes.c_int64(bounds.numel()), ctypes.c_void_p(buckets.data_ptr())),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return PairBuckets(buckets, first_pair)

    def run(self, problem: "_Problem", form: "_Form") -> None:
        """Run the kernel."""
        function = getattr(load_library(self.library), f"{form.weights.normalisation}_attention")
        if function(ctypes.byref(problem)):
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


@dataclass(frozen=True)
class _Form:
    """The arguments of an attention besides tensors with gradients."""

    scale: float
    """Factor of scores."""
    sizes: _Sizes
    """The shapes."""
    weights: WeightForm
    """How scores become weights."""

    @property
    def is_softmax(self) -> bool:
        """Return whether the backward pass needs the output."""
        return self.weights.normalisation == "softmax"

    @property
    def has_level(self) -> bool:
        """Return whether the forward pass keeps a number of each row of weights for the backward pass."""
        return self.weights.normalisation != "silu"


class _Attention(torch.autograd.Function):
    """The autograd function of `AttentionKernel.attend`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernel: AttentionKernel,
        offsets: Tensor,
        form: _Form,
        position_HL: Tensor | None,
        time_HA: Tensor | None,
        *packed: Tensor,
    ) -> Tensor:
        # Rows need not follow one another, but the numbers of a row do.
        packed = tuple(part if _has_rows(part) else part.contiguous() for part in packed)
        biases = tuple(None if bias is None else bias.float().contiguous() for bias in (position_HL, time_HA))
        num_events = packed[0].shape[0]
        output = packed[0].new_empty((num_events, form.sizes.num_heads, form.sizes.value_width), dtype=torch.float32)
        level = output.new_empty((num_events, form.sizes.num_heads)) if form.has_level else None
        kernel.run(_Problem.of(offsets, form, form.sizes.columns(packed), output, level, biases), form)
        # torch accepts None here, which its types leave out.
        saved = (offsets, output if form.is_softmax else None, level, *biases, *packed)
        ctx.save_for_backward(*saved)  # type: ignore[arg-type]
        ctx.kernel, ctx.form = kernel, form  # type: ignore[attr-defined]
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        offsets, output, level, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
        biases, packed = rest[:2], rest[2:]
        form: _Form = ctx.form  # type: ignore[attr-defined]
        gradients = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in packed]
        by_history = [None if bias is None else bias.new_zeros((offsets.numel() - 1, *bias.shape)) for bias in biases]
        problem = _Problem.of(
            *(offsets, form, form.sizes.columns(packed), output, level, biases),
            output_gradient=grad_outputs[0].contiguous(),
            gradients=form.sizes.columns(gradients),
            bias_sums=by_history,
        )
        ctx.kernel.run(problem, form)  # type: ignore[attr-defined]
        of_biases = (None if sums is None else sums.sum(dim=0) for sums in by_history)
        return None, None, None, *of_biases, *gradients


def _has_rows(part: Tensor) -> bool:
    """Return whether the numbers of each event of a tensor follow one another."""
    expected = 1
    for size, stride in zip(reversed(part.shape[1:]), reversed(part.stride()[1:]), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


class _Problem(ctypes.Structure):
    """The arguments of the kernel: Problem in attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_histories", "num_heads", "num_key_heads", "key_width")),
        *((name, ctypes.c_int64) for name in ("value_width", "threads", "in_bfloat16")),
        ("offsets", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_row", "key_row", "value_row")),
        *((name, ctypes.c_void_p) for name in ("output", "output_gradient")),
        *((name, ctypes.c_void_p) for name in ("query_gradient", "key_gradient", "value_gradient")),
        *((name, ctypes.c_int64) for name in ("query_gradient_row", "key_gradient_row", "value_gradient_row")),
        ("level", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_distances", "num_buckets")),
        *((name, ctypes.c_void_p) for name in ("position", "time", "buckets", "first_pair")),
        *((name, ctypes.c_void_p) for name in ("position_sums", "time_sums")),
        *((name, ctypes.c_float) for name in ("scale", "divisor")),
    )

    @classmethod
    def of(
        cls,
        offsets: Tensor,
        form: _Form,
        columns: Sequence[Tensor],
        output: Tensor | None,
        level: Tensor | None,
        biases: Sequence[Tensor | None],
        output_gradient: Tensor | None = None,
        gradients: Sequence[Tensor] = (),
        bias_sums: Sequence[Tensor | None] = (None, None),
    ) -> "_Problem":
        """Return the arguments. The caller holds the tensors until the kernel has run."""
        sizes = form.sizes
        shape = (sizes.num_heads, sizes.num_key_heads, sizes.key_width, sizes.value_width)
        pairs = form.weights.pairs
        return cls(
            *(offsets.numel() - 1, *shape, torch.get_num_threads(), columns[0].dtype == torch.bfloat16),
            offsets.data_ptr(),
            *(column.data_ptr() for column in columns),
            *(column.stride(0) for column in columns),
            *(address_of(output), address_of(output_gradient)),
            *([column.data_ptr() for column in gradients] or (None, None, None)),
            *([column.stride(0) for column in gradients] or (0, 0, 0)),
            address_of(level),
            *(0 if bias is None else bias.shape[1] for bias in biases),
            *(address_of(bias) for bias in biases),
            *((None, None) if pairs is None else (pairs.buckets.data_ptr(), pairs.first_pair.data_ptr())),
            *(address_of(sums) for sums in bias_sums),
            *(form.scale, form.weights.divisor),
        )
