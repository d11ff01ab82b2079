"""Attention kernels and whole steps of one GPU as shares of its peak, with parity: `python -m benchmarks.gpu [--smoke]`.

It takes at most MINUTES: measurements that do not fit are named and left out. `--smoke` runs every part at tiny sizes on the CPU,
by the paths of a CPU, so that a machine without a GPU tests this program. Its rates mean nothing.

FLOPs are those of the model's matrix products, as MLPerf counts them: a causal pair of events costs 4 FLOPs per number of a head
forward, and 2.5 times as many backward. Work that is computed again, and everything elementwise, is not counted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.attention.attend import attend, path_of
from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.reference import attend_reference
from models.attention.terms import AttentionTerms
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.jagged import layout_of
from models.batches.transfer import to_device
from models.config import NextItemConfig
from models.costs import Histories, Workload, costs_of
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables

MINUTES = 8
RESERVED_SECONDS = 60.0  # for the measurement that is under way when the time is over
FORWARD_FLOPS = 4.0  # of a pair of events and a number of a head: two products
BACKWARD = 2.5  # times the forward pass: five products
WIDTH = 128  # of a head
HEADS = 4
FORMS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, window of 256": {"window": 256},
    "softmax, position and time bias": {"bias": "both"},
    "silu": {"normalisation": "silu"},
    "silu, position and time bias (HSTU)": {"normalisation": "silu", "bias": "both"},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "SASRec, sampled softmax": {"kind": "sasrec", "num_blocks": 4, "dropout": 0.0, "attention": {"num_heads": 4}},
    "HSTU, sampled softmax": {"kind": "hstu", "num_blocks": 8, "dropout": 0.0, "attention": {"num_heads": 4}},
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements."""

    lengths: tuple[int, ...]  # of histories
    num_events: int  # of a batch of attention
    product: int  # rows and columns of the matrices that define the peak
    repeats: int  # measured calls
    width: int  # of the model
    num_histories: int  # of a step
    max_history: int  # of a step
    num_items: int  # of the catalogue
    num_negatives: int  # shared by all targets


FULL = Sizes((256, 512, 1024, 2048, 4096, 8192), 65_536, 8_192, 10, 256, 512, 1_024, 1_000_000, 8_192)
SMOKE = Sizes((16, 40), 80, 64, 2, 16, 6, 12, 50, 8)


@dataclass(frozen=True)
class Rate:
    """A measured rate."""

    name: str
    path: str
    """The path of attention, or "step"."""
    seconds: float
    """Median of the calls."""
    spread: tuple[float, float]
    """Fastest and slowest call."""
    teraflops: float
    """FLOPs per second, in units of 10^12."""
    share: float
    """The share of the peak of a matrix product that was measured in the same run."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention and steps of one GPU as shares of its peak.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error("there is no GPU; --smoke runs the program at tiny sizes on the CPU")
    device = torch.device("cpu" if arguments.smoke else "cuda")
    if arguments.smoke:
        torch.set_num_threads(1)  # pieces are too small for more
    values = run(device, SMOKE if arguments.smoke else FULL, time.monotonic() + 60 * MINUTES - RESERVED_SECONDS)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(values, indent=1), encoding="utf-8")


def run(device: torch.device, sizes: Sizes, deadline: float) -> dict[str, Any]:
    """Run all parts until the deadline (time.monotonic), print a line for each, and return the figures."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = _peak(device, sizes)
    print(
        f"{name}, torch {torch.__version__}: product of {sizes.product} x {sizes.product} in bfloat16: {peak:.3g} TFLOP/s"
    )
    differences = dict(_parity(device))
    for form, difference in differences.items():
        print(f"parity, {form}: largest difference {difference:.2g} of the largest number")
    rates: list[Rate] = []
    left_out = []
    for label, measure in _measurements(device, sizes, peak):
        if time.monotonic() > deadline:
            left_out.append(label)
            continue
        rates.append(measure())
        print(_line(rates[-1]))
    if left_out:
        print(f"left out after {MINUTES} minutes: {', '.join(left_out)}")
    return {
        "device": name,
        "torch": torch.__version__,
        "peak_teraflops": peak,
        "parity": differences,
        "rates": [asdict(rate) for rate in rates],
        "left_out": left_out,
    }


def _line(rate: Rate) -> str:
    fastest, slowest = (1e3 * seconds for seconds in rate.spread)
    return (
        f"{rate.name} [{rate.path}]: {1e3 * rate.seconds:.3f} ms ({fastest:.3f} to {slowest:.3f}), "
        f"{rate.teraflops:.4g} TFLOP/s, {100 * rate.share:.1f} % of the peak"
    )


def _measurements(device: torch.device, sizes: Sizes, peak: float) -> Iterator[tuple[str, Callable[[], Rate]]]:
    """Yield a name and a measurement of each shape of attention and each step. The steps come first: there are few."""
    for name, encoder in ENCODERS.items():
        yield name, partial(_step_rate, device, sizes, peak, name, encoder)
    for length in sizes.lengths:
        for name, form in FORMS.items():
            label = f"{name}, {length} events"
            yield label, partial(_form_rate, device, sizes, peak, label, form, length)


def _peak(device: torch.device, sizes: Sizes) -> float:
    """Return the TFLOP/s of a product of two large matrices in bfloat16."""
    left, right = (torch.randn(sizes.product, sizes.product, device=device).bfloat16() for _ in range(2))
    seconds = _seconds(lambda: left @ right, device, sizes.repeats)
    return 2.0 * sizes.product**3 / min(seconds) / 1e12


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Return the seconds of each call, after two calls that compile and allocate."""
    for _ in range(2):
        work()
    seconds = []
    for _ in range(repeats):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rate(name: str, path: str, seconds: list[float], flops: float, peak: float) -> Rate:
    median = statistics.median(seconds)
    teraflops = flops / median / 1e12
    return Rate(name, path, median, (min(seconds), max(seconds)), teraflops, teraflops / peak)


# Attention


def _form_rate(device: torch.device, sizes: Sizes, peak: float, name: str, form: dict[str, Any], length: int) -> Rate:
    """Measure forward and backward of one form over histories of equal length."""
    lengths = [length] * max(1, sizes.num_events // length)
    config = AttentionConfig.model_validate({"num_heads": HEADS, **form})
    context, terms = _context_of(lengths, device), _terms_of(config, length, device)
    q, k, v = (torch.randn(sum(lengths), HEADS, WIDTH, device=device).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn_like(q)[:, None]
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None

    def work() -> None:
        # The context is made again, since it is made for each batch.
        fresh = AttentionContext(context.layout, context.times, context.request_times)
        attended = attend(q, k, v, fresh, terms).output
        torch.autograd.grad(attended, (q, k, v), gradient)

    seen = min(length, config.window or length)
    pairs = len(lengths) * (seen * (seen + 1) / 2 + (length - seen) * seen)
    flops = FORWARD_FLOPS * (1 + BACKWARD) * pairs * HEADS * WIDTH
    path = path_of(terms, q, v, capability, context.window(config))
    return _rate(name, path, _seconds(work, device, sizes.repeats), flops, peak)


def _context_of(lengths: list[int], device: torch.device) -> AttentionContext:
    layout = layout_of(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
    times = torch.arange(layout.num_events) * 3600
    return to_device(AttentionContext(layout, times, times + 60), device)


def _terms_of(config: AttentionConfig, longest: int, device: torch.device) -> AttentionTerms:
    """Return the form with biases that are not zero."""
    position = PositionBias("bucketed", HEADS, longest, bidirectional=False) if config.uses_position else None
    time_bias = TimeBias("bucketed", HEADS) if config.uses_time else None
    for bias in (position, time_bias):
        for parameter in [] if bias is None else bias.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return AttentionTerms(
        config,
        WIDTH**-0.5,
        longest,
        None if position is None else position.to(device),
        None if time_bias is None else time_bias.to(device),
    )


def _parity(device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield the largest difference of each form in float32 from the reference on the CPU, of values and gradients."""
    lengths = [3, 0, 200, 17, 1, 129]
    host = torch.device("cpu")
    for name, form in FORMS.items():
        config = AttentionConfig.model_validate({"num_heads": HEADS, **form})
        generator = torch.Generator().manual_seed(2)
        inputs = [torch.randn(sum(lengths), HEADS, WIDTH, generator=generator) for _ in range(3)]
        expected = _values_and_gradients(attend_reference, inputs, config, lengths, host)
        actual = _values_and_gradients(attend, inputs, config, lengths, device)
        yield name, max(float((a - e).abs().max() / e.abs().max()) for a, e in zip(actual, expected, strict=True))


