"""The precision of matrix products on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_products(enabled: bool) -> Iterator[None]:
    """Let the float32 products of the body round their factors to TF32, if enabled. CPUs have no such products.

    The attention kernels follow the same switch of torch (models.attention.triton_attention).
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
