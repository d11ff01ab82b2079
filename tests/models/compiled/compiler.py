"""The compiled kernels for tests, which are skipped with the reason where a machine cannot have them."""

import functools

import pytest

from models.compiled.build import KernelBuildError
from models.compiled.kernels import CompiledKernels, build_kernels


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
