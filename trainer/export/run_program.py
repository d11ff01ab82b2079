"""Runs an exported program on packed histories, in batches of similar lengths. Imports no TorchRec.

Shapes: B histories, M impressions, D model width, T labels.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.stream.packed import PackedHistories
from trainer.export.inputs import Arrays, Form, next_item_inputs, ranking_inputs

BATCH_PAIRS = (
    1 << 21
)  # pairs of a query and a key of a batch, padding included; its scores take four bytes each per head
BATCH_PLACES = 16_384  # padded events of a batch

Run = Callable[[Mapping[str, Tensor]], Tensor]


def load_program(path: Path) -> Run:
    """Load a traced program."""
    return callable_of(torch.export.load(path))


def callable_of(program: torch.export.ExportedProgram) -> Run:
    """Return the function of a traced program.

    Guards are left out: torch.export adds those that exclude sizes of 1, for which the operations are valid too.
    """
    module: Any = program.module(check_guards=False)
    return module  # type: ignore[no-any-return]


def user_vectors(
    run: Run, names: Iterable[str], form: Form, packed: PackedHistories, lengths: np.ndarray, width: int
) -> Tensor:
    """Return the vector of each history, (B, D) float32; zeros of an empty one.

    Args:
        run: the program.
        names: of its inputs, in order.
        form: what it needs.
        packed: histories that end with an event for the request.
        lengths: (B,) number of events of each before the request.
        width: D.
    """
    vectors = torch.zeros((lengths.size, width))
    for rows in batches(np.minimum(lengths, form.max_history), np.ones_like(lengths)):
        vectors[rows] = _call(run, names, next_item_inputs(form, packed, rows, lengths[rows]))
    return vectors


def logits(run: Run, names: Iterable[str], form: Form, packed: PackedHistories, num_labels: int) -> Tensor:
    """Return the logit of each label for each packed impression, (M, T) float32. Arguments as for `user_vectors`."""
    shown = packed.impressions
    assert shown is not None
    values = torch.zeros((shown.items.size, num_labels))
    counts = shown.ends - shown.starts
    lengths = np.minimum(packed.ends - packed.starts, form.receptive + counts)
    for rows in batches(np.where(counts > 0, np.maximum(1, lengths), 0), counts):
        arrays, places = ranking_inputs(form, packed, rows)
        values[places] = _call(run, names, arrays)
    return values


def batches(lengths: np.ndarray, num_queries: np.ndarray) -> Iterable[np.ndarray]:
    """Yield the rows of each batch, by length, so that little is padded. Rows of length 0 are left out.

    Args:
        lengths: (B,) events of each row.
        num_queries: (B,) impressions of each row, 1 for a next-item model.
    """
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < order.size:
        rows = order[start:]
        longest, most = lengths[rows], np.maximum.accumulate(num_queries[rows])
        number = np.arange(1, rows.size + 1)
        fits = (number * longest * np.maximum(longest, most) <= BATCH_PAIRS) & (number * longest <= BATCH_PLACES)
        stop = max(1, int(fits.argmin()) if not fits.all() else rows.size)
        yield rows[:stop]
        start += stop


def _call(run: Run, names: Iterable[str], arrays: Arrays) -> Tensor:
    with torch.no_grad():
        return run({name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in names})
