"""Addresses of tensors, as arguments of the compiled libraries."""

from torch import Tensor


def address_of(tensor: Tensor | None) -> int | None:
    """Return where the numbers of a tensor begin, or None without one. The caller holds it until the kernel has run."""
    return None if tensor is None else tensor.data_ptr()
