"""The compiled losses over candidates that all targets share: softmax and binary terms, with both gradients.

Shapes: T targets, C candidates, D model width.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models import devices
from models.compiled.addresses import address_of
from models.compiled.build import AVX512, build_library, load_library, processor_features

# By Linux's names. The compiler writes a hyphen for the underscore of AMX, and none in AVX-512's.
AMX = ("avx512_bf16", "amx_tile", "amx_bf16")
AMX_FLAGS = ("avx512bf16", "amx-tile", "amx-bf16")


@dataclass(frozen=True)
class Hits:
    """Candidates that are left out for single targets."""

    order: Tensor
    """Places of candidates, (C,) int64."""
    first: Tensor
    """The place in `order` of a target's first candidate, (T,) int64."""
    count: Tensor
    """The number of a target's candidates, (T,) int64."""


@dataclass(frozen=True)
class SharedTerms:
    """The terms of targets, from which a loss and its gradient follow."""

    total: Tensor
    """The log of the sum of exponentials, or the sum of binary terms, (T,)."""
    user_gradient: Tensor
    """The gradient of its sum by the users, (T, D)."""
    item_gradient: Tensor
    """The gradient of its sum by the items, (C, D)."""
    positive_gradient: Tensor | None
    """The gradient of its sum by the vectors of targets that are not among the items, (T, D), if they are given."""


@dataclass(frozen=True)
class SoftmaxKernels:
    """The compiled libraries. It holds paths only, so that models can be copied."""

    float32: Path
    """The library in float32."""
    bfloat16: Path | None
    """The library with products in bfloat16, or None if the processor has no AMX."""

    def takes(self, *tensors: Tensor) -> bool:
        """Return whether the kernels compute with these vectors: in float32, on a CPU, and at least one of each."""
        return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() for t in tensors)

    def terms(
        self,
        user_TD: Tensor,
        item_CD: Tensor,
        own_T: Tensor,
        temperature: float,
        target_T: Tensor | None = None,
        positive_TD: Tensor | None = None,
        shift_C: Tensor | None = None,
        hits: Hits | None = None,
    ) -> SharedTerms:
        """Return the terms of the softmax of the scores user . item / temperature - shift. Totals are logs of sums of exponentials.

        Results depend on the number of threads, as do those of torch. Under autocast to bfloat16 the products are those of
        softmax_bfloat16.cpp, if the processor has AMX.

        Args:
            user_TD: vectors of the targets' histories, float32.
            item_CD: vectors of the candidates, float32.
            own_T: the targets' own scores, float32, one more candidate of each target. With `target_T` or `positive_TD` they are
                written here.
            temperature: divides the scores of candidates.
            target_T: the places of the targets among the candidates, int64. The gradients are then those of total - own.
            positive_TD: the vectors of targets that are not among the candidates, float32. The gradients are then those of total
                - own too.
            shift_C: is subtracted from the scores of candidates.
            hits: candidates that do not count.
        """
        return self._run("softmax", user_TD, item_CD, own_T, temperature, target_T, positive_TD, shift_C, hits)

    def binary_terms(
        self,
        user_TD: Tensor,
        item_CD: Tensor,
        temperature: float,
        shift_C: Tensor | None = None,
        hits: Hits | None = None,
    ) -> SharedTerms:
        """Return the terms of candidates that are no targets: totals are sums of log(1 + exp(score)). Arguments as in `terms`."""
        return self._run("binary", user_TD, item_CD, None, temperature, None, None, shift_C, hits)

    def _run(
        self,
        loss: Literal["softmax", "binary"],
        user_TD: Tensor,
        item_CD: Tensor,
        own_T: Tensor | None,
        temperature: float,
        target_T: Tensor | None,
        positive_TD: Tensor | None,
        shift_C: Tensor | None,
        hits: Hits | None,
    ) -> SharedTerms:
        user_TD, item_CD = user_TD.detach().contiguous(), item_CD.detach().contiguous()
        target_T = None if target_T is None else target_T.contiguous()
        shift_C = None if shift_C is None else shift_C.to(torch.float32).contiguous()
        positive_TD = None if positive_TD is None else positive_TD.detach().contiguous()
        terms = SharedTerms(
            user_TD.new_empty(user_TD.shape[0]),
            torch.empty_like(user_TD),
            torch.empty_like(item_CD),
            None if positive_TD is None else torch.empty_like(positive_TD),
        )
        order, first, count = (None, None, None) if hits is None else (hits.order, hits.first, hits.count)
        given = user_TD, item_CD, target_T, positive_TD, own_T, shift_C, order, first, count
        results = terms.total, terms.user_gradient, terms.item_gradient, terms.positive_gradient
        assert all(t is None or t.is_contiguous() for t in given)
        problem = _Problem(
            *(*user_TD.shape[:1], *item_CD.shape, torch.get_num_threads()),
            *map(address_of, (*given, *results)),
            *(target_T is None, 1.0 / temperature),
        )
        if self._function(loss)(ctypes.byref(problem)):
            raise MemoryError("the compiled objective does not get its working memory")
        return terms

    def _function(self, loss: str) -> "ctypes._NamedFuncPointer":
        if devices.host_uses_bfloat16() and self.bfloat16 is not None:
            return load_library(self.bfloat16)[f"{loss}_bfloat16"]
        return load_library(self.float32)[f"{loss}_float32"]


def build_softmax_kernels() -> SoftmaxKernels:
    """Compile the kernels that this machine can run.

    Raises:
        KernelBuildError: see build_library and load_library.
    """
    float32 = build_library("softmax_float32.cpp", AVX512)
    load_library(float32)
    if not processor_features().issuperset(AMX):
        return SoftmaxKernels(float32, None)
    bfloat16 = build_library("softmax_bfloat16.cpp", (*AVX512, *AMX_FLAGS))
    return SoftmaxKernels(float32, bfloat16 if load_library(bfloat16).request_amx() == 0 else None)


class _Problem(ctypes.Structure):
    """The arguments of a kernel: Problem in softmax.h."""

    _fields_ = (
        ("num_targets", ctypes.c_int64),
        ("num_candidates", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("user", ctypes.c_void_p),
        ("item", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("positive", ctypes.c_void_p),
        ("own", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("hit_order", ctypes.c_void_p),
        ("hit_first", ctypes.c_void_p),
        ("hit_count", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("user_gradient", ctypes.c_void_p),
        ("item_gradient", ctypes.c_void_p),
        ("positive_gradient", ctypes.c_void_p),
        ("own_counts", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )
