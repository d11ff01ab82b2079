"""Shows on a CPU what a GPU would do: operations for which the host waits, and the number of kernels that it launches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Their results have sizes that only the device knows, or they are numbers of the host.
WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "_unique",
    "_unique2",
}
READING = {Tensor.tolist, Tensor.cpu, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}
# They only describe memory, or allocate it.
WITHOUT_KERNEL = {
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "_unsafe_view",
    "_reshape_alias",
    "lift_fresh",
}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let models choose what they choose on a GPU: sizes of pieces, and operations for which the host does not wait."""
    with mock.patch("models.devices.is_host", return_value=False):
        yield


@contextmanager
def recorded_waits() -> Iterator[list[str]]:
    """Yield a list that receives the operations of the body for which the host would wait, with the place that calls them."""
    waits: list[str] = []
    with _Functions(waits), _Operations(waits):
        yield waits


def launches(work: Callable[[], Any]) -> int:
    """Return how many kernels the operations of `work` launch, backward passes included. Each operation counts as one."""
    with _Launches() as counted:
        work()
    return counted.number


class _Functions(TorchFunctionMode):
    """Reads of tensors on the host. `numpy` is none: it fails for a tensor of a GPU."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in READING:
            self._waits.append(f"{function.__name__} {_caller()}")
        return function(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        if name in WAITING or _waits_by_arguments(name, args, kwargs):
            self._waits.append(f"{name} {_caller()}")
        return function(*args, **kwargs)


def _waits_by_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    match name:
        case "index" | "index_put" | "index_put_" | "_index_put_impl_":
            masks = (torch.bool, torch.uint8)  # a mask is an index of unknown size
            return any(isinstance(index, Tensor) and index.dtype in masks for index in args[1])
        case "repeat_interleave":
            return kwargs.get("output_size") is None
        case "segment_reduce":
            return not kwargs.get("unsafe", False)
    return False


def _caller() -> str:
    """Return file and line of the innermost code outside of torch and of this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = function._schema
        is_view = any(given.alias_info is not None and not given.alias_info.is_write for given in schema.returns)
        self.number += not is_view and schema.name.partition("::")[2] not in WITHOUT_KERNEL
        return function(*args, **(kwargs or {}))