def _values_and_gradients(
    function: Callable[..., Any],
    inputs: list[Tensor],
    config: AttentionConfig,
    lengths: list[int],
    device: torch.device,
) -> list[Tensor]:
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    output = function(*leaves, _context_of(lengths, device), _terms_of(config, max(lengths), device)).output
    gradients = torch.autograd.grad(
        output, leaves, torch.cos(torch.arange(output.numel(), device=device)).view_as(output)
    )
    return [tensor.detach().cpu() for tensor in (output, *gradients)]


# Whole steps


def _step_rate(device: torch.device, sizes: Sizes, peak: float, name: str, encoder: dict[str, Any]) -> Rate:
    """Measure look-up, forward, backward and optimizer of a ready batch in bfloat16, and its model FLOPs utilisation."""
    objective = {"kind": "sampled_softmax", "num_negatives": sizes.num_negatives}
    config = NextItemConfig.model_validate(
        {"max_history": sizes.max_history, "encoder": encoder, "objective": objective}
    )
    batch, lengths = _batch(sizes)
    batch = batch.to(device)
    model = NextItemModel(config, [TableSpec("item", sizes.num_items + 1, sizes.width)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    initialize_tables(model, 1, {"item": 0.02})
    model.to(device)
    dense = [weight for part in model.children() if part is not model.tables for weight in part.parameters()]
    optimizer = torch.optim.AdamW(dense, fused=True)
    # A plain table has a dense gradient, which no sharded table has: the rows are updated here, by the rule of SGD.
    table = next(model.tables.parameters()).requires_grad_(False)
    place = batch.items.rows["item"]

    def work() -> None:
        rows = table.index_select(0, place).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss({"item": rows}, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert rows.grad is not None
        table.index_add_(0, place, rows.grad, alpha=-1e-3)

    workload = Workload(Histories.of(lengths), float(lengths.sum()), sizes.num_items)
    flops = costs_of(config, sizes.width, workload).total
    counted = (flops.forward + flops.backward) * float(lengths.sum())
    return _rate(f"step, {name}", "step", _seconds(work, device, sizes.repeats), counted, peak)


def _batch(sizes: Sizes) -> tuple[HistoryBatch, np.ndarray]:
    """Return a batch of histories with lengths of a wide distribution, and these lengths."""
    generator = np.random.default_rng(1)
    drawn = generator.lognormal(np.log(sizes.max_history / 4), 0.9, sizes.num_histories).astype(np.int64)
    lengths = np.clip(drawn, 2, sizes.max_history)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    items, targets = generator.integers(1, sizes.num_items + 1, (2, offsets[-1]))
    negatives = generator.integers(1, sizes.num_items + 1, sizes.num_negatives)
    catalogue = Catalogue(sizes.num_items + 1, sizes.num_items + 1)
    batch = build_batch(np.arange(lengths.size), offsets, items, targets, negatives, catalogue, False)
    times = torch.arange(batch.layout.num_events) * 3600
    return replace(batch, times=times, request_times=times + 60), lengths


if __name__ == "__main__":
    main()
