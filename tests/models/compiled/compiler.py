"""The compiled kernels for tests, which are skipped with the reason where a machine cannot have them."""

import functools

import pytest

from models.compiled.build import KernelBuildError
from models.compiled.kernels import CompiledKernels, build_kernels

# Relative errors of objectives: of rounding, and of gradients with factors that are rounded once.
FLOAT32, BFLOAT16 = 1e-6, 5e-3


def kernels_or_skip() -> CompiledKernels:
    """Return the kernels of this machine, or skip the test."""
    kernels = _kernels()
    if isinstance(kernels, str):
        pytest.skip(kernels)
    return kernels


@functools.cache
def _kernels() -> CompiledKernels | str:
    try:
        return build_kernels()
    except KernelBuildError as error:
        return str(error)
