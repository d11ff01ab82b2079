"""Compiled kernels compared with the same computation by torch's operations, in turns, by processor time of one thread.

    python -m benchmarks.compiled --json docs/results/benchmark_compiled.json                          # measures
    python -m benchmarks.compiled --json docs/results/benchmark_compiled.json --page docs/objectives.md

Each is forward and backward: attention with and without biases, the layers between matrix products, objectives with negatives that
all targets share, and whole steps of HSTU.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Comparison, take_turns
from benchmarks.pages import markdown, measure_or_show, ratio_text
from models.attention.attend import attend
from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.jagged import layout_of
from models.compiled.kernels import CompiledKernels, build_kernels
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.layers.dropout import drop, threshold_of
from models.next_item.model import NextItemModel
from models.objectives.sampled import SampledTargets, binary_cross_entropy, sampled_softmax_cross_entropy
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

NUM_HISTORIES, MAX_HISTORY, NUM_ITEMS, WIDTH, NUM_HEADS = 128, 200, 3416, 64, 2
NUM_NEGATIVES = (128, 512)
DROPOUT = 0.2
# Normalisation and bias of attentions.
FORMS = (
    ("silu", "none"),
    ("silu", "position"),
    ("silu", "both"),
    ("softmax", "both"),
    ("entmax15", "none"),
    ("entmax15", "both"),
)
PRECISIONS = (torch.float32, torch.bfloat16)
DAY = 86_400
TORCH = "torch's operations"

Work = Callable[[], object]


def measure(_: Path, turns: int) -> dict[str, Any]:
    """Return the figures of all comparisons."""
    torch.set_num_threads(1)
    return {"turns": turns, "rows": [comparison.values() for comparison in compare(build_kernels(), turns)]}


def compare(kernels: CompiledKernels, turns: int) -> Iterator[Comparison]:
    """Measure everything in float32 and in bfloat16."""
    works = itertools.chain(_attentions(kernels), _layers(kernels), _objectives(kernels), _steps(kernels))
    for name, unit, amount, of_kernels in works:
        for dtype in PRECISIONS:
            ours, theirs = (_under(dtype, work) for work in (of_kernels(True, dtype), of_kernels(False, dtype)))
            yield take_turns(
                f"{name}, {str(dtype).removeprefix('torch.')}",
                unit,
                amount,
                ours,
                theirs,
                TORCH,
                turns,
                clock=time.process_time,
            )


def _under(dtype: torch.dtype, work: Callable[[], Tensor]) -> Work:
    """Return a function that computes forward in a precision, and backward."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = work()
        loss.backward()

    return run


Choices = tuple[str, str, float, Callable[[bool, torch.dtype], Callable[[], Tensor]]]


def _lengths() -> np.ndarray:
    """Return lengths of histories about as long as MovieLens-1M's."""
    generator = np.random.default_rng(1)
    return np.clip(generator.lognormal(4.45, 0.9, NUM_HISTORIES).astype(np.int64), 18, MAX_HISTORY)


def _attentions(kernels: CompiledKernels) -> Iterator[Choices]:
    lengths = _lengths()
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    generator = torch.Generator().manual_seed(1)
    times = torch.randint(0, DAY, (int(offsets[-1]),), generator=generator).cumsum(0)
    heads = [torch.randn(times.numel(), NUM_HEADS, WIDTH // NUM_HEADS, generator=generator) for _ in range(3)]
    for normalisation, bias in FORMS:
        config = AttentionConfig.model_validate({"num_heads": NUM_HEADS, "normalisation": normalisation, "bias": bias})
        position = PositionBias("exact", NUM_HEADS, MAX_HISTORY, False) if config.uses_position else None
        time_bias = TimeBias("bucketed", NUM_HEADS) if config.uses_time else None
        parts = AttentionTerms(config, (WIDTH // NUM_HEADS) ** -0.5, MAX_HISTORY, position, time_bias)

        def of_kernels(compiled: bool, dtype: torch.dtype, parts: AttentionTerms = parts) -> Callable[[], Tensor]:
            leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in heads]
            context = AttentionContext(layout_of(offsets), times, times)
            context.kernel = kernels.attention if compiled else None

            def work() -> Tensor:
                # A batch computes the buckets of its ages once; a step is a batch.
                fresh = replace(context, _blocks={}, _ages={}, masks={})
                query, key, value = leaves
                return attend(query, key, value, fresh, parts).output.float().sum()

            return work

        name = {"none": "no bias", "position": "bias of positions", "both": "biases of positions and times"}[bias]
        form = {"silu": "SiLU", "entmax15": "entmax"}.get(normalisation, normalisation)
        yield f"{form} attention, {name}", "events/s", float(times.numel()), of_kernels


def _layers(kernels: CompiledKernels) -> Iterator[Choices]:
    num_rows = int(_lengths().sum())
    generator = torch.Generator().manual_seed(1)
    x, said, gate, hidden = (
        torch.randn(num_rows, width, generator=generator) for width in (WIDTH, WIDTH, WIDTH, 2 * WIDTH)
    )
    bias, threshold, norm, layers = (
        torch.randn(WIDTH, generator=generator),
        threshold_of(DROPOUT),
        nn.LayerNorm(WIDTH),
        kernels.layers,
    )

    def add(x: Tensor, said: Tensor) -> Tensor:
        return x.float() + drop(said, threshold)

    def add_gated(x: Tensor, said: Tensor, gate: Tensor) -> Tensor:
        return x.float() + torch.sigmoid(gate) * drop(said, threshold)

    def swiglu(hidden: Tensor) -> Tensor:
        first, second = hidden.chunk(2, dim=-1)
        return drop(F.silu(first) * second, threshold)

    # By name: inputs, the computation by torch, and by the kernels.
    forms: dict[str, tuple[Sequence[Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
        "dropout and residual sum": ((x, said), add, lambda x, said: layers.add_dropped(x.float(), said, threshold)),
        "dropout, gate and residual sum": (
            (x, said, gate),
            add_gated,
            lambda x, said, gate: layers.add_dropped(x.float(), said, threshold, gate_ND=gate),
        ),
        "GELU with a bias": (
            (said, bias),
            lambda h, b: F.gelu(h + b),
            lambda h, b: layers.activate(h, "gelu", bias=b.float()),
        ),
        "SwiGLU with dropout": ((hidden,), swiglu, lambda h: layers.activate(h, "silu", True, threshold)),
        "layer norm": ((x,), lambda x: norm(x.float()), lambda x: layers.normalise(norm, x.float())[0]),
    }
    for name, (inputs, by_torch, by_kernels) in forms.items():

        def of_kernels(
            compiled: bool,
            dtype: torch.dtype,
            inputs: Sequence[Tensor] = inputs,
            sides: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (by_torch, by_kernels),
        ) -> Callable[[], Tensor]:
            leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
            return lambda: sides[compiled](*leaves).float().sum()

        yield name, "events/s", float(num_rows), of_kernels


def _objectives(kernels: CompiledKernels) -> Iterator[Choices]:
    num_targets = int(_lengths().sum())
    generator = torch.Generator().manual_seed(1)
    users, positives = (0.3 * torch.randn(num_targets, WIDTH, generator=generator) for _ in range(2))
    target_ids = torch.randint(1, NUM_ITEMS + 1, (num_targets,), generator=generator)
    for num_negatives in NUM_NEGATIVES:
        negatives = 0.3 * torch.randn(num_negatives, WIDTH, generator=generator)
        negative_ids = torch.randint(1, NUM_ITEMS + 1, (num_negatives,), generator=generator)
        for name in ("sampled softmax", "binary cross-entropy"):

            def of_kernels(
                compiled: bool,
                dtype: torch.dtype,
                negatives: Tensor = negatives,
                negative_ids: Tensor = negative_ids,
                name: str = name,
            ) -> Callable[[], Tensor]:
                leaves = [vectors.clone().requires_grad_() for vectors in (users, positives, negatives)]
                softmax = kernels.softmax if compiled else None

                def work() -> Tensor:
                    of_users, of_positives, of_negatives = leaves
                    sample = SampledTargets(of_users, of_positives, of_negatives, target_ids, negative_ids)
                    if name == "sampled softmax":
                        return sampled_softmax_cross_entropy(sample, softmax)
                    return binary_cross_entropy(sample, 1.0, 1.0, 0.0, softmax)

                return work

            yield f"{name}, {num_negatives} negatives", "targets/s", float(num_targets), of_kernels


def _steps(kernels: CompiledKernels) -> Iterator[Choices]:
    for objective in ("sampled_softmax", "bce"):
        config = NextItemConfig.model_validate(
            {
                "max_history": MAX_HISTORY,
                "encoder": {"kind": "hstu", "attention": {"num_heads": NUM_HEADS, "bias": "position"}},
                "objective": {"kind": objective, "num_negatives": NUM_NEGATIVES[0]},
            }
        )
        batch = _batch()

        def of_kernels(
            compiled: bool, dtype: torch.dtype, config: NextItemConfig = config, batch: HistoryBatch = batch
        ) -> Callable[[], Tensor]:
            model = NextItemModel(config, [TableSpec("item", NUM_ITEMS + 1, WIDTH)], torch.device("cpu"))
            model.kernels = kernels if compiled else None
            model.initialize(torch.Generator().manual_seed(1))
            initialize_tables(model, 1, {"item": 0.02})
            rows = {"item": model.look_up(batch.items)["item"].detach().requires_grad_()}
            return lambda: model.loss(rows, batch)

        name = {"sampled_softmax": "sampled softmax", "bce": "binary cross-entropy"}[objective]
        yield (
            f"HSTU step, 2 blocks, {name}, {NUM_NEGATIVES[0]} negatives",
            "events/s",
            float(_lengths().sum()),
            of_kernels,
        )


def _batch() -> HistoryBatch:
    lengths = _lengths()
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    generator = np.random.default_rng(1)
    items, targets = generator.integers(1, NUM_ITEMS + 1, (2, offsets[-1]))
    negatives = generator.integers(1, NUM_ITEMS + 1, NUM_NEGATIVES[0])
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    return build_batch(np.arange(NUM_HISTORIES), offsets, items, targets, negatives, catalogue, whole_catalogue=False)


def table(results: dict[str, Any]) -> str:
    """Return the speeds of both sides and their ratio."""
    header = ["forward and backward", "unit", "torch", "compiled", "speed: median (spread)"]
    rows = [
        [
            row["name"],
            row["unit"],
            *(f"{statistics.median(row[side]):,.0f}" for side in ("ceiling", "ours")),
            ratio_text(row),
        ]
        for row in results["rows"]
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    measure_or_show("Compiled kernels and torch's operations.", "compiled", measure, table)
