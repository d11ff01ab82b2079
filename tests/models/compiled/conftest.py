"""Fixtures of the compiled objectives: their kernels, in each precision and on one thread and two."""

from collections.abc import Iterator

import pytest
import torch

from models.compiled.softmax import SoftmaxKernels
from tests.models.compiled.compiler import BFLOAT16, FLOAT32, kernels_or_skip


@pytest.fixture
def kernels() -> SoftmaxKernels:
    return kernels_or_skip().softmax


@pytest.fixture(params=["float32", "bfloat16"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """Compute in a precision, and give the relative error of its gradients."""
    low = request.param == "bfloat16"
    if low and not kernels_or_skip().has_amx:
        pytest.skip("the processor has no AMX")
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        yield BFLOAT16 if low else FLOAT32


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
