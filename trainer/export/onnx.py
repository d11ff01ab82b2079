"""The program as an ONNX file, by PyTorch's exporter. It needs the optional packages onnx and onnxscript."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from trainer.errors import UserError

NEEDED = ("onnx", "onnxscript")
INSTALL = "pip install 'shoal[onnx]'"


def check_installed() -> None:
    """Raise UserError if a package is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"onnx: needs {' and '.join(missing)}, not installed here; {INSTALL}")


def write_onnx(program: ExportedProgram, inputs: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write the ONNX file, and return the names of its inputs and its output.

    Raises:
        UserError: an operation of the program has no form in ONNX. The message names it.
    """
    names = list(inputs)
    try:
        with warnings.catch_warnings(), _without_notices("torch.onnx._internal.exporter._registration"):
            warnings.simplefilter("ignore")
            decomposed = program.run_decompositions({torch.ops.aten.repeat_interleave.self_Tensor: _repeated})
            written = torch.onnx.export(
                decomposed,
                (dict(inputs),),
                dynamo=True,
                input_names=names,
                output_names=["output"],
                verbose=False,
            )
        assert written is not None
        written.save(str(path))
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"onnx: this form of model cannot be written as ONNX: {_cause(error)}; export it without onnx"
        ) from error
    return {"inputs": names, "outputs": ["output"]}


@contextmanager
def _without_notices(logger: str) -> Iterator[None]:
    """Hide what a part of PyTorch logs about itself, except errors."""
    log = logging.getLogger(logger)

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(is_error)  # not its level, which PyTorch sets again
    try:
        yield
    finally:
        log.removeFilter(is_error)


def _repeated(values: Tensor, repeats: Tensor, dim: int, output_size: int) -> Tensor:
    """Return repeat_interleave by operations that ONNX has."""
    ends = repeats.cumsum(0)
    marks = repeats.new_zeros(output_size + 1).scatter_add(0, ends, torch.ones_like(ends))
    return values.index_select(dim, marks[:-1].cumsum(0))


def _cause(error: BaseException) -> str:
    """Return the innermost message of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
