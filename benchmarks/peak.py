"""Share of the machine's matrix-product peak that a training step reaches, by processor time of one thread.

A step is forward and backward of a SASRec over ready batches, without tables and optimizers. Its FLOPs are those of matrix
products (models.costs), so a share of 1 would mean that everything else is free and that no product is smaller than the machine
likes.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.measure import Comparison, take_turns
from models.batches.history_batch import HistoryBatch, build_batch
from models.compiled.build import KernelBuildError
from models.compiled.kernels import CompiledKernels, build_kernels
from models.config import NextItemConfig
from models.costs import Workload, costs_of
from models.features.catalogue import Catalogue
from models.histories import Histories
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_HISTORIES, MAX_HISTORY, NUM_ITEMS, NUM_NEGATIVES = 128, 200, 3416, 128
PRODUCT = 1024  # rows and columns of the matrices that define the peak
OBJECTIVES: dict[str, dict[str, object]] = {
    "full softmax": {"kind": "full_softmax"},
    f"{NUM_NEGATIVES} negatives": {"kind": "sampled_softmax", "num_negatives": NUM_NEGATIVES},
}


def compare(turns: int) -> Iterator[Comparison]:
    """Measure widths, objectives and precisions, without and with compiled kernels. The unit is GFLOP/s of matrix products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for width, (name, objective), kernels in itertools.product((64, 256), OBJECTIVES.items(), (None, *_kernels())):
        for dtype in (torch.float32, torch.bfloat16):
            step, flops = _step(width, objective, dtype, kernels)
            precision = str(dtype).removeprefix("torch.")
            yield take_turns(
                f"SASRec step, width {width}, {name}, {precision}{', compiled' if kernels else ''}",
                "GFLOP/s",
                flops / 1e9,
                step,
                _product(dtype),
                f"product of {PRODUCT} x {PRODUCT}, {precision}",
                turns,
                2.0 * PRODUCT**3 / 1e9,
                time.process_time,
            )
    torch.set_num_threads(threads)


def _kernels() -> list[CompiledKernels]:
    """Return the compiled kernels, if this machine can have them."""
    try:
        return [build_kernels()]
    except KernelBuildError as error:
        print(f"without compiled kernels: {error}")
        return []


def _step(
    width: int, objective: dict[str, object], dtype: torch.dtype, kernels: CompiledKernels | None
) -> tuple[Callable[[], object], float]:
    """Return forward and backward of a batch, and the FLOPs of its matrix products."""
    config = NextItemConfig.model_validate({"max_history": MAX_HISTORY, "objective": objective})
    batch, lengths = _batch("num_negatives" not in objective)
    model = NextItemModel(config, [TableSpec("item", NUM_ITEMS + 1, width)], torch.device("cpu"))
    model.kernels = kernels
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {"item": 0.02})
    rows = {"item": model.look_up(batch.items)["item"].detach().requires_grad_()}
    workload = Workload(Histories.of(lengths), float(lengths.sum()), NUM_ITEMS)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model.loss(rows, batch)
        loss.backward()
        model.zero_grad()

    return step, costs_of(config, width, workload).total.matmul * float(lengths.sum())


def _batch(whole_catalogue: bool) -> tuple[HistoryBatch, np.ndarray]:
    """Return a batch of histories about as long as MovieLens-1M's, and their lengths."""
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.lognormal(4.45, 0.9, NUM_HISTORIES).astype(np.int64), 18, MAX_HISTORY)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    items, targets = generator.integers(1, NUM_ITEMS + 1, (2, offsets[-1]))
    negatives = generator.integers(1, NUM_ITEMS + 1, 0 if whole_catalogue else NUM_NEGATIVES)
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    batch = build_batch(
        np.arange(NUM_HISTORIES), offsets, items, targets, negatives, catalogue, whole_catalogue=whole_catalogue
    )
    return batch, lengths


def _product(dtype: torch.dtype) -> Callable[[], object]:
    left, right, out = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)
